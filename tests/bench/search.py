"""How fast turns are found by their markers: ours, on ids and on bytes, beside the loop that people use today.

    python tests/bench/search.py [TOKENS]

The text is the repository's samples repeated (or real conversations, where `../shared/data` is there), rendered as
ChatML (markers begin with control tokens, found among the ids) and as Alpaca (headers are plain text, found among the
bytes), in batches of the size that premask makes. Measured is what `Masker` does with a batch behind its encoding: the
control tokens found among all ids, where markers begin with such, then the search, which sets aside what lies in
messages; not laying out the texts. What it finds must be the turns that provenance knows. The loop is a restatement of
the rule of Unsloth's `train_on_responses_only`: from every response marker to the next instruction marker, token by
token. Ratios count; the figures of one machine do not.
"""

import datetime
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from premask.encode.encoder import Encoder
from premask.mask.columns import Columns
from premask.mask.controls import ControlIds, classify
from premask.mask.masker import Masker
from premask.mask.search import Bytes, Haystack, Intervals, haystack, search
from premask.read import Conversation
from premask.recipe import Recipe
from premask.render.forms import adapt
from premask.render.named import named_template

ROOT = Path(__file__).parents[2]
REAL = ROOT / "../shared/data/chat/oasst_en.messages.jsonl"
OURS = ROOT / "data/samples/support.messages.jsonl"
BATCH_ROWS = 2048
BATCH_TOKENS = 1_000_000
"""About what the largest batches hold."""


def conversations() -> list[Conversation]:
    """Conversations of plain text, as many as a batch holds."""
    found: list[Conversation] = []
    for line in (REAL if REAL.exists() else OURS).read_text().splitlines():
        try:
            messages = json.loads(line)["messages"]
        except ValueError:
            continue  # the samples hold a broken row
        if all(isinstance(m.get("content"), str) and m["role"] != "tool" for m in messages):
            found.append(Conversation(messages=messages))
    return found[:BATCH_ROWS]


@dataclass(frozen=True)
class Batch:
    """A batch as the masker has it before it proves the turns, its texts laid out."""

    raw: Bytes
    bases: np.ndarray
    ids: np.ndarray
    starts: np.ndarray
    """`[T]` where every token begins."""
    inside: Intervals
    """Where the messages' own texts lie."""
    turns: tuple[np.ndarray, np.ndarray]
    """Starts and ends of the turns, by provenance."""

    @property
    def copy(self) -> "Batch":
        """The same in memory of its own."""
        return Batch(self.raw.copy(), self.bases, self.ids.copy(), self.starts.copy(), self.inside, self.turns)


def make_masker(template: str) -> Masker:
    """The masker of a named template and our tokenizer."""
    encoder = Encoder((ROOT / "data/tokenizer/tokenizer.json").read_bytes())
    source = named_template(template)
    stops = frozenset(("<|im_end|>", "<|endoftext|>"))
    vocabulary, recipe = classify(encoder.added, source, stops), Recipe(sources=["-"], tokenizer="-")
    return Masker(source, {"eos_token": "<|endoftext|>"}, datetime.date(2025, 1, 1), encoder, vocabulary, recipe)


def make_batch(masker: Masker, tokens: int) -> Batch:
    """The conversations as a batch, again and again until there are about so many tokens."""
    rendered = masker.program.render([adapt(c, masker.grammar.forms) for c in conversations()])
    encoded, columns = masker.encoder.encode(rendered.texts), Columns(rendered)
    times = max(1, round(tokens / len(encoded.ids)))
    size = int(encoded.bases[-1])
    inside, (turns, ends) = columns.texts(), columns.turns()

    def again(places: np.ndarray) -> np.ndarray:
        return (places + size * np.arange(times, dtype=places.dtype)[:, None]).ravel()

    laid = haystack(rendered.texts * times, encoded.ids[:0], encoded.starts[:0])
    if laid.bases[-1] != size * times:
        raise AssertionError("the texts do not lie where their tokens do")
    own = Intervals(again(inside.starts), again(inside.ends))
    ids, starts = np.tile(encoded.ids, times), again(encoded.starts)
    return Batch(laid.raw, laid.bases, ids, starts, own, (again(turns.starts), again(ends)))


class Finder:
    """How the masker of a template finds turns in a batch."""

    def __init__(self, masker: Masker) -> None:
        self.markers = masker.grammar.markers
        groups = (self.markers.headers, self.markers.closings, self.markers.openings)
        self.by_ids = any(marker.token is not None for group in groups for marker in group)
        self._controls = ControlIds(masker.vocabulary.ids(masker.encoder.vocabulary_size))
        self._none = np.zeros(0, np.int64)

    def find(self, batch: Batch) -> np.ndarray:
        """Where the control tokens are that markers may begin with."""
        return self._controls.find(batch.ids) if self.by_ids else self._none

    def turns(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, Any]:
        """Starts and ends of the turns; and how many markers were set aside."""
        found = self.find(batch)
        places = batch.starts[found].astype(np.int64, copy=False)
        return search(Haystack(batch.raw, batch.ids[found], places, batch.bases), self.markers, batch.inside)


def unsloth_loop(ids: list[int], response: list[int], instruction: list[int]) -> list[int]:
    """Labels by the rule of the loop that is in use: everything between a response and an instruction marker."""
    labels, i, n = [-100] * len(ids), 0, len(ids)
    while i < n:
        if ids[i] == response[0] and ids[i : i + len(response)] == response:
            j = i + len(response)
            start = j
            while j < n and not (ids[j] == instruction[0] and ids[j : j + len(instruction)] == instruction):
                j += 1
            labels[start:j] = ids[start:j]
            i = j
        i += 1
    return labels


def best(function: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Print a table: tokens a second, and the ratio to the loop."""
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 8_000_000
    print(f"{'markers':<36}{'cores':>6}{'million tokens/s':>18}{'x loop':>9}")
    for template, kind in (("chatml", "control tokens, among ids"), ("alpaca", "plain text, among bytes")):
        masker = make_masker(template)
        finder, batch = Finder(masker), make_batch(masker, min(tokens, BATCH_TOKENS))
        starts, ends, _ = finder.turns(batch)
        if not (np.array_equal(starts, batch.turns[0]) and np.array_equal(ends, batch.turns[1])):
            raise SystemExit(f"{template}: the search found other turns than provenance")
        some = batch.ids[:400_000].tolist()
        header = masker.encoder.encode([masker.grammar.headers[0]]).ids.tolist()
        user = masker.encoder.encode([masker.grammar.openings["user"][0]]).ids.tolist()
        loop = len(some) / best(lambda s=some, h=header, u=user: unsloth_loop(s, h, u), 3)
        batches = [batch.copy for _ in range(max(2, tokens // len(batch.ids)))]
        count = sum(len(each.ids) for each in batches)
        one = count / best(lambda f=finder, b=batches: list(map(f.turns, b)))
        ids = count / best(lambda f=finder, b=batches: list(map(f.find, b)))
        with ThreadPoolExecutor(2) as pool:
            two = count / best(lambda f=finder, b=batches, p=pool: list(p.map(f.turns, b)))
        for cores, speed in ((1, one), (2, two)):
            print(f"{kind:<36}{cores:>6}{speed / 1e6:>18.0f}{speed / loop:>9.0f}")
        if finder.by_ids:
            print(f"{'  of that, finding control tokens':<36}{1:>6}{ids / 1e6:>18.0f}{ids / loop:>9.0f}")
        print(f"{'  the loop, token by token':<36}{1:>6}{loop / 1e6:>18.1f}{1:>9}")


if __name__ == "__main__":
    main()
