"""Recipes end to end: many formats in one mix, against oracles that share no code with premask.

The oracle writes ChatML by hand, asks `tokenizers` for offsets, decides about every token in a loop, and goes through
the rows one at a time: read, filtered, a duplicate, validation, drawn. Pieces of long rows are rendered again by
transformers.
"""

import csv
import gzip
import importlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import premask
from premask.errors import DataError
from premask.recipe import Recipe

ROOT = Path(__file__).parents[1]
SHARED = ROOT / "../shared/data"
TOKENIZER = ROOT / "data/tokenizer"
Message = dict[str, Any]

WORDS = (ROOT / "data/prose.txt").read_text(encoding="utf-8").split()


# --- the data -------------------------------------------------------------------------------------------------------


def talk(chance: random.Random, exchanges: int, longest: int = 40, system: bool = False) -> list[Message]:
    """A conversation of so many exchanges."""

    def text(most: int) -> str:
        start = chance.randrange(len(WORDS) - most)
        return " ".join(WORDS[start : start + chance.randint(1, most)])

    head = [{"role": "system", "content": text(8)}] if system else []
    return head + [
        {"role": role, "content": text(most)}
        for _ in range(exchanges)
        for role, most in (("user", 10), ("assistant", longest))
    ]


@dataclass
class File:
    """A source: its rows as the oracle sees them, None for one that cannot be read, and how it is written."""

    name: str
    rows: list[list[Message] | str | None]
    options: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> str:
        path = folder / self.name
        WRITERS[self.name.partition(".")[2]](path, self.rows)
        return str(path)


def lines(rows: Sequence[Any], broken: bytes = b'{"messages": [') -> bytes:
    return b"".join(broken + b"\n" if row is None else json.dumps(row).encode() + b"\n" for row in rows)


def by_lines(path: Path, rows: list[Any]) -> None:
    path.write_bytes(lines([row and {"messages": row} for row in rows]))


def by_own_names(path: Path, rows: list[Any]) -> None:
    """Columns, keys and roles under names of their own."""
    roles = {"user": "me", "assistant": "bot", "system": "system"}
    talks = [
        row and {"data": {"chat": [{"who": roles[m["role"]], "says": m["content"]} for m in row]}, "prompt": 5}
        for row in rows
    ]
    path.write_bytes(lines(talks))


def by_array(path: Path, rows: list[Any]) -> None:
    """ShareGPT, an array on a single line."""
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    talks = [{"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in row]} for row in rows]
    path.write_text(json.dumps(talks))


def by_gzip(path: Path, rows: list[Any]) -> None:
    """Alpaca, compressed."""
    tasks = [{"instruction": row[0]["content"], "input": "", "output": row[1]["content"]} for row in rows]
    path.write_bytes(gzip.compress(lines(tasks)))


def by_csv(path: Path, rows: list[Any]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "completion"])
        writer.writerows([row[0]["content"], row[1]["content"]] for row in rows)


def by_parquet(path: Path, rows: list[Any]) -> None:
    pq.write_table(pa.Table.from_pylist([{"messages": row} for row in rows]), path, row_group_size=len(rows))


def by_arrow(path: Path, rows: list[Any]) -> None:
    table = pa.Table.from_pylist([{"messages": row} for row in rows])
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=17)


def by_text(path: Path, rows: list[Any]) -> None:
    path.write_bytes(lines([{"text": row} for row in rows]))


WRITERS = {
    "jsonl": by_lines,
    "own.jsonl": by_own_names,
    "json": by_array,
    "jsonl.gz": by_gzip,
    "csv": by_csv,
    "parquet": by_parquet,
    "arrow": by_arrow,
    "text.jsonl": by_text,
}


def mixture() -> list[File]:
    """Sources of every format; some rows stand in several of them, some are broken, some are long."""
    chance = random.Random(5)
    pairs = [talk(chance, 1) for _ in range(90)]
    talks = [talk(chance, chance.randint(1, 6), 60, chance.random() < 0.3) for _ in range(160)]
    long = [talk(chance, 2, 400) for _ in range(6)]
    unlike = [{**m, "train": False} if m["role"] == "assistant" and n == 1 else m for n, m in enumerate(talks[3])]
    own = {
        "columns": {"messages": "data.chat"},
        "message_keys": {"role": "who", "content": "says"},
        "role_map": {"me": "user", "bot": "assistant"},
    }
    names = ("a.jsonl", "b.own.jsonl", "c.json", "d.jsonl.gz", "e.csv", "f.parquet", "g.arrow", "h.text.jsonl")
    rows: list[list[Any]] = [
        [*talks[:30], None, *long, [{"role": "user", "content": "Nobody answers."}], unlike],
        [*talks[25:50], None, talks[0]],
        [*talks[50:80], *talks[:3]],
        pairs[:40],
        pairs[30:70],
        [*talks[80:120], *talks[80:90]],
        [*talks[120:], *pairs[70:]],
        [" ".join(WORDS[n : n + 30]) for n in range(0, 600, 30)],
    ]
    options: list[dict[str, Any]] = [{"repeat": 3}, own, {}, {"limit": 35}, {}, {}, {"repeat": 2}, {}]
    return [File(*each) for each in zip(names, rows, options, strict=True)]


