"""Work items: their description, and what becomes of the errors inside them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from premask.errors import DataError, MachineError, PremaskError, UsageError
from premask.run.items import InternalError, WorkItem


@pytest.fixture(autouse=True)
def _functions_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)


def make(function: str | Callable[..., Any], **arguments: Any) -> WorkItem:
    return WorkItem(name="part 7", function=function, arguments=arguments)


def test_performs_a_function_by_name_and_by_value() -> None:
    assert make("json:dumps", obj=[1]).perform() == "[1]"
    assert make(json.dumps, obj=[1]).perform() == "[1]"


def test_digest_is_of_the_description_only() -> None:
    item = WorkItem(name="a", function="json:dumps", arguments={"x": 1, "y": [2]})
    same = WorkItem(name="a", function=json.dumps, arguments={"y": (2,), "x": 1})
    assert item.digest() == same.digest() == item.digest()
    assert len(item.digest()) == 64
    others = [
        WorkItem(name="b", function="json:dumps", arguments={"x": 1, "y": [2]}),
        WorkItem(name="a", function="json:loads", arguments={"x": 1, "y": [2]}),
        WorkItem(name="a", function="json:dumps", arguments={"x": 2, "y": [2]}),
    ]
    assert len({item.digest(), *(other.digest() for other in others)}) == 4


def test_arguments_must_be_json() -> None:
    with pytest.raises(TypeError):
        make("json:dumps", obj=Path()).digest()


@pytest.mark.parametrize(
    ("function", "arguments", "kind", "wording"),
    [
        ("data_error", {"text": "a.jsonl, row 3: no"}, DataError, "^a.jsonl, row 3: no$"),
        ("no_memory", {}, MachineError, "^part 7: out of memory; use fewer --workers"),
        ("no_memory_to_load_a_library", {}, MachineError, "^part 7: out of memory; use fewer --workers"),
        ("os_error", {"name": "ENOSPC"}, MachineError, "^part 7: the disk is full .*shard.arrow.*free some space"),
        ("os_error", {"name": "EDQUOT"}, MachineError, "the disk is full"),
        ("os_error", {"name": "EIO"}, MachineError, "the machine failed"),
        ("os_error", {"name": "EACCES"}, UsageError, "not allowed: .*shard.arrow.*check who owns"),
        ("os_error", {"name": "ENOENT"}, DataError, "a file went away .*shard.arrow"),
        ("os_error", {"name": "EFBIG"}, MachineError, "the disk is full"),
        ("os_error", {"name": "ENAMETOOLONG"}, UsageError, "choose another"),
        ("os_error", {"name": "ENOEXEC"}, InternalError, "bug in premask"),
        ("bug", {"key": "k"}, InternalError, "^part 7: KeyError: 'k'\nThis is a bug in premask: please report it."),
    ],
)
def test_errors(function: str, arguments: dict[str, Any], kind: type[PremaskError], wording: str) -> None:
    with pytest.raises(PremaskError, match=wording) as caught:
        make(f"item_functions:{function}", **arguments).perform()
    assert type(caught.value) is kind


def test_a_bug_carries_its_traceback() -> None:
    with pytest.raises(InternalError) as caught:
        make("item_functions:bug", key="k").perform()
    assert "item_functions.py" in caught.value.__notes__[0]
    assert caught.value.exit_code == 70


def test_an_unknown_function_is_a_bug() -> None:
    with pytest.raises(InternalError, match="no_such_module"):
        make("no_such_module:f").perform()


def test_interrupts_pass() -> None:
    with pytest.raises(KeyboardInterrupt):
        make("_thread:interrupt_main").perform()
