"""Gathering: the examples that a shard's plan names, out of many stage files into flat arrays.

One Python step for each example, a copy of its ids, and one for each span or row of positions that is made of them:
about 0.3 µs beside the copying. The kernel counts every page around what is touched, so many maps held at once would
look like, and weigh as, memory: a room holds few of them, and `StageFiles` one at a time.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from premask.dtypes import IGNORE_INDEX, Float32Array, Int32Array, Int64Array, offsets_of, ranges
from premask.store.stage import Part, Stage, read_stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """E examples with T tokens and S spans in the order of the plan, flat."""

    ids: Int32Array
    """`[T]` token ids."""

    lengths: Int32Array
    """`[E]` tokens of every example."""

    spans: Int32Array
    """`[S, 2]` start and end of every trained span, relative to its example."""

    span_counts: Int32Array
    """`[E]` spans of every example."""

    span_weights: Float32Array
    """`[S]` loss weight of every span."""


class Stages(Protocol):
    """Stages by the number of their partition: a mapping, a list, or `StageFiles`."""

    def __getitem__(self, number: int, /) -> Stage: ...


HELD_BYTES = 2**28
"""Stage files that stay open from shard to shard have no more bytes than this, all of them together."""


class Room:
    """What stays from shard to shard, since to get it anew takes longer than what is done with it.

    Memory, and stage files that are open, those that came first: every shard asks for all of them, one after the other,
    so that the last ones used would be gone whenever they are asked for again. `close` gives all of it back.
    """

    def __init__(self) -> None:
        self._arrays: defaultdict[str, Int32Array] = defaultdict(lambda: np.zeros(0, np.int32))
        self._stages: dict[str, tuple[tuple[int, ...], Stage]] = {}

    def array(self, name: str, size: int) -> Int32Array:
        """`[size]` int32, of any content; the same memory whenever `name` is the same."""
        if len(self._arrays[name]) < size:
            self._arrays[name] = np.empty(size + size // 8, np.int32)
        return self._arrays[name][:size]

    def stage(self, path: str) -> Stage:
        """The stage file at `path`, as it is now. DataError as `read_stage`."""
        try:
            found = Path(path).stat()
        except OSError:
            return read_stage(Path(path))  # which says what is wrong
        known = (found.st_ino, found.st_size, found.st_mtime_ns)
        held, stage = self._stages.get(path, (None, None))
        if stage is None or held != known:
            self._stages.pop(path, None)
            stage = read_stage(Path(path))
            if sum(size for (_, size, _), _ in self._stages.values()) + known[1] <= HELD_BYTES:
                self._stages[path] = known, stage
        return stage

    def close(self) -> None:
        """Give everything back."""
        self._arrays.clear()
        self._stages.clear()


@dataclass(frozen=True, slots=True)
class OpenStages:
    """Stage files by number, opened in a room."""

    paths: Sequence[str]
    room: Room

    def __getitem__(self, number: int) -> Stage:
        return self.room.stage(self.paths[number])


def gather(
    stages: Stages, partition: Int32Array, index: Int32Array, lengths: Int32Array, room: Room | None = None
) -> Gathered:
    """Copy the examples `index[e]` of the stages `partition[e]`, which have `lengths[e]` tokens (all `[E]`), in order.

    Of a record batch in which any has another length no ids are copied; whoever compares the lengths will see. The ids
    lie in `room`. DataError where a stage has no such example.
    """
    offsets = offsets_of(lengths.astype(np.int64))
    ids = (room or Room()).array("ids", int(offsets[-1]))
    found = lengths.copy()
    counts, spans, weights = [np.zeros(0, np.int64)], [np.zeros((0, 2), np.int32)], [np.zeros(0, np.float32)]
    gathered = [np.zeros(0, np.intp)]
    for places, part, wanted in _parts(stages, partition, index):
        found[places] = own_lengths = part.lengths(wanted)
        if np.array_equal(own_lengths, lengths[places]):
            part.copy_ids(wanted, own_lengths, ids, offsets[places])
        own = part.spans_of(wanted)
        counts.append(own[0])
        spans.append(own[1])
        weights.append(own[2])
        gathered.append(places)
    order = np.argsort(np.concatenate(gathered))
    sizes = np.concatenate(counts)
    which = ranges(offsets_of(sizes)[:-1][order], sizes[order])
    return Gathered(
        ids=ids,
        lengths=found,
        spans=np.concatenate(spans)[which],
        span_counts=sizes[order].astype(np.int32),
        span_weights=np.concatenate(weights)[which],
    )


def lengths_of(stages: Stages, partition: Int32Array, index: Int32Array) -> Int32Array:
    """`[E]` the tokens of the examples `index[e]` of the stages `partition[e]`. DataError as `gather`."""
    lengths = np.zeros(len(index), np.int32)
    for places, part, wanted in _parts(stages, partition, index):
        lengths[places] = part.lengths(wanted)
    return lengths


def positions(lengths: Int32Array, room: Room | None = None) -> Int32Array:
    """`[T]` place of every token in its example, from the lengths `[E]`: [2, 3] gives [0, 1, 0, 1, 2]. In `room`."""
    offsets = offsets_of(lengths.astype(np.int64)).tolist()
    result = (room or Room()).array("positions", offsets[-1])
    count, target = np.arange(lengths.max(initial=0), dtype=np.int32).data, result.data
    for first, last in pairwise(offsets):
        target[first:last] = count[: last - first]
    return result


def labels(examples: Gathered, room: Room | None = None) -> Int32Array:
    """`[T]` the id where a token is trained, IGNORE_INDEX elsewhere. In `room`."""
    result = (room or Room()).array("labels", len(examples.ids))
    result.fill(IGNORE_INDEX)
    source, target = examples.ids.data, result.data
    starts, ends = _bounds(examples).T.tolist()
    for start, end in zip(starts, ends, strict=True):
        target[start:end] = source[start:end]
    return result


def loss_weights(examples: Gathered) -> Float32Array:
    """`[T]` the weight of its span where a token is trained, 0 elsewhere."""
    values = np.zeros(2 * len(examples.spans) + 1, np.float32)
    values[1::2] = examples.span_weights
    return np.repeat(values, np.diff(_bounds(examples).reshape(-1), prepend=0, append=len(examples.ids)))


def _bounds(examples: Gathered) -> Int64Array:
    """`[S, 2]` start and end of every span, counted over all tokens."""
    starts = offsets_of(examples.lengths.astype(np.int64))[:-1]
    bounds: Int64Array = examples.spans + np.repeat(starts, examples.span_counts)[:, None]
    return bounds


def _parts(
    stages: Stages, partition: Int32Array, index: Int32Array
) -> Iterator[tuple[NDArray[np.intp], Part, Int32Array]]:
    """The record batches that the examples `index[e]` of the stages `partition[e]` lie in.

    Of each the examples in it, as places in `index`, and their places in the batch.
    """
    for number, places in _groups(partition):
        for part, held, own in stages[number].parts(index[places]):
            yield places[held], part, own


def _groups(keys: NDArray[Any]) -> list[tuple[int, NDArray[np.intp]]]:
    """Every key that occurs in `keys` `[E]`, with its places."""
    order = np.argsort(keys, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
    return [(int(keys[group[0]]), group) for group in groups if len(group)]
