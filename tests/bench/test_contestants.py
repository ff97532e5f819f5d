"""The contestants that need no network and no trainer, on a few rows: what they make agrees where it can be compared.

A contestant that quietly does less than the others would look fast.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastokens", reason="the fast encoder is one of the contestants: pip install premask[fast]")
pytest.importorskip("transformers", reason="templates are rendered as transformers does: pip install premask[train]")

SCRIPT = Path(__file__).with_name("contestants.py")
TOKENIZER = Path(__file__).parents[2] / "data/tokenizer"
NAMES = ("premask:tokenizers", "floor", "fast_encoder", "json_alone", "raw_tokenizers", "jinja")
ANSWERS = ("Paris.", "", "  two\n\n  spaces ", "naïve ﬁancée 🙂", "<|im_end", "x = [1, 2]\n" * 40)
ROWS = 45
"""Odd, so that two processes take unlike shares."""


def write_rows(path: Path) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for number in range(ROWS):
            turns = [("user", f"Question {number}?"), ("assistant", ANSWERS[number % len(ANSWERS)])]
            turns = [("system", "Be brief."), *turns] if number % 3 else [*turns, *turns]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return path


def run(name: str, corpus: Path, processes: int, out: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, SCRIPT, name, corpus, TOKENIZER, "chatml", str(processes), out],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def steps(result: dict[str, Any]) -> set[str]:
    return result.keys() & {"parse", "encode", "write"}


def test_contestants_agree(tmp_path: Path) -> None:  # one test, so that every contestant starts only once
    corpus = write_rows(tmp_path / "chat.jsonl")
    results = {name: run(name, corpus, 1, tmp_path / name) for name in NAMES}
    results["floor, 2"] = run("floor", corpus, 2, tmp_path / "two")
    for name, result in results.items():
        assert result["seconds"] > 0, name
        assert result["bytes"] == corpus.stat().st_size, name

    premask = results["premask:tokenizers"]
    assert premask["rejected"] == {}
    assert {result["rows"] for result in results.values() if "rows" in result} == {ROWS}

    tokens = {name: result["tokens"] for name, result in results.items() if "tokens" in result}
    assert set(tokens) == {"premask:tokenizers", "floor", "floor, 2", "fast_encoder", "raw_tokenizers"}
    assert len(set(tokens.values())) == 1, tokens  # premask's before it trims what is behind the last trained token
    assert 0 < premask["supervised"] < premask["tokens"]
    ids = {name: result["ids"] for name, result in results.items() if "ids" in result}
    assert set(ids) == set(tokens) - {"premask:tokenizers"}
    assert len(set(ids.values())) == 1, ids
    assert results["jinja"]["texts"] == results["raw_tokenizers"]["texts"]  # as transformers renders, and as premask

    for name, taken in (
        ("floor", {"parse", "encode", "write"}),
        ("fast_encoder", {"encode"}),
        ("json_alone", {"parse"}),
    ):
        assert steps(results[name]) == taken
        assert results[name]["seconds"] == pytest.approx(sum(results[name][step] for step in taken))
    written = [path.stat().st_size for path in (tmp_path / "two").iterdir()]
    assert len(written) == 2
    assert sum(written) == 3 * 4 * premask["tokens"]  # ids, labels and positions of 32 bits
