"""Selection: which examples are used, in which split, how often, and in which stages they are packed.

    filters -> duplicates -> validation -> mix (weights, repeats) -> order (stages)

Everything is decided by columns of the pool and by 16-byte hashes of the conversations; nothing by ids. What is drawn
is drawn by those hashes, so that more data changes little: a conversation stays on its side of the validation split for
ever, and the seed decides which examples of a source come first when its weight does not let all in.

Memory beside the pool: 3 bytes an example for the selection, 4 for its stages, 16 more while shares are drawn; while
duplicates are looked for 27, of which the hashes are 16.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from premask.dtypes import BoolArray, Int32Array, Int64Array
from premask.errors import DataError
from premask.pack.best_fit import gather
from premask.pack.plan import PlanStage, shuffle
from premask.pack.pool import Pool

Digests = Callable[[], Iterable[NDArray[np.uint8]]]
"""Yields the 16-byte hashes of the pool's examples, `[n, 16]` uint8 at a time, in order."""

GROUP = (256, 4096)
"""Examples that are packed together when they come again: a sixteenth of them, within these bounds."""

TRAIN, VALIDATION = 0, 1
LOST = ("filtered_turns", "filtered_tokens", "filtered_expression", "duplicate", "not_drawn")
"""Why a source row is not used; the fate of its examples is 2 and its place here."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What becomes of the N examples of a pool."""

    fate: NDArray[np.uint8]
    """`[N]` TRAIN, VALIDATION, or 2 and the place in `LOST` of the reason why it is not used."""

    times: NDArray[np.uint16]
    """`[N]` how often the example is used in training (in every stage that it belongs to); 0 if it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """How much of every source is used, by its number."""

    repeats: Sequence[int]
    """Times that every example may be used."""

    weights: Sequence[float] | None
    """Shares of the sources among the examples used, relative to each other; None for all that there is."""

    names: Sequence[str]
    """For messages."""


def select(
    pool: Pool,
    digests: Digests,
    filtered: NDArray[np.uint8],
    *,
    duplicates: bool,
    validation: float,
    mix: Mix,
    seed: int,
) -> Selection:
    """Decide what becomes of every example of `pool`.

    `filtered` `[N]` is 0 where the filters let an example pass, otherwise its fate. With `duplicates` conversations are
    used once. DataError where a source that has a weight has no examples left.
    """
    fate = filtered.copy()
    if duplicates:
        again = duplicated(pool, np.concatenate([np.zeros((0, 16), np.uint8), *digests()]), fate == TRAIN)
        fate[again & (fate == TRAIN)] = _fate("duplicate")
    if validation:
        aside = np.concatenate([np.zeros(0, bool), *(in_validation(part, validation) for part in digests())])
        fate[aside & (fate == TRAIN)] = VALIDATION
    times = draw(pool, digests, fate == TRAIN, mix, seed)
    fate[(fate == TRAIN) & (times == 0)] = _fate("not_drawn")
    return Selection(fate, times)


def _fate(reason: str) -> int:
    return 2 + LOST.index(reason)


def filter_rows(
    pool: Pool,
    *,
    turns: tuple[int | None, int | None] = (None, None),
    tokens: tuple[int | None, int | None] = (None, None),
    expression: Callable[[Mapping[str, NDArray[np.generic]]], BoolArray] | None = None,
) -> NDArray[np.uint8]:
    """`[N]` uint8: 0 for the examples of rows that pass, otherwise the first filter that keeps them out, as a fate.

    `turns` and `tokens` are the least and the most of a row, None for no bound; `expression` tells from the columns
    `length`, `supervised`, `turns` and `source` `[R]` of the R rows which of them pass.
    """
    fate = np.zeros(len(pool), np.uint8)
    if (turns, tokens, expression) == ((None, None), (None, None), None):
        return fate
    starts = np.flatnonzero(pool.begins_row())
    for reason, (least, most), values in (
        ("filtered_turns", turns, pool.turns),
        ("filtered_tokens", tokens, pool.length),
    ):
        if (least, most) != (None, None):
            sums = per_row(values, starts)
            passing = (sums >= (least or 0)) & (sums <= (np.inf if most is None else most))
            fate[~_of_examples(passing, starts, len(pool)) & (fate == 0)] = _fate(reason)
    if expression:
        columns = {name: per_row(getattr(pool, name), starts) for name in ("length", "supervised", "turns")}
        passing = expression({**columns, "source": pool.source()[starts]})
        fate[~_of_examples(passing, starts, len(pool)) & (fate == 0)] = _fate("filtered_expression")
    return fate


def per_row(values: Int32Array, starts: Int64Array) -> Int32Array | Int64Array:
    """`[R]` sums of `values` `[N]` over the rows that begin at the examples `starts` `[R]`."""
    if len(starts) == len(values):
        return values
    return np.add.reduceat(values, starts, dtype=np.int64)


def _of_examples(values: BoolArray, starts: Int64Array, count: int) -> BoolArray:
    """`[N]` the value of each example's row."""
    return values if len(starts) == count else np.repeat(values, np.diff(starts, append=count))


