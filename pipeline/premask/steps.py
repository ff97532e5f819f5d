"""The steps of a preparation that work items carry out: files in, files and a small result out.

Each is a pure function of its arguments and the files they name; who calls it, where, how often and in which order
changes nothing. A step returns `{"written": [[path, size, sha256], ...], "result": {...}}`.
"""

import gc
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from premask.clock import spent, timed
from premask.clock import stage as clocked
from premask.dtypes import Examples, Int64Array
from premask.errors import DataError
from premask.mask.limits import Limits
from premask.mask.masker import Masker
from premask.mask.overflow import fit
from premask.maskers import masker_for
from premask.pack.scripts import text_of, written_otherwise
from premask.read import (
    PLAIN,
    Conversation,
    Format,
    Partition,
    Raw,
    Rejected,
    Rows,
    Shape,
    Source,
    columns_of,
    cut_into_lines,
    digest_file,
    place_of,
    read_conversations,
    read_partition,
    size_of,
)
from premask.recipe import Recipe
from premask.store.atomic import Written, atomic_write
from premask.store.gather import OpenStages, Room
from premask.store.layout import shard_path
from premask.store.plan_file import PLAN, read_plan
from premask.store.shards import write_shard
from premask.store.stage import write_stage

Step = dict[str, Any]

ROOM = Room()
"""Of this process, for its shards one after the other; whoever performs these closes it at their end."""


def digest_source(path: str) -> Step:
    """SHA-256 and size of a source."""
    place = place_of(path)
    return {"written": [], "result": {"sha256": digest_file(place), "size": size_of(place)}}


def cut_source(source: dict[str, Any], folder: str, piece_bytes: int, identity: str) -> Step:
    """Cut a source that cannot be sliced into pieces of JSON lines: files that can be read in parallel."""
    written: list[Written] = []

    def write_piece(number: int, lines: bytes) -> None:
        piece = Path(folder) / f"piece-{number:05d}.jsonl"
        with atomic_write(piece, durable=False) as file:
            file.write(lines)
        written.append(file.written(piece))

    cut_into_lines(Source(**{**source, "path": place_of(source["path"])}), write_piece, piece_bytes)
    return {"written": _entries(written), "result": {"pieces": [[str(w.path), w.size] for w in written]}}


def mask_partition(
    partition: dict[str, Any],
    format: Format,
    shape: dict[str, Any],
    limit: int | None,
    rows: Sequence[int] | None,
    recipe: dict[str, Any],
    hashed: bool,
    tokenizer: str,
    templating: dict[str, Any],
    stage: str,
    rejects: str,
    identity: str,
    encoder: str,
) -> Step:
    """Phase 1: the rows of one partition to a stage file of examples and a file of rejected rows.

    Of all rows (`rows` is None) or of the chosen ones alone, which are then counted from 0. `recipe` is what holds for
    the rows of this source (`Recipe.masking`), `hashed` says whether their conversations are told apart by hashes,
    `encoder` names who gives the ids (`encode.backends`). Raises `BackendDiffers` where that one is found not to give
    the reference's.
    """
    part = Partition(**{**partition, "path": place_of(partition["path"])})
    with spent() as seconds, _collecting_seldom():
        masking = _Masking(
            masker=masker_for(orjson.dumps(recipe).decode(), tokenizer, orjson.dumps(templating).decode()),
            recipe=Recipe(**recipe),
            format=format,
            shape=PLAIN if Shape(**shape) == PLAIN else Shape(**shape),  # itself: `convert` asks for every row
            hashed=hashed,
        )
        own = masking.masker.encoder
        with clocked("set-up"):
            own.use(encoder)
        audited = own.audited
        found = _wanted(read_partition(part, columns_of(masking.shape), masking.counts), limit, rows)
        with clocked("write"):
            written = [write_stage(Path(stage), masking.batches(part, found), hashed=hashed)]
        written.append(_write_rejects(Path(rejects), masking.rejected))
    reasons = Counter(why.reason for why in masking.rejected.values())
    counted = {"counts": dict(masking.counts), "rejected": dict(reasons), "audited": own.audited - audited}
    return {"written": _entries(written), "result": {**counted, "seconds": seconds}}


def _write_rejects(path: Path, rejected: Mapping[int, Rejected]) -> Written:
    """The rejected rows of a partition, by number."""
    with atomic_write(path, durable=False) as file:
        for row, why in sorted(rejected.items()):
            file.write(orjson.dumps({"row": row, "reason": why.reason, "detail": why.detail}) + b"\n")
    return file.written(path)


