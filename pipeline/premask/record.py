"""What a run leaves on record: what the bytes depend on, what came out (the manifest), how it was made, the summary.

The description and the manifest are deterministic: equal inputs, equal bytes. Whatever may differ between two runs that
give the same dataset (hosts, times, absolute paths) is said in run.json alone.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from premask.encode.backends import REFERENCE, installed
from premask.encode.files import TokenizerFiles
from premask.intake import Input, Sliced
from premask.mask.masker import MASK_RULES
from premask.maskers import templating_of
from premask.phases import Run
from premask.planning import Planned
from premask.read import digest_file, located
from premask.recipe import Recipe
from premask.store.layout import layout_names
from premask.store.manifest import split_entry
from premask.store.shards import ShardEntry

RUN = "run.json"

DESCRIBED = ("recipe", "sources", "template", "tokenizer", "sizes", "mask_rules", "libraries")
"""The keys of a description."""

ACCOUNTED = (
    *("rows", "examples", "tokens_in", "tokens_repeated", "tokens_trimmed", "tokens_dropped"),
    *("turns_in", "turns_dropped"),
)
"""What is counted for every source."""

SHAPING = ("jinja2", "msgspec", "numpy", "orjson", "polars", "premask", "pyarrow", "tokenizers")
"""Libraries that may shape bytes."""


def describe(
    recipe: Recipe,
    inputs: Sequence[Input],
    digests: Sequence[Mapping[str, Any]],
    files: TokenizerFiles,
    sizes: Mapping[str, int],
) -> dict[str, Any]:
    """All that the bytes of a dataset depend on; equal descriptions, equal datasets.

    `sizes` are those of partitions and shards.
    """
    return {
        "recipe": recipe.resolved(),
        "sources": [
            {"name": each.source.name, "entry": each.source.argument, **digest}
            for each, digest in zip(inputs, digests, strict=True)
        ],
        **templating_of(recipe, files),
        "sizes": dict(sizes),
        **shaping(),
    }


def code_digest() -> str:
    """SHA-256 of premask's own source files.

    An unfinished run goes on only with the very code that began it: a version number does not change with every edit.
    """
    root = Path(__file__).parent
    digests = {path.relative_to(root).as_posix(): digest_file(path) for path in root.rglob("*.py")}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def shaping() -> dict[str, Any]:
    """The versions of all code that may shape bytes."""
    return {
        "mask_rules": MASK_RULES,
        "libraries": {name: importlib.metadata.version(name) for name in SHAPING},
    }


def manifest_of(
    run: Run,
    description: Mapping[str, Any],
    slices: Sequence[Sliced],
    offsets: Sequence[int],
    results: Sequence[Mapping[str, Any]],
    rejected: Counter[str],
    planned: Planned,
    shards: Mapping[str, Sequence[ShardEntry]],
    columns: Sequence[str],
) -> dict[str, Any]:
    """The manifest of a dataset whose other files are all written."""
    counts: Counter[str] = sum((Counter(result["counts"]) for result in results), Counter())
    rows = offsets[-1]
    return {
        **description,
        "rows": {"in": rows, "kept": rows - rejected.total(), "rejected": dict(rejected)},
        "counts": {name: count for name, count in sorted(counts.items()) if name not in ("rows", "examples")},
        "partitions": [
            {
                "source": s.partition.source,
                "start": s.partition.start,
                "end": s.partition.end,
                "first_row": first,
                "format": s.format,
            }
            for s, first in zip(slices, offsets, strict=False)
        ],
        "accounts": _accounts(run, slices, results, planned),
        "packing": {
            split: {
                "packs": plan.packs,
                "packs_at_least": plan.packs_at_least,
                "stages": plan.stage_offsets.tolist(),
            }
            for split, plan in planned.plans.items()
        },
        "columns": list(columns),
        "splits": {split: split_entry(entries) for split, entries in shards.items()},
        "files": {
            name: digest_file(run.out / name) for name in ("plan.arrow", "rejected.jsonl", *layout_names(shards))
        },
    }


def _accounts(
    run: Run, slices: Sequence[Sliced], results: Sequence[Mapping[str, Any]], planned: Planned
) -> list[dict[str, Any]]:
    """What became of the rows, tokens and turns of every entry of the recipe's sources.

        rows                        = rejected + rows of every fate
        tokens_in + tokens_repeated = tokens_trimmed + tokens_dropped + tokens of every fate
        turns_in                    = turns_dropped + turns of every fate

    `repeated`, what an example adds when it comes again, is no fate.
    """
    counts = [Counter[str]() for _ in planned.account]
    rejected = [Counter[str]() for _ in planned.account]
    for part, result in zip(slices, results, strict=True):
        counts[run.entry(part)].update(result["counts"])
        rejected[run.entry(part)].update(result["rejected"])
    return [
        {
            "path": run.recipe.source(entry).path,
            **{name: counts[entry][name] for name in ACCOUNTED},
            "rejected": dict(sorted(rejected[entry].items())),
            "fates": fates,
        }
        for entry, fates in enumerate(planned.account)
    ]


def how_made(run: Run, description: Mapping[str, Any], began: float, seconds: float) -> dict[str, Any]:
    """How it was made: what may differ between two runs that give the same dataset.

    And a copy of the description: should the manifest be lost, it can be made again from this.
    """
    template = description["recipe"]["template"]
    return {
        "began": began,
        "seconds": round(seconds, 3),
        "description": dict(description),
        "template": str(Path(template).expanduser().resolve()) if template else None,
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "workers": run.crew.size,
        "sources": [located(each.source.path) for each in run.inputs],
        "tokenizer": str(run.files.folder.resolve()),
        "encoder": {
            "backend": run.made.backend,
            "version": installed(run.made.backend),
            "reference": installed(REFERENCE),
            "reason": run.made.differed or run.encoder.reason,
            "rows_audited": run.made.audited,
        },
        "phases": {phase: round(spent, 4) for phase, spent in run.made.phases.items()},
        "stages": {stage: round(spent, 4) for stage, spent in run.made.stages.most_common()},
    }


def summary_of(manifest: Mapping[str, Any], folder: Path, seconds: float) -> dict[str, Any]:
    """What the caller of `prepare` gets to know."""
    rows = manifest["rows"]
    keys = {"examples": "examples", "packs": "packs", "tokens": "tokens", "supervised": "supervised_tokens"}
    accounts = manifest["accounts"]
    return {
        "rows": rows["in"],
        "kept": rows["kept"],
        "rejected": rows["rejected"],
        "tokens": _totals(accounts, "tokens"),
        "turns": _totals(accounts, "turns"),
        "mix": _mix(manifest["recipe"]["sources"], accounts),
        "splits": {
            split: {
                **{name: entry[key] for name, key in keys.items()},
                "packs_at_least": manifest["packing"][split]["packs_at_least"],
            }
            for split, entry in manifest["splits"].items()
        },
        "max_length": manifest["recipe"]["max_length"],
        "counts": manifest["counts"],
        "seconds": seconds,
        "out": str(folder),
    }


def _totals(accounts: Sequence[Mapping[str, Any]], measure: str) -> dict[str, int]:
    """What went in, and what became of it, over all sources; tokens of heads that pieces repeat went in again."""
    totals: Counter[str] = Counter({"in": 0, "kept": 0})
    for account in accounts:
        for name, count in account.items():
            if name.startswith(f"{measure}_"):
                totals[name.removeprefix(f"{measure}_").replace("repeated", "in")] += count
        for fate, entry in account["fates"].items():
            if fate != "repeated":
                totals["kept" if fate in ("train", "validation") else "left_out"] += entry[measure]
    return dict(totals)


def _mix(sources: Sequence[Any], accounts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each source gives to the split `train`, where the recipe says how often examples come."""
    mix = []
    for source, account in zip(sources, accounts, strict=True):
        counts = Counter({fate: entry["examples"] for fate, entry in account["fates"].items()})
        used, options = counts["train"] + counts["repeated"], source if isinstance(source, dict) else {}
        most = options.get("repeat", 1) * (counts["train"] + counts["not_drawn"])
        mix.append({"path": account["path"], "examples": used, "bounds": "weight" in options and used == most})
    said = any(isinstance(source, dict) and {"weight", "repeat"} & set(source) for source in sources)
    return mix if said else []
