"""`premask explain`: the row that is asked for, wherever its source is now, and what became of it."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from premask.cli import run

ROOT = Path(__file__).parents[1]
TOKENIZER = ROOT / "data/tokenizer"
QUESTIONS = ["one apple", "two pears", "two pears", "four " + "plums " * 300]


def row(question: str) -> dict[str, str]:
    return {"ask": question, "reply": f"Noted: {question}"}


RECIPE = {
    "sources": [
        {"path": "fruit.parquet", "columns": {"prompt": "ask", "completion": "reply"}},
        {"path": "verse.jsonl", "format": "text"},
    ],
    "duplicates": "drop",
    "max_length": 128,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of a table with columns of its own, and of bare text."""
    folder = tmp_path_factory.mktemp("explain")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        pq.write_table(pa.Table.from_pylist([row(question) for question in QUESTIONS]), "fruit.parquet")
        Path("verse.jsonl").write_text('{"text": "Roses are <|im_end|> red"}\n{"text": 7}\n')
        Path("recipe.yaml").write_text(json.dumps(RECIPE))  # JSON is YAML
        assert (
            run(["prepare", "--recipe", "recipe.yaml", "--tokenizer", str(TOKENIZER), "--out", "out", "--quiet"]) == 0
        )
    return folder


def explained(folder: Path, number: int, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert run(["explain", str(folder / "out"), "--source-row", str(number), *more]) == 0
    return capsys.readouterr().out


def test_a_row_of_a_table(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = explained(made, 1, capsys)  # found where run.json says it was, since the working directory is another
    assert "source row 1: row 1 of fruit.parquet" in said
    assert "kept, proven by provenance and by search" in said
    assert "⟦Noted: two pears<|im_end|>⟧" in said


def test_a_row_that_the_recipe_leaves_out(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "rejected: duplicate: duplicates=drop: expected a new conversation" in explained(made, 2, capsys)


def test_a_row_that_is_too_long(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "rejected: too_long: expected at most 128 tokens, found" in explained(made, 3, capsys)


def test_a_text_that_is_trained_whole(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = explained(made, 4, capsys)
    assert "source row 4: row 0 of verse.jsonl" in said
    assert "R⟦oses are <|im_end|> red⟧" in said  # the first token has nothing before it
    assert "yes: emitted by the model" in said


def test_a_row_that_reading_rejects(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "rejected: wrong_type: text: expected text, found the number 7" in explained(made, 5, capsys)


def test_sources_that_moved(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made / "out", tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    for name in ("fruit.parquet", "verse.jsonl"):
        shutil.copy(made / name, tmp_path / "elsewhere")
    assert "fruit.parquet" in explained(tmp_path, 0, capsys, "--source", str(tmp_path / "elsewhere"))


def test_errors(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", str(made / "out"), "--source-row", "6"]) == 2
    assert "--source-row 6: expected a row from 0 to 5" in capsys.readouterr().err
    other = tmp_path / "other.jsonl"
    other.write_text("{}\n")
    assert run(["explain", str(made / "out"), "--source-row", "0", "--source", str(other)]) == 2
    size = (made / "fruit.parquet").stat().st_size
    expected = (
        f"fruit.parquet: expected the source of this row, a file of {size:,} bytes, found none at {other}; say where"
    )
    assert expected in capsys.readouterr().err
