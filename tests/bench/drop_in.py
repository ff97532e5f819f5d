"""How fast rows that are tokenized already are masked, beside the loop that people use today.

    python tests/bench/drop_in.py [TOKENS]

1. The search alone, on the same rows: ours on their flat ids, Unsloth's loop on their lists. The loop is the real one
   where `make test-trainers` has installed it, or else a restatement of its rule, token by token.
2. A whole dataset, as `train_on_responses_only` masks it, beside what `datasets` takes to read the same rows and write
   them with a column of labels that are copies of the ids.

What must hold stands at the end; the tables also go to `build/bench/drop_in.md`.

The rows are real conversations where `../shared/data` is there, or else our samples, repeated. Ratios count; the
figures of one machine do not.
"""

import contextlib
import importlib
import io
import itertools
import json
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, disable_caching, disable_progress_bars
from transformers import AutoTokenizer

from premask.feed.drop_in import train_on_responses_only
from premask.feed.named_templates import get_chat_template
from premask.feed.rows import Masking
from premask.feed.splits import masked_dataset
from premask.mask.responses import mask_responses

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build/bench"
REAL = ROOT / "../shared/data/chat/oasst_en.messages.jsonl"
OURS = ROOT / "data/samples/support.messages.jsonl"
CHATML = ("<|im_start|>user\n", "<|im_start|>assistant\n")
ALPACA = ("### Instruction:\n", "### Response:\n")
BATCH = 1000


