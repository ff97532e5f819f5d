"""Messages say where, what was expected, what was found, and the remedy: those that no other test looks at."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import premask
from premask.errors import DataError, UsageError
from premask.intake import inputs_of, require_unchanged
from premask.origin import find_origin
from premask.pack.plan import Candidates, make_plan
from premask.read import delimited, open_sources, read_source
from premask.recipe import Recipe

ROOT = Path(__file__).parents[1]
TOKENIZER = ROOT / "data/tokenizer"
GOOD = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello, what is it?"}]}
SAME = {"messages": [{**GOOD["messages"][0]}, {**GOOD["messages"][1], "weight": 0.5}]}
LONG = {"messages": [*GOOD["messages"], {"role": "user", "content": "And?"}, {"role": "assistant", "content": "So."}]}


def prepare(folder: Path, rows: list[dict[str, Any]], **options: Any) -> dict[int, tuple[str, str]]:
    """Reason and detail of every rejected row."""
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = {"sources": [str(source)], "tokenizer": str(TOKENIZER)} | options
    premask.prepare(Recipe(**named), folder / "out")
    lines = [json.loads(line) for line in (folder / "out/rejected.jsonl").read_text().splitlines()]
    assert {line["source"] for line in lines} <= {str(source)}
    return {line["row"]: (line["reason"], line["detail"]) for line in lines}


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "options", "reason", "detail"),
    [
        (GOOD, {"filters": {"min_turns": 2}}, "filtered_turns", "filters: expected at least 2 turns, found 1"),
        (LONG, {"filters": {"max_turns": 1}}, "filtered_turns", "filters: expected at most 1 turns, found 2"),
        (
            LONG,
            {"filters": {"min_tokens": 9, "max_tokens": 25}},
            "filtered_tokens",
            r"expected 9 to 25 tokens, found \d+",
        ),
        (
            LONG,
            {"filters": {"expression": "turns = 1"}},
            "filtered_expression",
            "expected a row for which the expression",
        ),
        (SAME, {"duplicates": "drop"}, "duplicate", "expected a new conversation, found one that was there before"),
        (LONG, {"max_length": 24}, "too_long", r"expected at most 24 tokens, found \d+; raise --max-length"),
        (
            {"messages": [{"role": "user", "content": "Привет."}, {"role": "assistant", "content": "Как дела?"}]},
            {"filters": {"scripts": {"Latin": 0.5}}},
            "filtered_script",
            "filters: expected a share of Latin from 0.5 to 1, found 0.000",
        ),
        (
            {"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "No."}]},
            {"control_tokens": "reject"},
            "control_token",
            "expected messages without control tokens, found one spelt out; take it out, or leave control_tokens=",
        ),
        (
            {"messages": [{**message, "train": False} for message in GOOD["messages"]]},
            {},
            "nothing_to_train",
            "expected a token to train, found none under this recipe; train_on, reasoning, tool_calls and the weights",
        ),
        (
            {"messages": [{**message, "train": False} for message in GOOD["messages"]]},
            {"turns": "separate"},
            "nothing_to_train",
            "expected a turn to train, found none under this recipe; train_on and the weights of messages",
        ),
        (
            {"messages": [GOOD["messages"][0], {**GOOD["messages"][1], "content": " ".join(["word"] * 300)}]},
            {"max_length": 64, "overflow": "split"},
            "too_long",
            r"expected at most 64 tokens, or a trained turn that ends within them, found \d+; raise --max-length",
        ),
    ],
)
def test_why_a_row_is_not_used(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], reason: str, detail: str
) -> None:
    if reason == "filtered_turns" and row is GOOD:
        rejected = prepare(tmp_path, [row, LONG], **options)
        assert list(rejected) == [0]
    else:
        rejected = prepare(tmp_path, [GOOD, row], **options)
        assert list(rejected) == [1]
    ((found, words),) = rejected.values()
    assert found == reason
    assert re.search(detail, words), words


def test_why_a_row_is_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps(GOOD) + "\n")
    rows = [{"messages": [*GOOD["messages"][:1], {"role": "assistant", "content": f"{n}"}]} for n in range(5)]
    sources = [{"path": str(tmp_path / name), "weight": 1} for name in ("one.jsonl", "rows.jsonl")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    premask.prepare(Recipe(sources=sources, tokenizer=str(TOKENIZER)), tmp_path / "out")  # type: ignore[arg-type]
    lines = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert [(line["source"], line["reason"]) for line in lines] == [(str(tmp_path / "rows.jsonl"), "not_drawn")] * 4
    expected = "weights: the mix has room for fewer examples of this source, and the seed did not draw this one"
    assert {line["detail"] for line in lines} == {expected}


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_header_whose_quotes_never_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "MAX_CELL", 1000)
    (tmp_path / "a.csv").write_text('"prompt' + "x" * 900 + "\n" + "y" * 900)
    (source,) = open_sources([str(tmp_path / "a.csv")])
    before = csv.field_size_limit(1000)
    try:
        with pytest.raises(
            DataError, match=r"a\.csv: expected a first line of column names, found field larger .*; put quotes around"
        ):
            list(read_source(source))
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize("change", ["written", "gone", "replaced"])
def test_a_source_that_changes_while_it_is_read(tmp_path: Path, change: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n")
    inputs = inputs_of(Recipe(sources=[str(path)], tokenizer="t"))
    require_unchanged(inputs)
    if change == "replaced":
        shutil.copy(path, tmp_path / "copy")
        (tmp_path / "copy").replace(path)
    elif change == "gone":
        path.unlink()
    else:
        path.write_text(json.dumps(LONG) + "\n")
    with pytest.raises(
        DataError,
        match=r"rows\.jsonl: expected a source that stays as it is while it is read, found that it changed; run again",
    ):
        require_unchanged(inputs)


def test_a_file_whose_name_is_not_utf8(tmp_path: Path) -> None:
    """A folder may hold one; the manifest, which is JSON, cannot name it."""
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "\udcff.jsonl").write_text(json.dumps(GOOD) + "\n")
    recipe = Recipe(sources=[str(tmp_path / "odd")], tokenizer=str(TOKENIZER))
    with pytest.raises(UsageError, match=r"udcff.jsonl': expected a file name in UTF-8, found other bytes; rename"):
        inputs_of(recipe)


def test_a_tokenizer_that_is_gone(tmp_path: Path) -> None:
    shutil.copytree(TOKENIZER, tmp_path / "tokenizer")
    prepare(tmp_path, [GOOD], tokenizer=str(tmp_path / "tokenizer"))
    shutil.rmtree(tmp_path / "tokenizer")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    with pytest.raises(UsageError) as caught:
        find_origin(tmp_path / "out", manifest)
    first, second = str(caught.value).splitlines()
    assert first.endswith("the dataset cannot be made again from what is here:")
    assert second.startswith(f"tokenizer {tmp_path / 'tokenizer'}: ")
    assert second.endswith("; name its folder with --tokenizer")


# --- plans ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_planned() -> None:
    none = np.zeros(2, np.int32)
    rows = Candidates(
        partition=none + 3, index=none, source_row=np.array([7, 8]), source_turn=none, length=none + 5, supervised=none
    )
    with pytest.raises(
        UsageError, match="shard_tokens and capacity: expected 1 to 536870912 tokens, found 0 and 9; a sh"
    ):
        make_plan(rows, capacity=9, seed=0, shard_tokens=0)
    long = replace(rows, length=np.array([5, 10], np.int32))
    words = (
        r"source row 8 \(partition 3, example 0\): expected 1 to 9 tokens, found 10 \(1 such examples\); apply an over"
    )
    with pytest.raises(DataError, match=words):
        make_plan(long, capacity=9, seed=0, shard_tokens=100)