# --- the oracle -----------------------------------------------------------------------------------------------------


def chatml(messages: list[Message]) -> tuple[str, list[tuple[int, int]]]:
    """The text, and where in it the model speaks: answer and terminator."""
    text, spans = "", []
    for message in messages:
        text += f"<|im_start|>{message['role']}\n"
        start = len(text)
        text += f"{message['content']}<|im_end|>"
        if message["role"] == "assistant" and message.get("train", True):
            spans.append((start, len(text)))
        text += "\n"
    return text, spans


def tokens_of(tokenizer: Tokenizer, row: list[Message] | str) -> tuple[list[int], list[int]]:
    """Ids and labels, without the tail behind the last trained token."""
    text, spans = (row, [(0, len(row))]) if isinstance(row, str) else chatml(row)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    labels = [
        token if place and any(a <= start and end <= b for a, b in spans) else -100
        for place, (token, (start, end)) in enumerate(zip(encoding.ids, encoding.offsets, strict=True))
    ]
    while labels and labels[-1] == -100:
        labels.pop()
    return encoding.ids[: len(labels)], labels


def same(row: list[Message] | str) -> str:
    """What makes two rows one conversation."""
    return row if isinstance(row, str) else json.dumps([(m["role"], m["content"]) for m in row])


@dataclass
class Expected:
    """One source row: its tokens, or why it is rejected before anything is drawn."""

    source: int
    key: str = ""
    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    turns: int = 1
    reason: str = ""


def expected_rows(files: Sequence[File], tokenizer: Tokenizer, most: int, min_tokens: int = 0) -> list[Expected]:
    """Every source row, in order; duplicates are those of an earlier row that passed the filters."""
    found, seen = [], set()
    for source, file in enumerate(files):
        for row in file.rows[: file.options.get("limit")]:
            if row is None:
                found.append(Expected(source, reason="broken_json"))
                continue
            each = Expected(source, same(row), *tokens_of(tokenizer, row))
            if isinstance(row, list):
                each.turns = sum(message["role"] == "assistant" for message in row)
            if not each.turns:
                each.reason = "no_assistant_turn"
            elif len(each.ids) > most:
                each.reason = "too_long"
            elif len(each.ids) < min_tokens:
                each.reason = "filtered_tokens"
            elif each.key in seen:
                each.reason = "duplicate"
            else:
                seen.add(each.key)
            found.append(each)
    return found


# --- what was prepared ----------------------------------------------------------------------------------------------


@dataclass
class Example:
    """One example as it lies in a pack."""

    row: int
    turn: int
    ids: list[int]
    labels: list[int]
    pack: int


def examples_of(out: Path, split: str = "train") -> Iterator[Example]:
    for number, pack in enumerate(premask.open(out)[split]):
        turns = pack.source_turns
        end = 0
        for place, (row, length) in enumerate(zip(pack.source_rows.tolist(), pack.seq_lengths.tolist(), strict=True)):
            start, end = end, end + length
            assert pack.position_ids[start:end].tolist() == list(range(length))
            ids, labels = pack.input_ids[start:end].tolist(), pack.labels[start:end].tolist()
            yield Example(row, -1 if turns is None else int(turns[place]), ids, labels, number)


