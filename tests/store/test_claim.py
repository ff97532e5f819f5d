"""Whose output folder is it: the rules that need no run to be seen."""

from pathlib import Path

import pytest

from premask.errors import UsageError
from premask.store.claim import claim

SOURCES = [{"name": "a", "sha256": "1"}, {"name": "b", "sha256": "2"}]


def test_the_order_of_sources_counts(tmp_path: Path) -> None:
    other = r"unfinished run that differs: sources stand in another order\. Choose another"
    claim(tmp_path, {"sources": SOURCES}, fresh=False)
    claim(tmp_path, {"sources": SOURCES}, fresh=False)
    with pytest.raises(UsageError, match=other):
        claim(tmp_path, {"sources": SOURCES[::-1]}, fresh=False)
    claim(tmp_path, {"sources": SOURCES[::-1]}, fresh=True)
    with pytest.raises(UsageError, match=other):
        claim(tmp_path, {"sources": SOURCES}, fresh=False)
