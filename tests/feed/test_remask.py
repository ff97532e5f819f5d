"""`premask remask`: datasets folders and Parquet files, with labels found from their ids."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk
from transformers import AutoTokenizer

import premask
from premask.cli import run
from premask.feed.drop_in import train_on_responses_only

ROOT = Path(__file__).parents[2]
TOKENIZER = str(ROOT / "data/tokenizer")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TOKENIZER)


def rows(tokenizer, count):
    """Conversations of one or two turns."""
    found = []
    for n in range(count):
        texts = [f"Question {n}", f"{n} times", "And then?", "Nothing."][: 2 + n % 2 * 2]
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        found.append({"name": str(n), "input_ids": tokenizer.apply_chat_template(messages)["input_ids"]})
    return found


def expected(tokenizer, dataset, **options):
    mask = train_on_responses_only(None, tokenizer=tokenizer, return_function=True, **options)
    return mask({"input_ids": dataset["input_ids"][:]})["labels"]


def remask(dataset, out, *options):
    return run(["remask", str(dataset), "--tokenizer", TOKENIZER, "--out", str(out), *options])


@pytest.mark.parametrize("options", [{}, {"mask": "unsloth"}, {"last_response_only": True}], ids=str)
def test_a_folder_of_datasets(tokenizer, tmp_path, capsys, options):
    data = rows(tokenizer, 2500)
    splits = DatasetDict(train=Dataset.from_list(data), test=Dataset.from_list(data[:3]))
    splits.save_to_disk(tmp_path / "in", num_shards={"train": 2, "test": 1})
    flags = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in options.items()]
    assert remask(tmp_path / "in", tmp_path / "out", "--json", *flags) == 0
    counts = json.loads(capsys.readouterr().out)
    made = load_from_disk(tmp_path / "out")
    assert list(made) == ["train", "test"]
    for name, split in splits.items():
        assert made[name].features["labels"] == split.features["input_ids"]
        assert made[name]["labels"][:] == expected(tokenizer, split, **options)
        assert made[name].remove_columns("labels").to_list() == split.to_list()
        assert made[name]._fingerprint != split._fingerprint
    assert counts["rows"] == 2503
    assert counts["tokens"] == sum(len(row["input_ids"]) for row in [*data, *data[:3]])
    assert counts["trained_tokens"] == sum(i != -100 for split in made.values() for row in split["labels"] for i in row)


def test_parquet(tokenizer, tmp_path, capsys):
    dataset = Dataset.from_list(rows(tokenizer, 40))
    (tmp_path / "in/deep").mkdir(parents=True)
    dataset.to_parquet(tmp_path / "in/deep/a.parquet")
    assert remask(tmp_path / "in", tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith("40 rows, ")
    table = pq.read_table(tmp_path / "out/deep/a.parquet")
    assert table.column("labels").to_pylist() == expected(tokenizer, dataset)
    again = load_dataset("parquet", data_files=str(tmp_path / "out/deep/a.parquet"), cache_dir=str(tmp_path / "cache"))
    assert again["train"].features["labels"] == dataset.features["input_ids"]
    one = tmp_path / "in/deep/a.parquet"
    assert remask(one, tmp_path / "one", "--quiet", "--template", "chatml") == 0
    assert pq.read_table(tmp_path / "one/a.parquet").equals(table)


def test_the_packs_of_prepare_keep_their_labels(tmp_path):
    """What prepare leaves untrained stays so, and what it trains is found again."""
    recipe = premask.Recipe(
        sources=[str(ROOT / "data/samples/support.messages.jsonl")], tokenizer=TOKENIZER, max_length=256
    )
    premask.prepare(recipe, tmp_path / "in")
    assert remask(tmp_path / "in", tmp_path / "out", "--quiet") == 0
    found, prepared = load_from_disk(tmp_path / "out")["train"], load_from_disk(tmp_path / "in")["train"]
    assert found["labels"][:] == prepared["labels"][:]


def test_errors_name_file_and_rows_and_leave_nothing(tokenizer, tmp_path, capsys):
    data = rows(tokenizer, 1300)
    for n in (3, 1200):
        data[n]["input_ids"] = data[n]["input_ids"][:4]
    Dataset.from_list(data).to_parquet(tmp_path / "a.parquet")
    assert remask(tmp_path / "a.parquet", tmp_path / "out") == 1
    assert "a.parquet: rows 3, 1200 would train on nothing." in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    assert remask(tmp_path / "a.parquet", tmp_path / "out", "--no-response", "drop") == 0
    assert "2 rows left out" in capsys.readouterr().out
    names = pq.read_table(tmp_path / "out/a.parquet").column("name").to_pylist()
    assert names == [str(n) for n in range(1300) if n not in (3, 1200)]
    assert remask(tmp_path / "a.parquet", tmp_path / "out") == 2
    assert "expected a folder that does not exist yet" in capsys.readouterr().err
    data[1250]["input_ids"] = [1, 5000]
    Dataset.from_list(data).to_parquet(tmp_path / "a.parquet")
    assert remask(tmp_path / "a.parquet", tmp_path / "new") == 1
    assert "a.parquet: row 1,250: expected ids from 0 to 4,095, found 5000" in capsys.readouterr().err


def test_what_is_no_dataset_or_has_no_responses(tokenizer, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert remask(tmp_path / "empty", tmp_path / "out") == 2
    assert "expected a folder written by `save_to_disk`, or Parquet files" in capsys.readouterr().err
    Dataset.from_list([{"text": "a"}]).to_parquet(tmp_path / "a.parquet")
    assert remask(tmp_path / "a.parquet", tmp_path / "out") == 1
    assert "a.parquet: expected a column input_ids, found text" in capsys.readouterr().err
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is none PAR1")
    assert remask(tmp_path / "a.parquet", tmp_path / "out") == 1
    assert "a.parquet: " in capsys.readouterr().err
    Dataset.from_list([{"input_ids": [1, 2]}]).to_parquet(tmp_path / "a.parquet")
    assert remask(tmp_path / "a.parquet", tmp_path / "out", "--no-response", "drop") == 1
    assert "no row has anything to train" in capsys.readouterr().err
    assert remask(tmp_path / "a.parquet", tmp_path / "out") == 1
    assert "no row has anything to train. Check --response-part" in capsys.readouterr().err
    assert remask(tmp_path / "a.parquet", tmp_path / "out", "--response-part", "x") == 2
    assert "Give both --instruction-part and --response-part" in capsys.readouterr().err
    Dataset.from_dict({"input_ids": []}, features=Features({"input_ids": [Value("int32")]})).to_parquet(
        tmp_path / "a.parquet"
    )
    assert remask(tmp_path / "a.parquet", tmp_path / "out") == 1
    assert "a.parquet: expected rows, found none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