def manifest_of(out: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return manifest


def rejected_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def adds_up(out: Path) -> dict[str, Any]:
    """Rows, tokens and turns: in is what is used and what is not, for every source and over all."""
    manifest = manifest_of(out)
    held = {split: list(examples_of(out, split)) for split in manifest["splits"]}
    for entry in manifest["accounts"]:
        fates = [fate for name, fate in entry["fates"].items() if name != "repeated"]
        assert entry["rows"] == sum(entry["rejected"].values()) + sum(fate["rows"] for fate in fates)
        used = sum(fate["tokens"] for fate in fates)
        lost = entry["tokens_trimmed"] + entry["tokens_dropped"]
        assert entry["tokens_in"] + entry["tokens_repeated"] == used + lost
        assert entry["turns_in"] == entry["turns_dropped"] + sum(fate["turns"] for fate in fates)
    for split, examples in held.items():
        names = [split, "repeated"] if split == "train" else [split]
        written = Counter[str]()
        for entry in manifest["accounts"]:
            for name in names:
                written.update(entry["fates"].get(name, {}))
        assert written["examples"] == len(examples)
        assert written["tokens"] == sum(len(example.ids) for example in examples)
        assert written["supervised_tokens"] == sum(label != -100 for e in examples for label in e.labels)
    rows, rejected = manifest["rows"], rejected_of(out)
    assert rows["in"] == sum(entry["rows"] for entry in manifest["accounts"])
    assert rows["in"] == rows["kept"] + sum(rows["rejected"].values())
    assert Counter(line["reason"] for line in rejected) == rows["rejected"]
    used = {example.row for examples in held.values() for example in examples}
    assert len(used) == rows["kept"]
    assert all(line["detail"] for line in rejected)
    return manifest


def bytes_of(out: Path) -> dict[str, bytes]:
    """Every file but the one that says how it was made."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


# --- one recipe of everything ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))


@pytest.fixture(scope="module")
def files() -> list[File]:
    return mixture()


@pytest.fixture(scope="module")
def folder(files: list[File], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for file in files:
        file.write(folder)
    return folder


def sources(files: Sequence[File], folder: Path, **options: Any) -> list[dict[str, Any]]:
    return [{"path": str(folder / file.name), **file.options, **options} for file in files]


def everything(files: Sequence[File], folder: Path, **options: Any) -> Recipe:
    named = {"sources": sources(files, folder), "tokenizer": str(TOKENIZER), "max_length": 256} | options
    return Recipe(**named)


MIX = {"duplicates": "drop", "validation": 0.2, "filters": {"min_tokens": 20}, "seed": 11}


def test_every_row_has_the_fate_that_a_loop_finds(
    files: list[File], folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    premask.prepare(everything(files, folder, **MIX), out)
    adds_up(out)
    rows = expected_rows(files, tokenizer, 256, 20)
    firsts = [next(n for n, row in enumerate(rows) if row.source == source) for source in range(len(files))]
    names = [str(folder / file.name) for file in files]
    rejected = {firsts[names.index(line["source"])] + line["row"]: line["reason"] for line in rejected_of(out)}
    assert rejected == {n: row.reason for n, row in enumerate(rows) if row.reason}
    assert set(rejected.values()) == {"broken_json", "no_assistant_turn", "too_long", "filtered_tokens", "duplicate"}
    train, aside = list(examples_of(out)), list(examples_of(out, "validation"))
    for example in train + aside:
        assert (example.ids, example.labels) == (rows[example.row].ids, rows[example.row].labels)
    uses, asides = Counter(e.row for e in train), Counter(e.row for e in aside)
    assert set(asides.values()) == {1}
    assert not uses.keys() & asides.keys()
    assert set(rejected) | set(uses) | set(asides) == set(range(len(rows)))
    assert all(times == files[rows[row].source].options.get("repeat", 1) for row, times in uses.items())
    assert 0.1 < len(asides) / (len(asides) + len(uses)) < 0.3


def test_weights_make_the_largest_mix_that_repeats_allow(
    files: list[File], folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    weights = [2, 1, 0.5, 1, 1, 1.5, 3, 0.25]
    out = tmp_path / "out"
    entries = [entry | {"weight": weight} for entry, weight in zip(sources(files, folder), weights, strict=True)]
    premask.prepare(everything(files, folder, **MIX, sources=entries), out)
    adds_up(out)
    rows = expected_rows(files, tokenizer, 256, 20)
    aside = {example.row for example in examples_of(out, "validation")}
    there = Counter(row.source for n, row in enumerate(rows) if not row.reason and n not in aside)
    uses = Counter(example.row for example in examples_of(out))
    by_source: defaultdict[int, list[int]] = defaultdict(list)
    for n, row in enumerate(rows):
        if not row.reason and n not in aside:
            by_source[row.source].append(uses[n])
    offers = [there[n] * file.options.get("repeat", 1) for n, file in enumerate(files)]
    unit = min(Fraction(offer) / Fraction(weight) for offer, weight in zip(offers, weights, strict=True))
    for source, weight in enumerate(weights):
        assert abs(sum(by_source[source]) - Fraction(weight) * unit) <= Fraction(1, 2)
        assert max(by_source[source]) - min(by_source[source]) <= 1
    assert any(sum(by_source[source]) == offers[source] for source in range(len(files)))
    undrawn = sum(line["reason"] == "not_drawn" for line in rejected_of(out))
    assert undrawn == sum(times.count(0) for times in by_source.values()) > 0


def test_runs_workers_and_the_order_of_sources_give_the_same_bytes(
    files: list[File], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("premask.prepare")
    monkeypatch.setattr(module, "PARTITION_BYTES", 2**13)  # several partitions of every file
    monkeypatch.setattr(module, "SHARD_TOKENS", 2**12)
    options = {**MIX, "overflow": "split", "max_length": 128, "sources_order": "sorted"}
    seen = []
    for number, workers in enumerate((1, 2, 1)):
        listed = files if number < 2 else [files[n] for n in (3, 0, 7, 1, 6, 2, 5, 4)]
        recipe = everything(listed, folder, **options)
        premask.prepare(recipe, tmp_path / str(number), workers=workers)
        seen.append(bytes_of(tmp_path / str(number)))
    assert len(manifest_of(tmp_path / "0")["partitions"]) > 20
    assert len(manifest_of(tmp_path / "0")["splits"]["train"]["shards"]) > 2
    assert seen[0] == seen[1]
    assert seen[0] == seen[2]
    unsorted = everything([files[1], files[0]], folder, **(options | {"sources_order": "matters"}))
    premask.prepare(unsorted, tmp_path / "other")
    assert [s["name"] for s in manifest_of(tmp_path / "other")["sources"]] == [
        str(folder / file.name) for file in (files[1], files[0])
    ]


def test_the_manifest_s_recipe_makes_the_dataset_again(files: list[File], folder: Path, tmp_path: Path) -> None:
    premask.prepare(everything(files, folder, **MIX, overflow="truncate", pack="sequential"), tmp_path / "one")
    premask.prepare(Recipe(**manifest_of(tmp_path / "one")["recipe"]), tmp_path / "two")
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


# --- splits ---------------------------------------------------------------------------------------------------------


def sides(out: Path, keys: Sequence[str]) -> dict[str, set[str]]:
    """On which sides every conversation stands."""
    found: dict[str, set[str]] = defaultdict(set)
    for split in ("train", "validation"):
        for example in examples_of(out, split):
            found[keys[example.row]].add(split)
    return found


def keys_of(files: Sequence[File]) -> list[str]:
    return [same(row) if row else "" for file in files for row in file.rows]


def test_a_conversation_is_on_one_side_whatever_it_is_written_in(tmp_path: Path) -> None:
    chance = random.Random(1)
    pairs = [talk(chance, 1) for _ in range(60)]
    weighted = [[row[0], {**row[1], "train": True}] for row in pairs]
    names = ("a.jsonl", "b.own.jsonl", "c.json", "d.jsonl.gz", "e.csv", "f.parquet", "g.arrow", "h.jsonl")
    own = mixture()[1].options
    files = [
        File(name, weighted if name == "h.jsonl" else pairs, own if "own" in name else {})  # type: ignore[arg-type]
        for name in names
    ]
    for file in files:
        file.write(tmp_path)
    premask.prepare(everything(files, tmp_path, validation=0.5, filters={}), tmp_path / "out")
    found = sides(tmp_path / "out", keys_of(files))
    assert len(found) == len({same(row) for row in pairs})
    assert all(len(split) == 1 for split in found.values())
    assert {side for split in found.values() for side in split} == {"train", "validation"}
    premask.prepare(everything(files, tmp_path, duplicates="drop"), tmp_path / "once")
    assert sum(1 for _ in examples_of(tmp_path / "once")) == len(found)


def test_more_data_does_not_reshuffle_the_old_split(tmp_path: Path) -> None:
    chance = random.Random(2)
    old = File("old.jsonl", [talk(chance, 2) for _ in range(120)])
    new = File("new.json", [talk(chance, 1) for _ in range(150)])
    for file in (old, new):
        file.write(tmp_path)
    before = everything([old], tmp_path, validation=0.1, max_length=1024)
    after = everything([new, old], tmp_path, validation=0.1, max_length=512, overflow="split", seed=7)
    premask.prepare(before, tmp_path / "before")
    premask.prepare(after, tmp_path / "after")
    once, again = sides(tmp_path / "before", keys_of([old])), sides(tmp_path / "after", keys_of([new, old]))
    assert {key: again[key] for key in once} == once
    assert {"validation"} in once.values()


def test_a_validation_split_that_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    File("a.jsonl", [talk(random.Random(0), 1) for _ in range(9)]).write(tmp_path)
    recipe = everything([File("a.jsonl", [])], tmp_path, validation=0.9999)
    words = "expected examples to train on, found all 9 drawn for validation; lower --validation, or add rows"
    with pytest.raises(DataError, match=words):
        premask.prepare(recipe, tmp_path / "out")


def test_a_validation_split_may_be_empty(tmp_path: Path) -> None:
    File("a.jsonl", [talk(random.Random(0), 1) for _ in range(9)]).write(tmp_path)
    premask.prepare(everything([File("a.jsonl", [])], tmp_path, validation=0.0001), tmp_path / "out")
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    assert (len(loaded["validation"]), sum(map(len, loaded["train"]["seq_lengths"]))) == (0, 9)


# --- overflow -------------------------------------------------------------------------------------------------------

TEMPLATES = ("own", "qwen2_5", "qwen3")


def template_of(name: str) -> str | None:
    """The tokenizer's own template, or one of those that come with TRL."""
    if name == "own":
        return None
    trl = pytest.importorskip("trl")
    return str(Path(trl.__file__).parent / f"chat_templates/{name}.jinja")


@pytest.fixture(scope="module")
def long_rows() -> list[list[Message]]:
    """Conversations of many exchanges, with and without a system prompt, some with thoughts, one with a long turn."""
    chance = random.Random(3)
    rows = [talk(chance, chance.randint(3, 9), 50, system=n % 2 == 0) for n in range(40)]
    for row in rows[::3]:
        for message in row[2::4]:
            if message["role"] == "assistant":
                message["reasoning_content"] = " ".join(WORDS[:7])
    rows[5][3 if rows[5][0]["role"] == "user" else 4]["content"] = " ".join(WORDS[:400])
    return rows


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_pieces_of_a_long_row_are_conversations(name: str, long_rows: list[list[Message]], tmp_path: Path) -> None:
    """Every piece is what transformers renders of the system prompt and the exchanges that it holds."""
    File("long.jsonl", long_rows).write(tmp_path)  # type: ignore[arg-type]
    template = template_of(name)
    sources = [str(tmp_path / "long.jsonl")]
    recipe = Recipe(
        sources=sources, tokenizer=str(TOKENIZER), template=template, max_length=160, overflow="split", trim_tail=False
    )
    premask.prepare(recipe, tmp_path / "out")
    adds_up(tmp_path / "out")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(TOKENIZER))
    if template:
        tokenizer.chat_template = Path(template).read_text()
    pieces: defaultdict[int, list[Example]] = defaultdict(list)
    for example in examples_of(tmp_path / "out"):
        pieces[example.row].append(example)
    whole = cut = 0
    for row, found in pieces.items():
        messages = long_rows[row]
        head = messages[:1] if messages[0]["role"] == "system" else []
        exchanges = [messages[n : n + 2] for n in range(len(head), len(messages), 2)]
        found.sort(key=lambda example: example.turn)
        starts = [max(example.turn, 0) for example in found]
        assert len(set(starts)) == len(starts)
        for example, start, stop in zip(found, starts, [*starts[1:], len(exchanges)], strict=True):
            renderings = [
                tokenizer.apply_chat_template(
                    head + [m for exchange in exchanges[start:end] for m in exchange], return_dict=False
                )
                for end in range(start + 1, stop + 1)
            ]
            assert example.ids in renderings, (row, start)
            trained = [ids for ids, label in zip(example.ids, example.labels, strict=True) if label != -100]
            ends = tokenizer.convert_tokens_to_ids("<|im_end|>")
            assert trained.count(ends) == renderings.index(example.ids) + 1
        whole += example.turn == -1
        cut += len(found) > 1
    assert whole > 1
    assert cut > 10


