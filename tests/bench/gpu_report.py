"""The figures of the GPU benchmark as files: JSON, a table with every bar that is missed, and a plot."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
KEYS = ("shape", "tokens", "share", "trained")
LIMIT = "matrix products"


def configurations(rows: list[Row]) -> Iterator[tuple[Row, dict[tuple[str, str], Row]]]:
    """Every (shape, tokens, share, head) with its rows by (input, who)."""
    groups: dict[tuple[Any, ...], dict[tuple[str, str], Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in KEYS), {})[row["input"], row["who"]] = row
    for values, group in groups.items():
        yield dict(zip(KEYS, values, strict=True)), group


def bar(kind: Row) -> float:
    """How many times the bare matrix products ours may take."""
    if kind["trained"]:
        return 1.12
    return 1.25 if kind["share"] < 0.3 else 1.10


def missed_bars(rows: list[Row]) -> list[str]:
    """A sentence for each bar that is missed: times the limit, slower than a peer on compacted rows, memory."""
    missed = []
    for kind, group in configurations(rows):
        head = "trained" if kind["trained"] else "frozen"
        where = f"{kind['shape']}, {kind['tokens']} tokens, {kind['share']:.0%}, {head} head"
        ours = group.get(("masked", "premask"), {})
        compact = group.get(("compacted", "premask"), {})
        if "ms" not in ours or "ms" not in compact:
            missed.append(f"{where}: premask failed: {ours.get('failed') or compact.get('failed')}")
            continue
        ratio = ours["ms"] / group["compacted", LIMIT]["ms"]
        if ratio > bar(kind):
            missed.append(f"{where}: {ratio:.3f} times the matrix products, bar {bar(kind)}")
        for (form, who), row in group.items():
            if form == "compacted" and who not in (LIMIT, "premask") and row.get("ms", 1e99) < compact["ms"]:
                missed.append(f"{where}: {who} is faster on compacted rows, {row['ms']:.2f} to {compact['ms']:.2f} ms")
        allowed = 1.2e9 + (ours["head_gradient_bytes"] if kind["trained"] else 0)
        if ours["extra_bytes"] > allowed:
            missed.append(f"{where}: {ours['extra_bytes'] / 1e9:.2f} GB extra, bar {allowed / 1e9:.2f}")
    return missed


def table(rows: list[Row]) -> str:
    """Milliseconds (and GB beyond the gradients) of every contestant, masked and compacted input."""
    who = list(dict.fromkeys(row["who"] for row in rows if row["who"] != LIMIT))
    lines = [f"| shape | tokens | share | head | {LIMIT} | " + " | ".join(who) + " |"]
    lines.append("|---|--:|--:|---|--:|" + "--:|" * len(who))
    for kind, group in configurations(rows):
        head = "trained" if kind["trained"] else "frozen"
        cells = [kind["shape"], f"{kind['tokens']}", f"{kind['share']:.0%}", head]
        cells.append(f"{group['compacted', LIMIT]['ms']:.2f}")
        cells += [" / ".join(cell(group.get((form, name), {})) for form in ("masked", "compacted")) for name in who]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(row: Row) -> str:
    """Time and memory of one row."""
    return f"{row['ms']:.2f} ({row['extra_bytes'] / 1e9:.1f})" if "ms" in row else "failed"


def plot(result: Row, file: Path) -> None:
    """Time over the limit by supervised share, one panel per shape and head, masked input, most tokens."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    rows = result["rows"]
    most = max(row["tokens"] for row in rows)
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure, axes = pyplot.subplots(2, len(shapes), squeeze=False, figsize=(4.2 * len(shapes), 7), sharey=True)
    for column, shape in enumerate(shapes):
        for line, trained in enumerate((False, True)):
            axis, curves = axes[line][column], {}
            for kind, group in configurations(rows):
                if (kind["shape"], kind["tokens"], kind["trained"]) == (shape, most, trained):
                    for (form, who), row in group.items():
                        if form == "masked" and "ms" in row:
                            ratio = row["ms"] / group["compacted", LIMIT]["ms"]
                            curves.setdefault(who, []).append((100 * kind["share"], ratio))
            for who, points in curves.items():
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=who)
            axis.set(title=f"{shape}, {'trained' if trained else 'frozen'} head", xlabel="supervised, %", yscale="log")
            axis.axhline(1, color="black", linewidth=0.8)
    axes[0][0].set_ylabel(f"times the bare matrix products, {most} tokens")
    axes[0][0].legend(fontsize=7)
    figure.suptitle(result["device"])
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)


def write_report(result: Row, folder: Path) -> list[str]:
    """Write `gpu-DEVICE.json`, `.md` and `.svg` to `folder` and return the bars that are missed.

    Shapes that an earlier run left in the JSON file stay, unless they were measured again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = "gpu-" + re.sub(r"[^a-z0-9]+", "-", result["device"].lower()).strip("-")
    file = folder / f"{name}.json"
    if file.exists():
        earlier = json.loads(file.read_text(encoding="utf-8"))
        again = {row["shape"] for row in result["rows"]}
        result["rows"] = [row for row in earlier["rows"] if row["shape"] not in again] + result["rows"]
        result["chunks"] = {**earlier["chunks"], **result["chunks"]}
    result["missed"] = missed_bars(result["rows"])
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = [f"# The masked loss on {result['device']}", "", "Milliseconds, forward and backward (GB beyond the inputs"]
    text[-1] += " and the gradients), for masked / compacted input; bfloat16."
    text += ["", table(result["rows"]), "", "Versions: " + ", ".join(f"{k} {v}" for k, v in result["versions"].items())]
    text += [f"- absent: {who} ({reason})" for who, reason in result["absent"].items()]
    text += ["", "Bars missed:" if result["missed"] else "No bar is missed.", ""]
    text += [f"- {sentence}" for sentence in result["missed"]]
    file.with_suffix(".md").write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    plot(result, file.with_suffix(".svg"))
    return list(result["missed"])
