"""The streaming loader: steps of packs from the memory-mapped shards, as torch tensors, for any training loop.

    loader = premask.open("prepared").loader(batch_size=16)
    for step in loader:
        for batch in step.batches:
            ...  # the sum of the batch's losses, divided by step.denominator; backward
        ...  # all-reduce where there are several ranks; optimizer

A step is what one update of the weights sees: `batch_size` packs over all ranks. Which packs those are follows from
the seed alone; how many ranks there are decides only who takes which of them, so a run may go on with more or fewer.
Lengths and trained tokens of every pack come from the plan, so that the number of steps and every step's denominator
are known before anything is read, and no rank has to ask another.

Cost: little more than copying the packs' ids and positions out of the memory map (tests/bench/loading.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from premask.dtypes import Int64Array
from premask.errors import UsageError
from premask.feed.batch import Batch, make_batch
from premask.feed.order import Schedule, deal, make_schedule
from premask.feed.prefetch import prefetched
from premask.store.layout import fingerprint
from premask.store.plan_file import PLAN, read_plan
from premask.store.reader import Prepared

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one rank does for one update of the weights, and what all ranks together do."""

    number: int
    """Counted from 0, over all epochs."""

    epoch: int

    batches: tuple[Batch, ...]
    """This rank's forward passes; there may be none, where a step has fewer packs than there are ranks."""

    denominator: float
    """What the summed loss of all ranks is divided by: the trained tokens, or the sum of their weights."""

    tokens: int
    """Tokens of all ranks."""

    trained: int
    """Trained tokens of all ranks."""

    def to(self, device: "str | torch.device") -> "Step":
        """The same step on a device."""
        return replace(self, batches=tuple(batch.to(device) for batch in self.batches))

    def pin_memory(self) -> "Step":
        """The same step in page-locked memory."""
        return replace(self, batches=tuple(batch.pin_memory() for batch in self.batches))


class Loader:
    """Iterates over steps, from where it stands to the end of the last epoch; knows its place (`state_dict`)."""

    def __init__(
        self,
        prepared: Prepared,
        split: str = "train",
        *,
        batch_size: int,
        micro_batch_size: int = 1,
        epochs: int = 1,
        shuffle: bool | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: "str | torch.device" = "cpu",
        prefetch: int | None = None,
    ) -> None:
        """Plan the steps of `split`; nothing but the plan is read.

        `batch_size` packs make a step, over all ranks; `micro_batch_size` packs go end to end into one forward pass.
        `shuffle` None does as the recipe's `order` says (packs of a curriculum stay in their stage). `prefetch` steps
        are read ahead by a thread, by default 2 where the device is a GPU, whose copies then overlap with computing.
        UsageError for impossible numbers.
        """
        least = {"batch_size": batch_size, "micro_batch_size": micro_batch_size, "epochs": epochs}
        for name, value in least.items():
            if value < 1:
                raise UsageError(f"{name}: expected at least 1, found {value}")
        if not 0 <= rank < world_size:
            raise UsageError(f"rank: expected 0 to {world_size - 1} (world_size - 1), found {rank}")
        self.split = prepared[split]
        self.batch_size, self.micro_batch_size, self.epochs, self.seed = batch_size, micro_batch_size, epochs, seed
        self.rank, self.world_size, self.device = rank, world_size, device
        self.prefetch = (0 if str(device) == "cpu" else 2) if prefetch is None else prefetch
        self.stages: list[int] = prepared.manifest["packing"][split]["stages"]
        self.shuffle = prepared.manifest["recipe"]["order"] != "as_is" if shuffle is None else shuffle
        self.fingerprint: str = fingerprint(self.split.shards)
        self._costs = _pack_costs(prepared, split)
        self.weighted = "loss_weights" in prepared.manifest["columns"]
        self._weights = np.full(len(self._costs), np.nan)  # of packs read so far
        self.position = 0
        """The number of the next step."""
        self._schedule: tuple[int, Schedule] | None = None
        self.steps_per_epoch = len(self.schedule(0))

    def __len__(self) -> int:
        """Steps of all epochs."""
        return self.steps_per_epoch * self.epochs

    def __iter__(self) -> Iterator[Step]:
        """The steps from `position` on; `position` is behind a step as soon as it is handed out."""
        steps = map(self.step, range(self.position, len(self)))
        for step in prefetched(steps, self.prefetch, self.device):
            self.position = step.number + 1
            yield step

    def schedule(self, epoch: int) -> Schedule:
        """Which packs the steps of an epoch train, over all ranks."""
        if self._schedule is None or self._schedule[0] != epoch:
            seed = [self.seed, epoch] if self.shuffle else None
            planned = make_schedule(self._costs, batch_size=self.batch_size, seed=seed, stages=self.stages)
            self._schedule = epoch, planned
        return self._schedule[1]

    def packs(self, number: int) -> Int64Array:
        """The packs of step `number`, over all ranks."""
        epoch, place = divmod(number, self.steps_per_epoch)
        return self.schedule(epoch).step(place)

    def step(self, number: int) -> Step:
        """Step `number` as this rank sees it, in host memory."""
        epoch, place = divmod(number, self.steps_per_epoch)
        schedule = self.schedule(epoch)
        packs = schedule.step(place)
        trained, _, tokens = schedule.totals[place].tolist()
        mine = self._share(packs)
        size = self.micro_batch_size
        batches = tuple([self._batch(mine[start : start + size]) for start in range(0, len(mine), size)])
        return Step(
            number=number,
            epoch=epoch,
            batches=batches,
            denominator=self._weight(packs) if self.weighted else float(trained),
            tokens=tokens,
            trained=trained,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands and what that number means; JSON types."""
        names = ("position", "batch_size", "seed", "shuffle", "fingerprint")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a loader stood, perhaps one with other ranks or forward passes. UsageError where steps differ."""
        for name, found in self.state_dict().items():
            if name != "position" and state[name] != found:
                raise UsageError(
                    f"{self.split.path}: expected to go on with {name} {state[name]}, found {found}: the steps would "
                    "not be the same ones"
                )
        self.position = state["position"]

    def _batch(self, packs: Int64Array) -> Batch:
        return make_batch(self.split, packs.tolist(), sum(self._costs[packs, 0].tolist()))

    def _share(self, packs: Int64Array) -> Int64Array:
        """The packs of a step that are this rank's."""
        return packs if self.world_size == 1 else packs[deal(self._costs[packs], self.world_size) == self.rank]

    def _weight(self, packs: Int64Array) -> float:
        """The sum of the weights of a step's trained tokens. A rank reads those of the others too, once: that costs
        less than to ask.
        """
        for number in packs[np.isnan(self._weights[packs])].tolist():
            weights = self.split[number].loss_weights
            self._weights[number] = 0.0 if weights is None else weights.sum(dtype=np.float64)
        return float(self._weights[packs].sum())


def _pack_costs(prepared: Prepared, split: str) -> Int64Array:
    """Costs of every pack `[P, 3]`: trained tokens, squared lengths of its examples summed, tokens."""
    costs = np.zeros((len(prepared[split]), 3), np.int64)
    for rows in read_plan(prepared.path / PLAN).rows(split):
        if len(rows):
            first, last = int(rows.pack[0]), int(rows.pack[-1]) + 1
            starts = np.searchsorted(rows.pack, np.arange(first, last))
            length = rows.length.astype(np.int64)
            of_examples = np.stack([rows.supervised.astype(np.int64), length**2, length], axis=1)
            costs[first:last] = np.add.reduceat(of_examples, starts)
    return costs
