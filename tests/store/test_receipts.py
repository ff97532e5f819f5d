"""A receipt is trusted only while every output is there, unchanged."""

import json

import pytest

from premask.store.atomic import atomic_write
from premask.store.receipts import finished, receipt_path, write_receipt

ITEM = "0f" * 16


@pytest.fixture
def work(tmp_path):
    """A work folder with one finished item of two outputs."""
    outputs = []
    for name in ("stage/a.arrow", "stage/b.jsonl"):
        with atomic_write(tmp_path / name) as file:
            file.write(b"content of " + name.encode())
        outputs.append(file.written(tmp_path / name))
    write_receipt(tmp_path, ITEM, outputs, {"rows": 3})
    return tmp_path


def test_a_finished_item_gives_its_result(work):
    assert finished(work, ITEM) == {"rows": 3}
    assert finished(work, "another") is None


def test_paths_are_relative_so_the_folder_may_move(work, tmp_path):
    receipt = json.loads(receipt_path(work, ITEM).read_text())
    assert [output["path"] for output in receipt["outputs"]] == ["stage/a.arrow", "stage/b.jsonl"]
    moved = work.rename(tmp_path.with_name("moved"))
    assert finished(moved, ITEM) == {"rows": 3}


def test_outputs_may_lie_outside_the_work_folder(tmp_path):
    with atomic_write(tmp_path / "train" / "data.arrow") as file:
        file.write(b"shard")
    write_receipt(tmp_path / "work", ITEM, [file.written(tmp_path / "train" / "data.arrow")], {})
    assert finished(tmp_path / "work", ITEM) == {}
    (tmp_path / "train" / "data.arrow").unlink()
    assert finished(tmp_path / "work", ITEM) is None


@pytest.mark.parametrize("name", ["stage/a.arrow", "stage/b.jsonl"])
@pytest.mark.parametrize("damage", ["deleted", "truncated", "longer", "changed", "a folder"])
def test_a_damaged_output_is_not_trusted(work, name, damage):
    path = work / name
    content = path.read_bytes()
    path.unlink()
    match damage:
        case "truncated":
            path.write_bytes(content[:-1])
        case "longer":
            path.write_bytes(content + b"\0")
        case "changed":
            path.write_bytes(content[:-1] + b"!")
        case "a folder":
            path.mkdir()
    assert finished(work, ITEM) is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"item": "x"}', '{"item": "' + ITEM + '", "outputs": 3, "result": {}}']
)
def test_a_damaged_receipt_is_not_trusted(work, content):
    receipt_path(work, ITEM).write_text(content)
    assert finished(work, ITEM) is None


def test_the_receipt_of_another_item_is_not_trusted(work):
    receipt_path(work, ITEM).rename(receipt_path(work, "another"))
    assert finished(work, "another") is None


def test_bytes_that_are_no_text_are_not_trusted(work):
    receipt_path(work, ITEM).write_bytes(b"\xff\xfe\x00")
    assert finished(work, ITEM) is None