@contextmanager
def _collecting_seldom() -> Iterator[None]:
    """Let Python look for garbage in cycles, of which conversations make none, less often: a seventh of the time."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def build_shard(
    out: str,
    stages: Sequence[str],
    split: str,
    number: int,
    count: int,
    source_turns: bool,
    weights: bool,
    identity: str,
) -> Step:
    """Phase 3: the packs of one shard, gathered from the stage files."""
    with spent() as seconds, clocked("shards"):
        rows = read_plan(Path(out) / PLAN).shard(split, number)
        path = shard_path(Path(out), split, number, count)
        entry = write_shard(path, OpenStages(stages, ROOM), rows, source_turns=source_turns, weights=weights, room=ROOM)
    return {
        "written": [[str(path), entry.bytes, entry.sha256]],
        "result": {**asdict(entry), "seconds": seconds},
    }


def _entries(written: Sequence[Written]) -> list[list[Any]]:
    return [[str(w.path), w.size, w.sha256] for w in written]


def _digests(conversations: Sequence[Conversation], rows: Int64Array) -> NDArray[np.uint8]:
    """`[n, 16]` the hashes of the conversations `rows` `[n]`, each worked out once: a row may have many examples."""
    once = {row: conversations[row].digest() for row in dict.fromkeys(rows.tolist())}
    return np.frombuffer(b"".join(once[row] for row in rows.tolist()), np.uint8).reshape(-1, 16)


def _wanted(every: Iterable[Rows], limit: int | None, chosen: Sequence[int] | None) -> Iterator[Rows]:
    """The first `limit` rows of a partition, and of these the chosen ones alone, which are then counted from 0."""
    wanted, count = None if chosen is None else set(chosen), 0
    for rows in every:
        raws = rows.raws if limit is None else rows.raws[: limit - rows.number]
        if wanted is not None:
            raws = [raw for number, raw in enumerate(raws, rows.number) if number in wanted]
        if raws:
            yield Rows(count, rows.offset, raws)
            count += len(raws)
        if limit is not None and rows.number + len(rows.raws) >= limit:
            return


@dataclass(frozen=True, slots=True)
class _Masking:
    """The rows of one partition to examples, batch by batch."""

    masker: Masker
    recipe: Recipe
    format: Format
    shape: Shape
    hashed: bool
    rejected: dict[int, Rejected] = field(default_factory=dict)
    """Why rows are rejected, by their number in the partition."""
    counts: Counter[str] = field(default_factory=Counter)

    def batches(self, part: Partition, every: Iterator[Rows]) -> Iterator[Examples]:
        """The examples of all rows, batch by batch. DataError with the place of the batch that cannot be masked."""
        for rows in timed("read", every):
            try:
                yield self.examples(rows.number, rows.raws)
            except DataError as error:
                raise DataError(f"{part.where(rows)}, or one of {len(rows.raws)} rows from there on: {error}") from None

    def examples(self, first: int, raws: Sequence[Raw]) -> Examples:
        """One batch of rows, the first of which has the number `first`; notes every row that is rejected, and why."""
        with clocked("parse"):
            conversations, rows = self._read(first, raws)
        text = isinstance(raws[0], bytes)  # of a source all rows are, or none
        sizes = np.fromiter(map(len, raws), np.float64, len(raws)) if text else np.full(len(raws), math.inf)
        with clocked("mask"):
            fitted = fit(self.masker.mask, conversations, sizes[rows - first], self._limits())
        for place, failure in fitted.failures.items():
            self.rejected[int(rows[place])] = Rejected(failure.reason, failure.detail)
        self.counts.update(fitted.counts)
        self.counts["rows"] += len(raws)
        self.counts["examples"] += len(fitted.examples)
        digests = fitted.examples.digests
        if self.hashed:
            with clocked("hash"):
                digests = _digests(conversations, fitted.examples.rows)
        return replace(fitted.examples, rows=rows[fitted.examples.rows], digests=digests)

    def _read(self, first: int, raws: Sequence[Raw]) -> tuple[Sequence[Conversation], Int64Array]:
        """The conversations of a batch that are to be masked, and their numbers."""
        numbers, conversations, rejected = read_conversations(self.format, raws, self.shape)
        self.rejected.update({first + number: why for number, why in rejected.items()})
        rows = first + np.array(numbers, np.int64)
        if not self.recipe.filters.scripts:
            return conversations, rows
        strangers = written_otherwise([text_of(c) for c in conversations], self.recipe.filters.scripts)
        self.rejected.update(
            {row: Rejected("filtered_script", why) for row, why in zip(rows.tolist(), strangers, strict=True) if why}
        )
        kept = [place for place, why in enumerate(strangers) if not why]
        return [conversations[place] for place in kept], rows[kept]

    def _limits(self) -> Limits:
        known = self.masker.encoder.bytes_per_token if self.recipe.mask != "generation" else None
        return Limits(
            max_length=self.recipe.max_length,
            overflow=self.recipe.overflow,
            trim_tail=self.recipe.trim_tail,
            train_on=self.recipe.train_on,
            turns=self.recipe.turns,
            reach=known and self.recipe.max_length * known,
        )
