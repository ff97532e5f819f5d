"""Phase 2: from the stage files of all partitions to the plans of all splits, here in the driver.

    columns of the examples (`Pool`)  ->  which are used, how often (`Selection`)  ->  packs and shards (`Plan`)

Examples are numbered stage file by stage file, so that nothing but the order of the partitions counts. Only columns are
read: no ids, and the hashes of the conversations only where duplicates, a validation split or weights ask for them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from premask.pack.account import Entry, Lost, account, lost_rows
from premask.pack.best_fit import PACKERS
from premask.pack.expression import condition
from premask.pack.plan import Plan, PlanStage, make_plan
from premask.pack.pool import Pool
from premask.pack.scripts import check_script
from premask.pack.selection import VALIDATION, Digests, Mix, Selection, filter_rows, select, stages
from premask.recipe import Recipe
from premask.store.stage import Stage, StageFiles


@dataclass(frozen=True, slots=True)
class Planned:
    """The plans of all splits, and what became of every source row that masking kept."""

    plans: dict[str, Plan]
    pool: Pool
    selection: Selection
    account: list[dict[str, Entry]]
    """By entry of the recipe's sources, what became of its examples."""

    def lost(self, partition: int) -> Iterator[Lost]:
        """The source rows of a partition that selection left out, in order."""
        return lost_rows(self.pool, self.selection, partition)


def pool_of(files: Sequence[Stage] | StageFiles, first_rows: Sequence[int], entries: Sequence[int]) -> Pool:
    """The examples of all stage files; the first source row and the entry of the recipe's sources of each are given.

    Each column is made once, at its full size: parts that are joined would leave their room behind in the heap.
    """
    starts = np.cumsum([0, *map(len, files)], dtype=np.int64)
    row, length, supervised, turns = (np.empty(starts[-1], np.int32) for _ in range(4))
    source_turn = np.broadcast_to(np.int32(-1), int(starts[-1]))
    for file, start, end in zip(files, starts[:-1], starts[1:], strict=True):  # one at a time is open
        part = slice(int(start), int(end))
        row[part], length[part], supervised[part], turns[part] = file.rows, file.lengths, file.supervised, file.turns
        if (file.source_turns != -1).any():
            if not source_turn.flags.writeable:
                source_turn = source_turn.copy()
            source_turn[part] = file.source_turns
    return Pool(
        starts=starts,
        first_rows=np.array(first_rows, np.int64),
        sources=np.array(entries, np.int32),
        row=row,
        length=length,
        supervised=supervised,
        turns=turns,
        source_turn=source_turn,
    )


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
    uses = np.zeros(len(pool), np.int32)
    one = np.int32(1)  # a 1 of another type takes 25 times as long; bincount takes 16 bytes an example
    np.add.at(uses, plans["train"].order, one)
    return Planned(plans, pool, chosen, account(pool, chosen, uses, len(recipe.sources)))


def check_filters(recipe: Recipe) -> None:
    """UsageError where the filters name a script that there is none of, or state no condition."""
    for script in recipe.filters.scripts or {}:
        check_script(script)
    if recipe.filters.expression:
        condition(recipe.filters.expression, mix_of(recipe).names)


def mix_of(recipe: Recipe) -> Mix:
    """How much the recipe takes of every source."""
    sources = [recipe.source(n) for n in range(len(recipe.sources))]
    weights = [source.weight for source in sources if source.weight is not None]
    repeats = [source.repeat or 1 for source in sources]
    return Mix(repeats=repeats, weights=weights or None, names=[source.path for source in sources])


def _filtered(recipe: Recipe, pool: Pool) -> NDArray[np.uint8]:
    filters = recipe.filters
    return filter_rows(
        pool,
        turns=(filters.min_turns, filters.max_turns),
        tokens=(filters.min_tokens, filters.max_tokens),
        expression=condition(filters.expression, mix_of(recipe).names) if filters.expression else None,
    )


def _train_stages(recipe: Recipe, pool: Pool, chosen: Selection) -> list[PlanStage]:
    seed = None if recipe.order == "as_is" else recipe.seed
    plan = recipe.curriculum
    if plan is None:
        return stages(pool, chosen.times, seed=seed)
    by = pool.length if plan.by == "length" else pool.turns
    return stages(pool, chosen.times, seed=seed, by=by, up_to=plan.up_to, again=plan.schedule == "everything")


def why_lost(recipe: Recipe, lost: Lost) -> str:
    """Why selection left a source row out: what was expected, and what was found. Short: there may be millions."""
    filters = recipe.filters
    if lost.reason == "filtered_turns":
        return f"filters: expected {_bounds(filters.min_turns, filters.max_turns)} turns, found {lost.turns}"
    if lost.reason == "filtered_tokens":
        return f"filters: expected {_bounds(filters.min_tokens, filters.max_tokens)} tokens, found {lost.tokens}"
    return _WHY[lost.reason]


_WHY = {
    "filtered_expression": "filters: expected a row for which the expression holds, found one for which it does not",
    "duplicate": "duplicates=drop: expected a new conversation, found one that was there before",
    "not_drawn": "weights: the mix has room for fewer examples of this source, and the seed did not draw this one",
}


def _bounds(least: int | None, most: int | None) -> str:
    if least is None or most is None:
        return f"at least {least}" if most is None else f"at most {most}"
    return f"{least} to {most}"