def duplicated(pool: Pool, digests: NDArray[np.uint8], among: BoolArray) -> BoolArray:
    """`[N]` whether an example's conversation was there before, in another source row; of those that `among` selects.

    Sorts a sixteenth of the hashes at a time: 9 bytes an example beside them.
    """
    halves = np.ascontiguousarray(digests).view("<u8")
    bucket = np.where(among, digests[:, 7] >> 4, np.uint8(16))
    again = np.zeros(len(pool), bool)
    rows = np.cumsum(pool.begins_row(), dtype=np.int32)
    for number in range(16):
        which = np.flatnonzero(bucket == number)
        high, low = halves[which, 0], halves[which, 1]
        order = np.lexsort((low, high))  # stable: of equal hashes the first example comes first
        same = (np.diff(high[order]) == 0) & (np.diff(low[order]) == 0)
        first = np.flatnonzero(np.concatenate([[True], ~same])) if len(which) else np.zeros(0, np.int64)
        leader = np.repeat(which[order][first], np.diff(first, append=len(which)))
        again[which[order]] = rows[which[order]] != rows[leader]
    return again


def in_validation(digests: NDArray[np.uint8], share: float) -> BoolArray:
    """`[n]` whether conversations belong to the validation split: the last 8 bytes of the hash, below that share."""
    return np.ascontiguousarray(digests).view("<u8")[:, 1] < np.uint64(min(int(share * 2**64), 2**64 - 1))


def draw(pool: Pool, digests: Digests, among: BoolArray, mix: Mix, seed: int) -> NDArray[np.uint16]:
    """`[N]` how often each of the examples that `among` selects is used; 0 for the others."""
    times = np.zeros(len(pool), np.uint16)
    available = [0] * len(mix.repeats)
    for source, part in pool.parts():
        times[part] = among[part] * np.uint16(mix.repeats[source])
        available[source] += int(np.count_nonzero(among[part]))
    if mix.weights is None:
        return times
    lots = np.concatenate([np.zeros(0, np.uint32), *(drawn(part, seed) for part in digests())])
    for source, (count, there) in enumerate(zip(shares(available, mix), available, strict=True)):
        parts = [np.arange(part.start, part.stop, dtype=np.int32) for own, part in pool.parts() if own == source]
        which = np.concatenate([each[among[each]] for each in parts])
        times[which] = count // there
        times[which[_smallest(gather(lots, which), count % there)]] += np.uint16(1)
    return times


