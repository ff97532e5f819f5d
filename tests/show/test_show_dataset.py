"""`premask view`: from a dataset on the disk to what is printed."""

from pathlib import Path

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from premask.cli import run
from premask.read import digest_file
from premask.store.manifest import split_entry, write_manifest
from premask.store.shards import ShardEntry, shard_schema

END = "<|im_end|>"


def write_tokenizer(folder: Path) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Pack 0: source rows 0 and 4; pack 1: source row 2. Of each the answer and its end are trained."""
    tokenizer = write_tokenizer(tmp_path / "tok")
    packs: list[dict[str, list[int]]] = []
    for rows in ([0, 4], [2]):
        pack: dict[str, list[int]] = {name: [] for name in shard_schema(source_turns=False, weights=False).names}
        for row in rows:
            prompt, answer = (tokenizer.encode(text).ids for text in (f"ask {row}: ", f"grün {row}{END}"))
            pack["input_ids"] += prompt + answer
            pack["labels"] += [-100] * len(prompt) + answer
            pack["position_ids"] += range(len(prompt + answer))
            pack["seq_lengths"].append(len(prompt + answer))
            pack["source_rows"].append(row)
        packs.append(pack)
    folder = tmp_path / "prepared"
    (folder / "train").mkdir(parents=True)
    shard = folder / "train" / "data-00000-of-00001.arrow"
    schema = shard_schema(source_turns=False, weights=False)
    with pa.ipc.new_stream(str(shard), schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(packs, schema=schema))
    tokens, size = sum(len(pack["input_ids"]) for pack in packs), shard.stat().st_size
    entry = ShardEntry(
        file=shard.name, packs=2, examples=3, tokens=tokens, supervised_tokens=0, bytes=size, sha256=""
    )  # fmt: skip
    content = {
        "splits": {"train": split_entry([entry])},
        "recipe": {"tokenizer": str(tmp_path / "tok")},
        "tokenizer": {"tokenizer.json": digest_file(tmp_path / "tok" / "tokenizer.json")},
        "rows": {"in": 6},
        "sources": [{"name": "a.jsonl"}, {"name": "b.jsonl"}],
        "partitions": [{"source": 0, "first_row": 0}, {"source": 1, "first_row": 2}, {"source": 1, "first_row": 4}],
    }
    write_manifest(folder, content)
    (folder / "rejected.jsonl").write_text(
        '{"source": "a.jsonl", "row": 1, "reason": "broken_json", "detail": "no JSON"}\n'
        '{"source": "b.jsonl", "row": 3, "reason": "wrong_type", "detail": "a number"}\n'
    )
    return folder


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run(["view", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_the_first_pack_by_default(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, dataset)
    assert "ask 0: ⟦grün 0<|im_end|>⟧" in out
    assert "ask 4: ⟦grün 4<|im_end|>⟧" in out
    assert "source row 4 · 15 tokens, 8 trained" in out
    assert "ask 2" not in out
    assert shown(capsys, dataset, "--pack", 0) == out


def test_another_pack(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "ask 2: ⟦grün 2<|im_end|>⟧" in shown(capsys, dataset, "--pack", 1)


def test_one_source_row(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, dataset, "--source-row", 4)
    assert "example 0 · source row 4" in out
    assert "ask 4: ⟦grün 4<|im_end|>⟧" in out
    assert "ask 0" not in out


def test_no_color_on_a_terminal(
    dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in shown(capsys, dataset)
    assert "\x1b[" not in shown(capsys, dataset, "--no-color")


def test_a_tokenizer_that_moved(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tok").rename(tmp_path / "moved")
    assert run(["view", str(dataset)]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert "⟦grün 0<|im_end|>⟧" in shown(capsys, dataset, "--tokenizer", tmp_path / "moved")


def test_another_tokenizer(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "tok" / "tokenizer.json"
    other.write_text(other.read_text() + "\n")
    assert run(["view", str(dataset)]) == 2
    assert "expected the tokenizer with which" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "wording"),
    [
        (["--pack", "2"], 2, "--pack 2: {folder}/train has the packs 0 to 1"),
        (["--split", "validation"], 2, "--split validation: {folder} has the splits train"),
        (["--source-row", "1"], 2, "no example was made from it: row 1 of a.jsonl was rejected (broken_json): no JSON"),
        (["--source-row", "5"], 2, "no example was made from it: row 3 of b.jsonl was rejected (wrong_type): a number"),
        (["--source-row", "6"], 2, "--source-row 6: {folder} was made from the source rows 0 to 5"),
        (["--pack", "-1"], 2, "Invalid value for '--pack': -1 is not in the range x>=0"),
    ],
)
def test_what_is_not_there(
    dataset: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, wording: str
) -> None:
    assert run(["view", str(dataset), *arguments]) == code
    assert wording.format(folder=dataset) in capsys.readouterr().err


def test_an_unfinished_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["view", str(tmp_path)]) == 1
    assert "expected a manifest, found none" in capsys.readouterr().err