def rows_of(tokenizer: Any, tokens: int) -> list[list[int]]:
    """Tokenized conversations of about `tokens` tokens."""
    texts = []
    for line in (REAL if REAL.exists() else OURS).read_text().splitlines():
        with contextlib.suppress(ValueError):  # the samples hold a broken row
            messages = json.loads(line)["messages"]
            if all(isinstance(m.get("content"), str) for m in messages):
                texts.append(tokenizer.apply_chat_template(messages, tokenize=False))
    rows = tokenizer(texts, add_special_tokens=False).input_ids
    return rows * max(1, tokens // sum(map(len, rows)))  # at least once


def real_loop() -> Any:
    """Unsloth's function, if it is installed."""
    folder = ROOT / "build/unsloth-zoo/unsloth_zoo"
    if not folder.exists():
        return None
    package = types.ModuleType("unsloth_zoo")
    package.__path__ = [str(folder)]
    sys.modules["unsloth_zoo"] = package
    return importlib.import_module("unsloth_zoo.dataset_utils").train_on_responses_only


def restated(tokenizer: Any, parts: tuple[str, str]) -> Callable[[dict[str, Any]], Any]:
    """The loop of Unsloth's function, restated from its rule."""
    user, answer = (tokenizer(part, add_special_tokens=False).input_ids for part in parts)
    borders = {answer[0], tokenizer.eos_token_id}

    def mask(batch: dict[str, Any]) -> dict[str, Any]:
        return {"labels": [one(row) for row in batch["input_ids"]]}

    def one(row: list[int]) -> list[int]:
        labels, n, j = [-100] * len(row), len(row), 0
        while j < n:
            if row[j] == answer[0] and row[j : j + len(answer)] == answer:
                j = start = j + len(answer)
                while j < n:
                    token = row[j]
                    if token in borders and (token != answer[0] or row[j : j + len(answer)] == answer):
                        break
                    if j == n - 1 or (token == user[0] and row[j : j + len(user)] == user):
                        break
                    j += 1
                labels[start : j + 1] = row[start : j + 1]
            j += 1
        return labels

    return mask


def best(function: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


@dataclass(frozen=True)
class Row:
    """One line of the first table."""

    name: str
    fast: float
    """Million tokens a second."""
    loop: float
    ratio: float


def search(template: str, parts: tuple[str, str]) -> list[Row]:
    """The first table: a batch as `datasets` hands it over."""
    tokenizer = get_chat_template(AutoTokenizer.from_pretrained(str(ROOT / "data/tokenizer")), template)
    rows = rows_of(tokenizer, 0)[:BATCH]
    loop = restated(tokenizer, parts)
    if real := real_loop():
        loop = real(None, *parts, tokenizer=tokenizer, return_function=True)
    # Slice by slice, so that a busy machine slows the long loop no more than our short calls.
    slow = sum(best(lambda n=n: loop({"input_ids": rows[n : n + 10]}), 15) for n in range(0, len(rows), 10))
    ids, offsets = np.array([*itertools.chain(*rows)], np.int32), np.cumsum([0, *map(len, rows)])
    found = []
    for mask in ("sampled", "unsloth"):
        masking: Masking = train_on_responses_only(
            None, *parts, tokenizer=tokenizer, return_function=True, mask=mask
        ).args[0]
        fast = best(lambda m=masking.markers: mask_responses(ids, offsets, m), 100)
        name = f"{template}, {mask}" + ("" if real else " (loop restated)")
        found.append(Row(name, len(ids) / fast / 1e6, len(ids) / slow / 1e6, slow / fast))
    return found


def whole(tokens: int) -> tuple[dict[str, float], float]:
    """The second table, in rows a second; and seconds to find the markers."""
    tokenizer = get_chat_template(AutoTokenizer.from_pretrained(str(ROOT / "data/tokenizer")), "chatml")
    rows = rows_of(tokenizer, tokens)
    dataset = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    masking = train_on_responses_only(None, tokenizer=tokenizer, return_function=True).args[0]
    options = {"batched": True, "batch_size": BATCH}

    def copied(table: Any) -> Any:
        return table.append_column("labels", pa.concat_arrays(table.column("input_ids").chunks))

    def listed(batch: Any) -> Any:
        return {"labels": batch["input_ids"]}

    ways = {
        "masked": lambda: masked_dataset(dataset, "rows", masking, None, "error"),
        LISTS: lambda: dataset.map(listed, **options),
        ARROW: lambda: dataset.with_format("arrow").map(copied, **options),
        "Unsloth's loop (restated)": lambda: dataset.map(restated(tokenizer, CHATML), **options),
    }
    speeds = {name: dataset.num_rows / best(way, 5) for name, way in ways.items()}
    return speeds, best(lambda: train_on_responses_only(None, tokenizer=tokenizer, return_function=True), 3)


LISTS, ARROW = "read and written, as lists", "read and written, as Arrow"


def report(searched: list[Row], speeds: dict[str, float], finding: float) -> str:
    """The tables, and what must hold, in Markdown."""
    lines = ["| million tokens/s | premask | loop | ratio |", "|---|---|---|---|"]
    lines += [f"| {row.name} | {row.fast:.0f} | {row.loop:.1f} | {row.ratio:.0f} |" for row in searched]
    lines += ["", "| | rows/s |", "|---|---|", *(f"| {name} | {speed:,.0f} |" for name, speed in speeds.items())]
    lines += ["", f"Finding the markers once: {finding:.2f} s.", ""]
    bars = [(f"{row.name}: times the loop", row.ratio, 20.0) for row in searched]
    bars.append(("masked rows to those read and written, as lists", speeds["masked"] / speeds[LISTS], 1.0))
    lines += ["| | found | must be | |", "|---|---|---|---|"]
    for label, value, bar in bars:
        lines.append(f"| {label} | {value:.2f} | >= {bar:g} | {'held' if value >= bar else 'MISSED'} |")
    passed = f"masked rows to those passed on as Arrow, their values untouched | {speeds['masked'] / speeds[ARROW]:.2f}"
    return "\n".join([*lines, f"| {passed} | | |"])


def main() -> None:
    """Print the tables."""
    disable_caching()
    disable_progress_bars()
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
    with contextlib.redirect_stderr(io.StringIO()):
        table = report([*search("chatml", CHATML), *search("alpaca", ALPACA)], *whole(tokens))
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "drop_in.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
