import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("tokenizer_kinds", Path(__file__).parents[1] / "mask/tokenizer_kinds.py")
KINDS = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(KINDS)


@pytest.fixture(scope="session")
def build_tokenizer():
    """`build_tokenizer(kind, added)`: the tokenizer.json of a kind (`tokenizer_kinds.KINDS`)."""
    return KINDS.build
