"""The books of a dataset, each checked against the others: manifest, plan, rejected rows. Pure; no shard is read.

    rows      every source row kept or rejected, none both, each reason as often as the manifest says
    examples  none twice but those that the recipe repeats; none of one source row in two splits
    totals    of shards, splits and sources: what went in is what came out and what was left out

Checksums find damage; this finds datasets that were written wrong. About 100 ns an example.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from premask.dtypes import Int32Array, Int64Array
from premask.pack.plan import PlanRows
from premask.store.manifest import MANIFEST, split_entry
from premask.store.plan_file import PLAN, StoredPlan
from premask.store.shards import ShardEntry

Fault = tuple[str, str]
"""The file at fault, relative to the dataset's folder, and what is wrong with it."""


def find_contradictions(manifest: Mapping[str, Any], shards: Mapping[str, Sequence[ShardEntry]]) -> Iterator[Fault]:
    """Where the numbers in the manifest contradict each other."""
    for split, entries in shards.items():
        if manifest["splits"][split] != split_entry(entries):
            yield MANIFEST, f"{split}: expected the totals of its shards, found others"
        packing = manifest["packing"][split]
        packs = manifest["splits"][split]["packs"]
        bounds = packing["stages"]
        if not packing["packs_at_least"] <= packing["packs"] == packs:
            yield MANIFEST, f"{split}: expected a packing of {packs:,} packs, found one of {packing['packs']:,}"
        if bounds[0] or bounds[-1] != packs or any(start > end for start, end in pairwise(bounds)):
            yield MANIFEST, f"{split}: expected stages from the first of {packs:,} packs to the last, found others"
    rows = manifest["rows"]
    if rows["in"] != rows["kept"] + sum(rows["rejected"].values()):
        yield MANIFEST, "expected rows in = kept + rejected, found other numbers"
    if rows["in"] != sum(account["rows"] for account in manifest["accounts"]):
        yield MANIFEST, "expected rows in = the rows of all sources, found other numbers"
    for number, account in enumerate(manifest["accounts"]):
        for equation, left, right in _equations(account):
            if left != right:
                yield MANIFEST, f"accounts, source {number}: expected {equation}, found {left:,} and {right:,}"


def _equations(account: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """What must be equal in the account of a source, in words and in numbers (`record._accounts`)."""
    rejected = sum(account["rejected"].values())
    yield "rows = rejected + used + left out", account["rows"], rejected + _sum(account, "rows")
    tokens = account["tokens_trimmed"] + account["tokens_dropped"] + _sum(account, "tokens")
    yield "tokens in = used + left out", account["tokens_in"] + account["tokens_repeated"], tokens
    yield "turns in = used + left out", account["turns_in"], account["turns_dropped"] + _sum(account, "turns")


def _sum(account: Mapping[str, Any], measure: str) -> int:
    return sum(entry[measure] for fate, entry in account["fates"].items() if fate != "repeated")


def find_lost_rows(
    manifest: Mapping[str, Any], plan: StoredPlan, rejected: Mapping[int, tuple[str, str]]
) -> Iterator[Fault]:
    """Where the plan and the rejected rows contradict each other or the manifest.

    `rejected` has reason and detail of every rejected source row, by its global number.
    """
    rows = manifest["rows"]
    held = [_joined(list(plan.rows(split))) for split in plan.shards]
    kept = [np.unique(part.source_row) for part in held]
    together = np.concatenate(kept)
    if len(np.unique(together)) < len(together):
        yield PLAN, "expected no source row in two splits, found one"
    every = np.sort(np.concatenate([np.unique(together), np.fromiter(rejected, np.int64, len(rejected))]))
    if not np.array_equal(every, np.arange(rows["in"])):
        yield PLAN, f"expected each of {rows['in']:,} source rows kept or rejected once, found otherwise"
    reasons = Counter(reason for reason, _ in rejected.values())
    if +reasons != +Counter(rows["rejected"]):
        yield MANIFEST, "expected the rejected rows by reason, as rejected.jsonl has them, found other numbers"
    for split, part in zip(plan.shards, held, strict=True):
        yield from _find_repeats(split, part, manifest)
        yield from _find_uncounted(split, part, manifest)


def _joined(parts: Sequence[PlanRows]) -> PlanRows:
    names = PlanRows.__dataclass_fields__
    return PlanRows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _find_repeats(split: str, rows: PlanRows, manifest: Mapping[str, Any]) -> Iterator[Fault]:
    """Examples that come more often than the recipe says, or two of them under one name."""
    allowed = sum(account["fates"].get("repeated", {}).get("examples", 0) for account in manifest["accounts"])
    allowed = allowed if split == "train" else 0
    places = _places(rows)
    again = len(rows) - len(np.unique(places))
    if again and not allowed:
        yield PLAN, f"{split}: expected every example once, found one twice"
    elif again != allowed:
        yield PLAN, f"{split}: expected {allowed:,} examples to come again, found {again:,}"
    named = np.unique((rows.source_row << 32) + rows.source_turn + 1)
    if len(named) != len(np.unique(places)):
        yield PLAN, f"{split}: expected source row and turn to tell examples apart, found two of the same"


def _find_uncounted(split: str, rows: PlanRows, manifest: Mapping[str, Any]) -> Iterator[Fault]:
    """What the accounts say of the examples of a split, source by source."""
    sources = [manifest["sources"][part["source"]]["entry"] for part in manifest["partitions"]]
    _, first = np.unique(_places(rows), return_index=True)
    entries = np.array(sources, np.int64)[rows.partition[first]]
    columns: dict[str, Int32Array] = {
        "examples": np.ones(len(first), np.int32),
        "tokens": rows.length[first],
        "supervised_tokens": rows.supervised[first],
    }
    for number, account in enumerate(manifest["accounts"]):
        for measure, values in columns.items():
            said = account["fates"].get(split, {}).get(measure, 0)
            found = int(values[entries == number].sum(dtype=np.int64))
            if said != found:
                yield PLAN, f"{split}, source {number}: expected {said:,} {measure.replace('_', ' ')}, found {found:,}"


def _places(rows: PlanRows) -> Int64Array:
    """`[N]` one number for every example: its partition, and its place there."""
    places: Int64Array = (rows.partition.astype(np.int64) << 32) | rows.index
    return places
