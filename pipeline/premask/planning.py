"""Phase 2: from the stage files of all partitions to the plans of all splits, here in the driver.

    columns of the examples (`Pool`)  ->  which are used, how often (`Selection`)  ->  packs and shards (`Plan`)

Examples are numbered stage file by stage file, so that nothing but the order of the partitions counts. Only columns are
read: no ids, and the hashes of the conversations only where duplicates, a validation split or weights ask for them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from premask.dtypes import Int32Array
from premask.pack.account import Entry, account, lost_rows
from premask.pack.best_fit import PACKERS
from premask.pack.expression import condition
from premask.pack.plan import Plan, PlanStage, make_plan
from premask.pack.pool import Pool
from premask.pack.selection import LOST, VALIDATION, Digests, Mix, Selection, filter_rows, select, stages
from premask.recipe import Recipe
from premask.store.stage import Stage


@dataclass(frozen=True, slots=True)
class Planned:
    """The plans of all splits, and what became of every source row that masking kept."""

    plans: dict[str, Plan]
    pool: Pool
    selection: Selection
    account: list[dict[str, Entry]]
    """By entry of the recipe's sources, what became of its examples."""

    def lost(self, partition: int) -> Iterator[tuple[int, str]]:
        """The source rows of a partition that selection left out, counted within it, in order, each with the reason."""
        return lost_rows(self.pool, self.selection, partition)


def pool_of(files: Sequence[Stage], first_rows: Sequence[int], entries: Sequence[int]) -> Pool:
    """The examples of all stage files; the first source row and the entry of the recipe's sources of each are given."""
    starts = np.cumsum([0, *map(len, files)], dtype=np.int64)
    turns = any(bool((file.source_turns != -1).any()) for file in files)
    return Pool(
        starts=starts,
        first_rows=np.array(first_rows, np.int64),
        sources=np.array(entries, np.int32),
        row=_joined([file.rows.astype(np.int32) for file in files]),
        length=_joined([file.lengths for file in files]),
        supervised=_joined([file.supervised for file in files]),
        turns=_joined([file.turns for file in files]),
        source_turn=_joined([file.source_turns for file in files])
        if turns
        else np.broadcast_to(np.int32(-1), int(starts[-1])),
    )


def _joined(parts: Sequence[Int32Array]) -> Int32Array:
    return np.concatenate([np.zeros(0, np.int32), *parts])


def plan_splits(recipe: Recipe, pool: Pool, digests: Digests, shard_tokens: int) -> Planned:
    """Select, split, mix, order and pack the examples of `pool` as the recipe says."""
    mix = mix_of(recipe)
    chosen = select(
        pool,
        digests,
        _filtered(recipe, pool),
        duplicates=recipe.duplicates == "drop",
        validation=recipe.validation,
        mix=mix,
        seed=recipe.seed,
    )
    splits = {"train": _train_stages(recipe, pool, chosen)}
    if recipe.validation:
        splits["validation"] = [PlanStage(np.flatnonzero(chosen.fate == VALIDATION).astype(np.int32))]
    plans = {
        split: make_plan(
            pool,
            capacity=recipe.max_length,
            seed=None if recipe.order == "as_is" else recipe.seed,
            shard_tokens=shard_tokens,
            packer=PACKERS[recipe.pack],
            stages=of,
        )
        for split, of in splits.items()
    }
    uses = np.bincount(plans["train"].order, minlength=len(pool))
    return Planned(plans, pool, chosen, account(pool, chosen, uses, len(recipe.sources)))


def mix_of(recipe: Recipe) -> Mix:
    """How much the recipe takes of every source."""
    sources = [recipe.source(n) for n in range(len(recipe.sources))]
    weights = [source.weight for source in sources if source.weight is not None]
    repeats = [source.repeat or 1 for source in sources]
    return Mix(repeats=repeats, weights=weights or None, names=[source.path for source in sources])


def _filtered(recipe: Recipe, pool: Pool) -> NDArray[np.uint8]:
    filters = recipe.filters
    names = [recipe.source(n).path for n in range(len(recipe.sources))]
    return filter_rows(
        pool,
        turns=(filters.min_turns, filters.max_turns),
        tokens=(filters.min_tokens, filters.max_tokens),
        expression=condition(filters.expression, names) if filters.expression else None,
    )


def _train_stages(recipe: Recipe, pool: Pool, chosen: Selection) -> list[PlanStage]:
    seed = None if recipe.order == "as_is" else recipe.seed
    plan = recipe.curriculum
    if plan is None:
        return stages(pool, chosen.times, seed=seed)
    by = pool.length if plan.by == "length" else pool.turns
    return stages(pool, chosen.times, seed=seed, by=by, up_to=plan.up_to, again=plan.schedule == "everything")


def rejected_of(planned: Planned) -> Counter[str]:
    """How many source rows selection left out, by reason."""
    rejected: Counter[str] = Counter()
    for by_fate in planned.account:
        rejected.update({reason: by_fate[reason]["rows"] for reason in LOST if reason in by_fate})
    return +rejected