def test_a_truncated_row_ends_with_a_whole_turn(
    long_rows: list[list[Message]], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    rows = [[{k: m[k] for k in ("role", "content")} for m in row] for row in long_rows]
    File("long.jsonl", rows).write(tmp_path)  # type: ignore[arg-type]
    recipe = everything([File("long.jsonl", [])], tmp_path, max_length=160, overflow="truncate")
    premask.prepare(recipe, tmp_path / "out")
    adds_up(tmp_path / "out")
    stop = tokenizer.token_to_id("<|im_end|>")
    found = {example.row: example for example in examples_of(tmp_path / "out")}
    shorter = 0
    for number, row in enumerate(rows):
        ids, labels = tokens_of(tokenizer, row)
        ends = [n + 1 for n, label in enumerate(labels) if label == stop]
        best = max((end for end in ends if end <= 160), default=0)
        if not best:
            assert number not in found
            continue
        assert (found[number].ids, found[number].labels) == (ids[:best], labels[:best])
        assert found[number].labels[-1] == stop
        shorter += best < len(ids)
    assert shorter > 10
    assert all(line["reason"] == "too_long" for line in rejected_of(tmp_path / "out"))


# --- stages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["rest", "everything"])
@pytest.mark.parametrize("by", ["length", "turns"])
def test_no_pack_crosses_a_stage(
    schedule: str, by: str, files: list[File], folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    up_to = [40, 90] if by == "length" else [1, 3]
    plan = {"by": by, "up_to": up_to, "schedule": schedule}
    premask.prepare(everything(files, folder, **MIX, order="curriculum", curriculum=plan), tmp_path / "out")
    manifest = adds_up(tmp_path / "out")
    stages = manifest["packing"]["train"]["stages"]
    assert len(stages) == 4
    rows = expected_rows(files, tokenizer, 256, 20)
    hardness = [len(row.ids) if by == "length" else row.turns for row in rows]
    times: list[Counter[int]] = [Counter(), Counter(), Counter()]
    for example in examples_of(tmp_path / "out"):
        stage = next(n for n, (a, b) in enumerate(pairwise(stages)) if a <= example.pack < b)
        times[stage][example.row] += 1
    used = set().union(*times)
    for least, most, held in zip([0, *up_to], [*up_to, 10**9], times, strict=True):
        of_stage = {row for row in used if (least if schedule == "rest" else 0) < hardness[row] <= most}
        assert held == {row: files[rows[row].source].options.get("repeat", 1) for row in of_stage}


def test_as_it_is_keeps_the_order(files: list[File], folder: Path, tmp_path: Path) -> None:
    premask.prepare(everything(files[2:6], folder, order="as_is", pack="sequential", limit=30), tmp_path / "out")
    rows = [example.row for example in examples_of(tmp_path / "out")]
    assert rows == sorted(rows)


def test_a_source_whose_rows_are_all_lost_cannot_have_a_weight(files: list[File], folder: Path, tmp_path: Path) -> None:
    entries = [entry | {"weight": 1} for entry in sources(files[:3], folder)]
    recipe = everything(files, folder, sources=entries, filters={"expression": "source NOT LIKE '%c.json'"})
    with pytest.raises(DataError, match=r"c\.json: expected examples for its weight, found none .*rejected\.jsonl"):
        premask.prepare(recipe, tmp_path / "out")
    assert any(line["source"].endswith("a.jsonl") for line in rejected_of(tmp_path / "out"))


# --- all of the shared data -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_all_the_shared_data_in_one_recipe(tmp_path: Path) -> None:
    """Twice, and with the sources listed in another order."""
    trl = pytest.importorskip("trl")
    paths = sorted(path for kind in ("chat", "tools") for path in (SHARED / kind).iterdir())
    for number, order in enumerate((paths, paths, paths[::-1])):
        recipe = Recipe(
            sources=[{"path": str(path), "weight": 1 + len(path.name) % 3, "repeat": 2} for path in order],  # type: ignore[misc]
            sources_order="sorted",
            tokenizer=str(SHARED / "tokenizers/dolma2"),
            template=str(Path(trl.__file__).parent / "chat_templates/qwen2_5.jinja"),
            max_length=6144,
            overflow="split",
            duplicates="drop",
            validation=0.05,
        )
        premask.prepare(recipe, tmp_path / str(number), workers=2)
    manifest = adds_up(tmp_path / "0")
    counts = {path: sum(1 for _ in shared_rows(path)) for path in paths}
    assert {entry["path"]: entry["rows"] for entry in manifest["accounts"]} == {str(p): n for p, n in counts.items()}
    assert bytes_of(tmp_path / "0") == bytes_of(tmp_path / "1") == bytes_of(tmp_path / "2")


def shared_rows(path: Path) -> Iterator[Any]:
    if path.suffix == ".json":
        yield from json.loads(path.read_text())
    else:
        yield from (line for line in path.read_bytes().split(b"\n") if line.strip())  # text has other line ends too
