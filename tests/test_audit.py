"""The books of a dataset against each other: whatever does not add up is said, and nothing else."""

import copy
import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from premask.audit import find_contradictions, find_lost_rows
from premask.cli import run
from premask.pack.plan import PlanRows
from premask.rejected import rejected_rows
from premask.repair import repair
from premask.store.manifest import read_manifest, split_shards
from premask.store.plan_file import read_plan
from premask.verify import verify

sys.path.insert(0, str(Path(__file__).parent / "torture"))

import small

selection = importlib.import_module("premask.pack.selection")


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(importlib.import_module("premask.prepare"), "PARTITION_BYTES", 3000)
        monkeypatch.setattr(importlib.import_module("premask.prepare"), "SHARD_TOKENS", 1500)
        yield


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind, two splits, split conversations, repeats, duplicates, filters."""
    folder = tmp_path_factory.mktemp("mixture")
    assert run(small.arguments(small.write_mixture(folder / "sources"), folder / "out", "--workers", "1")) == 0
    return folder / "out"


def against(mixture: Path) -> list[str]:
    return [str(path) for path in (mixture.parent / "sources").iterdir() if path.suffix != ".yaml"]


class Books:
    """Manifest, plan and rejected rows, to be changed."""

    def __init__(self, folder: Path) -> None:
        self.manifest = copy.deepcopy(read_manifest(folder))
        self.entries = split_shards(folder, self.manifest)
        plan = read_plan(folder / "plan.arrow")
        self.shards = plan.shards
        self.held = {split: joined(list(plan.rows(split))) for split in plan.shards}
        self.rejected = rejected_rows(folder / "rejected.jsonl", self.manifest, plan)

    def rows(self, split: str) -> Iterator[PlanRows]:
        yield self.held[split]

    def change(self, split: str, **columns: Callable[[Any], Any]) -> None:
        """Change some columns of the plan of a split."""
        rows = self.held[split]
        self.held[split] = replace(rows, **{name: f(getattr(rows, name).copy()) for name, f in columns.items()})

    def faults(self) -> list[tuple[str, str]]:
        plan: Any = self
        return [
            *find_contradictions(self.manifest, self.entries),
            *find_lost_rows(self.manifest, plan, self.rejected),
        ]


def joined(parts: list[PlanRows]) -> PlanRows:
    return PlanRows(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(PlanRows)})


@pytest.fixture
def books(mixture: Path) -> Books:
    return Books(mixture)


def test_the_mixture_has_it_all(books: Books) -> None:
    """What the other tests rely on."""
    assert {"broken_json", "duplicate", "filtered_tokens"} <= set(books.manifest["rows"]["rejected"])
    fates = [account["fates"] for account in books.manifest["accounts"]]
    assert sum(each.get("repeated", {}).get("examples", 0) for each in fates) > 10
    assert all(books.manifest["splits"][split]["packs"] > 5 for split in ("train", "validation"))
    rows = books.held["train"]
    assert len(np.unique(rows.source_row[rows.source_turn > 0])) > 3
    assert books.faults() == []


def set_at(*path: Any, by: int) -> Callable[[Books], None]:
    def change(books: Books) -> None:
        place: Any = books.manifest
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] += by

    return change


def one_more_repeated(books: Books) -> None:
    fates = next(account["fates"] for account in books.manifest["accounts"] if "repeated" in account["fates"])
    fates["repeated"]["examples"] += 1


def lose_a_row(books: Books) -> None:
    books.rejected.pop(next(iter(books.rejected)))


def reject_a_kept_row(books: Books) -> None:
    books.rejected[int(books.held["train"].source_row[0])] = ("duplicate", "")


def another_reason(books: Books) -> None:
    row = next(row for row, (reason, _) in books.rejected.items() if reason == "broken_json")
    books.rejected[row] = ("duplicate", "")


def in_both_splits(books: Books) -> None:
    row = int(books.held["train"].source_row[0])
    books.change("validation", source_row=lambda rows: np.concatenate([[row], rows[1:]]))


def an_example_twice(split: str) -> Callable[[Books], None]:
    def change(books: Books) -> None:
        rows = books.held[split]
        books.held[split] = joined([rows, PlanRows(**{f.name: getattr(rows, f.name)[-1:] for f in fields(PlanRows)})])

    return change


def the_same_turn(books: Books) -> None:
    rows = books.held["train"]
    two = int(np.flatnonzero(np.bincount(rows.source_row, rows.source_turn > 0) > 0)[0])
    books.change("train", source_turn=lambda turns: np.where(rows.source_row == two, 0, turns).astype(np.int32))


def a_longer_example(books: Books) -> None:
    books.change("validation", length=lambda lengths: lengths + (np.arange(len(lengths)) == 0).astype(np.int32))


EVERY = r"expected each of \d+ source rows kept or rejected once, found otherwise"
REASONS = "expected the rejected rows by reason, as rejected.jsonl has them, found other numbers"
WRONG: list[tuple[Callable[[Books], None], str, str]] = [
    (set_at("splits", "train", "tokens", by=1), "manifest.json", "train: expected the totals of its shards, found oth"),
    (set_at("rows", "kept", by=1), "manifest.json", r"expected rows in = kept \+ rejected, found other numbers"),
    (set_at("accounts", 0, "rows", by=1), "manifest.json", "expected rows in = the rows of all sources, found other"),
    (set_at("accounts", 0, "rows", by=1), "manifest.json", r"accounts, source 0: expected rows = rejected \+ used \+"),
    (set_at("accounts", 1, "tokens_in", by=1), "manifest.json", "accounts, source 1: expected tokens in = used"),
    (set_at("accounts", 2, "turns_in", by=1), "manifest.json", "accounts, source 2: expected turns in = used"),
    (set_at("packing", "train", "packs", by=1), "manifest.json", r"train: expected a packing of \d+ packs, found one "),
    (set_at("packing", "train", "packs_at_least", by=99), "manifest.json", "train: expected a packing of "),
    (
        set_at("packing", "validation", "stages", 0, by=1),
        "manifest.json",
        "validation: expected stages from the first ",
    ),
    (set_at("rows", "rejected", "duplicate", by=1), "manifest.json", REASONS),
    (
        one_more_repeated,
        "plan.arrow",
        r"train: expected \d+ examples to come",
    ),
    (
        set_at("accounts", 0, "fates", "train", "tokens", by=1),
        "plan.arrow",
        r"train, source 0: expected [\d,]+ tokens,",
    ),
    (lose_a_row, "plan.arrow", EVERY),
    (reject_a_kept_row, "plan.arrow", EVERY),
    (another_reason, "manifest.json", REASONS),
    (in_both_splits, "plan.arrow", "expected no source row in two splits, found one"),
    (an_example_twice("validation"), "plan.arrow", "validation: expected every example once, found one twice"),
    (an_example_twice("train"), "plan.arrow", r"train: expected \d+ examples to come again, found \d+"),
    (the_same_turn, "plan.arrow", "train: expected source row and turn to tell examples apart, found two of the same"),
    (a_longer_example, "plan.arrow", r"validation, source \d: expected [\d,]+ tokens, found [\d,]+"),
]


@pytest.mark.parametrize(("change", "file", "detail"), WRONG)
def test_what_does_not_add_up(change: Callable[[Books], None], file: str, detail: str, books: Books) -> None:
    change(books)
    assert any(name == file and re.match(detail, said) for name, said in books.faults()), books.faults()


# --- the same dataset, verified and repaired -------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [None, 1, 50])
def test_the_mixture_is_what_its_sources_give(mixture: Path, sample: int | None) -> None:
    report = verify(mixture, against=against(mixture), sample=sample, workers=1)
    assert report.damages == []
    assert report.compared
    assert report.compared["rows"] == sample or read_manifest(mixture)["rows"]["in"]


@pytest.mark.parametrize("lost", ["validation", "shards", "plan.arrow", "rejected.jsonl", "all"])
def test_the_mixture_is_made_again(lost: str, mixture: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(mixture, tmp_path / "out"))
    gone = {
        "validation": sorted((out / "validation").iterdir()),
        "shards": sorted(out.rglob("data-*"))[::3],
        "all": [path for path in out.rglob("*") if path.is_file() and path.name != "run.json"],
    }.get(lost, [out / lost])
    for path in gone:
        path.unlink()
    assert sorted(repair(out, workers=1).rebuilt) == sorted(path.relative_to(out).as_posix() for path in gone)
    assert small.differences(small.digests(mixture), small.digests(out)) == []
    assert (out / "run.json").read_bytes() == (mixture / "run.json").read_bytes()


def chats(path: Path) -> Path:
    """Sixty rows, of which every second pair is the same conversation."""
    texts = [f"What is {number // 2 if number % 4 > 1 else number} plus one?" for number in range(60)]
    roles = [[{"role": "user", "content": t}, {"role": "assistant", "content": "Let me see."}] for t in texts]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in roles))
    return path


def test_a_conversation_in_two_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a split that is drawn by the number of the row would do."""
    source = chats(tmp_path / "chats.jsonl")
    call = small.arguments([str(source)], tmp_path / "out", "--set", "validation=0.5", "--workers", "1")
    with monkeypatch.context() as patch:
        patch.setattr(selection, "in_validation", lambda digests, share: np.arange(len(digests)) % 2 == 0)
        assert run(call) == 0
    assert verify(tmp_path / "out", workers=1).ok
    damages = verify(tmp_path / "out", against=[str(source)], workers=1).damages
    assert {(damage.kind, damage.file) for damage in damages} == {("wrong", "plan.arrow")}
    said = r"source row \d+: expected its conversation in one split, found it in train too"
    assert all(re.fullmatch(said, damage.detail) for damage in damages)
    assert run([*call, "--fresh"]) == 0
    assert verify(tmp_path / "out", against=[str(source)], workers=1).ok


def test_a_duplicate_that_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = chats(tmp_path / "chats.jsonl")
    call = small.arguments([str(source)], tmp_path / "out", "--set", "duplicates=drop", "--workers", "1")
    with monkeypatch.context() as patch:
        patch.setattr(selection, "duplicated", lambda pool, digests, among: np.zeros(len(pool), bool))
        assert run(call) == 0
    assert verify(tmp_path / "out", workers=1).ok
    details = [damage.detail for damage in verify(tmp_path / "out", against=[str(source)], workers=1).damages]
    assert details
    said = r"source row \d+: expected its conversation once, found it in source row \d+ too"
    assert all(re.fullmatch(said, detail) for detail in details)
