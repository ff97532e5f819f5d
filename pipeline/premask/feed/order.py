"""In which order packs are trained: shuffled, cut into steps of near-equal work, and shared among ranks.

In: the costs of every pack, such as its trained tokens and its attention (squared lengths of its examples, summed).
Out: numbers of packs. Everything follows from the seed and the epoch by arithmetic on a few numbers a pack, so that
any step of any epoch is known without reading a pack, whatever the number of ranks: resuming is exact and immediate.

Balance: packs sorted by trained tokens are dealt out in rounds, one to every step; within a round the costliest goes to
the step that has the least so far (longest processing time first, Graham 1969). Dealt out so, the trained tokens of two
bins differ by at most those of the largest pack, and every bin holds as many packs as any other, give or take one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from premask.dtypes import Int64Array
from premask.pack.plan import shuffle

NOISE = 0.1
"""Share by which costs are blurred, at most, before packs are dealt out: else the same packs met in every epoch."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The P packs of one epoch in K steps: step k trains `packs[offsets[k]:offsets[k + 1]]`."""

    packs: Int64Array
    """`[P]` every pack once."""

    offsets: Int64Array
    """`[K + 1]` first place of every step."""

    totals: Int64Array
    """`[K, C]` the costs of every step."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def step(self, number: int) -> Int64Array:
        """The packs of one step."""
        return self.packs[self.offsets[number] : self.offsets[number + 1]]


def make_schedule(costs: Int64Array, *, batch_size: int, seed: Sequence[int] | None, stages: Sequence[int]) -> Schedule:
    """Cut P packs with the costs `[P, C]` (trained tokens first) into steps of at most `batch_size` packs.

    No pack is dropped or repeated: a stage of n packs becomes ceil(n / batch_size) steps of equal size, give or take
    one pack. `seed` None keeps the order of the packs, in neighbouring steps. `stages` `[S + 1]` are the first packs of
    the stages that come one after the other; packs are shuffled within theirs.
    """
    packs, sizes = [], []
    for number, (start, end) in enumerate(pairwise(stages)):
        count = -(-(end - start) // batch_size)
        if seed is None or count == 0:
            packs.append(np.arange(start, end, dtype=np.int64))
            step_of = np.arange(end - start) * count // max(end - start, 1)
        else:
            packs.append(start + shuffle(end - start, [*seed, number, 0]).astype(np.int64))
            noise = 1 + NOISE * np.arange(end - start) / (end - start)  # chance, as the packs come by chance
            step_of = shuffle(count, [*seed, number, 1])[deal(costs[packs[-1]] * noise[:, None], count)]
        packs[-1] = packs[-1][np.argsort(step_of, kind="stable")]
        sizes.append(np.bincount(step_of, minlength=count))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(sizes), dtype=np.int64)])
    order = np.concatenate(packs)
    return Schedule(order, offsets, np.add.reduceat(costs[order], offsets[:-1]) if len(order) else costs)


def deal(costs: NDArray[Any], bins: int) -> Int64Array:
    """A bin for each of N items with C costs each `[N, C]`: near-equal sums of all, and numbers of items that differ
    by at most one. `[N]`, values below `bins`. Of equal items the first comes first.
    """
    found = np.zeros(len(costs), np.int64)
    total = (costs / np.maximum(costs.mean(axis=0), 1)).sum(axis=1)  # each cost as a multiple of its mean
    order = np.argsort(-costs[:, 0], kind="stable")
    loads = np.zeros(bins)
    for start in range(0, len(order), bins):
        row = order[start : start + bins]
        row = row[np.argsort(-total[row], kind="stable")]
        least = np.argsort(loads, kind="stable")[: len(row)]
        found[row] = least
        loads[least] += total[row]
    return found