def shares(available: Sequence[int], mix: Mix) -> list[int]:
    """How many examples of every source are used, repeats counted, given how many there are.

    Without weights all, as often as they are repeated. With weights as many as in the largest mix of these shares that
    uses no example more often than its source repeats: exact arithmetic, then rounded.
    """
    offers = [there * repeat for there, repeat in zip(available, mix.repeats, strict=True)]
    if mix.weights is None:
        return offers
    for name, offer in zip(mix.names, offers, strict=True):
        if not offer:
            raise DataError(
                f"{name}: expected examples for its weight, found none that can be used for training; "
                "leave the source out, or look into rejected.jsonl for what became of its rows"
            )
    weights = [Fraction(weight) for weight in mix.weights]
    unit = min(Fraction(offer) / weight for offer, weight in zip(offers, weights, strict=True))
    return [min(offer, round(weight * unit)) for offer, weight in zip(offers, weights, strict=True)]


def drawn(digests: NDArray[np.uint8], seed: int) -> NDArray[np.uint32]:
    """`[n]` uint32 a lot for every conversation: the first 8 bytes of its hash, mixed with the seed (splitmix64)."""
    lots = np.ascontiguousarray(digests).view("<u8")[:, 0] ^ np.random.PCG64(seed).random_raw(1)
    lots = (lots ^ (lots >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    lots = (lots ^ (lots >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (lots >> np.uint64(32)).astype(np.uint32)


def _smallest(values: NDArray[np.uint32], count: int) -> Int64Array:
    """Places of the `count` smallest of `values`; of equal ones the first."""
    if not count:
        return np.zeros(0, np.int64)
    bound = np.partition(values, count - 1)[count - 1]
    below = np.flatnonzero(values < bound)
    return np.concatenate([below, np.flatnonzero(values == bound)[: count - len(below)]])


def stages(
    pool: Pool,
    times: NDArray[np.uint16],
    *,
    seed: int | None,
    by: Int32Array | None = None,
    up_to: Sequence[int] = (),
    again: bool = False,
) -> list[PlanStage]:
    """The stages of the plan: each example as often as `times` `[N]` says.

    Without `by` `[N]` there is one stage; with it stage k holds what is at most `up_to[k]`, the last one what is beyond
    them all, and with `again` every stage also what the stages before it held. With a seed copies come in rounds, each
    packed by itself; without, a source comes as a whole before it comes again.
    """
    if by is None:
        return [PlanStage()] if (times == 1).all() else [_stage(pool, times, times > 0, seed)]
    bounds = [*up_to, np.iinfo(np.int32).max]
    below = [0] * len(bounds) if again else [0, *up_to]
    return [
        _stage(pool, times, (times > 0) & (by > least) & (by <= most), seed)
        for least, most in zip(below, bounds, strict=True)
    ]


def _stage(pool: Pool, times: NDArray[np.uint16], which: BoolArray, seed: int | None) -> PlanStage:
    """The examples that `which` selects, in rounds: those used at all, those used a second time, and so on.

    A pack that held a copy would teach nothing new, and best fit puts the same lengths together every time. So rounds
    are packed apart, the later ones in groups that are drawn anew: an example meets new neighbours.
    """
    runs = [slice(0, len(pool))]
    if seed is None:
        edges = np.flatnonzero(np.diff(pool.sources)) + 1
        runs = [slice(*ends) for ends in pairwise([0, *pool.starts[edges].tolist(), len(pool)])]
    rounds, parts = [np.zeros(0, np.int32)], [0]
    for run in runs:
        counts = np.where(which[run], times[run], np.uint16(0))
        for number in range(int(counts.max(initial=0))):
            round_ = np.flatnonzero(counts > number).astype(np.int32) + np.int32(run.start)
            groups = 1
            if number and seed is not None:
                round_ = round_[shuffle(len(round_), [seed, 0, number])]
                groups = max(1, len(round_) // min(max(len(round_) // 16, GROUP[0]), GROUP[1]))
            rounds.append(round_)
            parts += [parts[-1] + len(round_) * (n + 1) // groups for n in range(groups)]
    return PlanStage(np.concatenate(rounds), parts if (times[which] > 1).any() else None)
