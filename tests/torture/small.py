"""A dataset that is small in bytes and large in files: two dozen partitions and a dozen shards in a second.

The sizes of partitions and shards are constants of premask; `shrink` replaces them, in whatever process calls it.
"""

import csv
import gzip
import hashlib
import importlib
import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

REPOSITORY = Path(__file__).parents[2]
SAMPLES = REPOSITORY / "data" / "samples"
TOKENIZER = REPOSITORY / "data" / "tokenizer"
UNREPEATABLE = "run.json"
"""Times and hosts: the one file whose bytes differ from run to run."""

_TEXT = "the road turns where river meets hill and nobody asks why; so 12 birds, or 7, went on (quietly)"
_WORDS = _TEXT.split()


def shrink(partition_bytes: int = 3000, shard_tokens: int = 1500) -> None:
    """Make partitions and shards small, here."""
    prepare = importlib.import_module("premask.prepare")
    vars(prepare).update(PARTITION_BYTES=partition_bytes, SHARD_TOKENS=shard_tokens)


def write_sources(folder: Path, rows: int = 120) -> list[str]:
    """The sample files and one of `rows` generated rows, with weights and a few that are rejected; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [Path(shutil.copy(path, folder)) for path in sorted(SAMPLES.iterdir())]
    rng = random.Random(7)
    lines = []
    for number in range(rows):
        turns = [_turn(rng, role) for _ in range(rng.randint(1, 3)) for role in ("user", "assistant")]
        lines.append("{broken" if number % 41 == 40 else json.dumps({"messages": turns}))
    paths.append(folder / "generated.jsonl")
    paths[-1].write_text("\n".join(lines) + "\n")
    return [str(path) for path in paths]


def write_mixture(folder: Path, rows: int = 60) -> list[str]:
    """Sources of every kind, and a recipe with everything that makes one source row several examples, or none.

    A validation split, long rows that are split, sources that come twice, duplicates that are dropped, filters. Returns
    the words of the command line that stand for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(11)

    def chat(least: int, most: int) -> list[dict[str, Any]]:
        return [_turn(rng, role) for _ in range(rng.randint(least, most)) for role in ("user", "assistant")]

    chats, long = [chat(1, 3) for _ in range(rows)], [chat(8, 20) for _ in range(9)]
    plain = [[{key: turn[key] for key in ("role", "content")} for turn in chat] for chat in chats]
    lines = "".join(json.dumps({"messages": chat}) + "\n" for chat in [*chats, *long, *chats[::7]])
    (folder / "chats.jsonl").write_text(lines + "{broken\n")
    more = "".join(json.dumps({"messages": chat(1, 2)}) + "\n" for _ in range(rows // 3)) + lines[: len(lines) // 9]
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(more.encode(), mtime=0))
    pq.write_table(pa.table({"messages": plain[: rows // 2]}), folder / "table.parquet", row_group_size=10)
    feather.write_feather(pa.table({"messages": long[:2] + plain[rows // 2 :]}), str(folder / "table.arrow"))
    pairs = [[chat[0]["content"], chat[1]["content"]] for chat in chats]
    with (folder / "cells.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "completion"], *pairs])
    (folder / "array.json").write_text(json.dumps([{"prompt": p, "completion": c[::-1]} for p, c in pairs]))
    recipe = {
        "sources": [
            *({"path": str(folder / name)} for name in ("chats.jsonl", "packed.jsonl.gz", "table.arrow", "array.json")),
            *({"path": str(folder / name), "repeat": 3} for name in ("table.parquet", "cells.csv")),
        ],
        "overflow": "split",
        "duplicates": "drop",
        "validation": 0.2,
        "filters": {"min_tokens": 45},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    return ["--recipe", str(folder / "recipe.yaml")]


def _turn(rng: random.Random, role: str) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": role, "content": " ".join(rng.choices(_WORDS, k=rng.randint(1, 30)))}
    return turn | ({"weight": 0.5} if role == "assistant" and rng.random() < 0.1 else {})


def arguments(sources: list[str], out: Path, *more: str) -> list[str]:
    """The command line that prepares them."""
    options = ["--tokenizer", str(TOKENIZER), "--out", str(out), "--max-length", "300", "--quiet"]
    return ["prepare", *sources, *options, *more]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by relative path; of run.json only that it is there."""
    files = (path for path in sorted(folder.rglob("*")) if not path.is_dir())
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        name: "" if name == UNREPEATABLE else hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in named.items()
    }


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """The files that are not in both, or differ."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
