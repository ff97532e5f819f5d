"""How fast `premask prepare` is, beside its floor and beside what people use today.

    python tests/bench/end_to_end.py [--quick]

Every contestant (`contestants.py`, `peers.py`) runs in a process of its own, which loads and imports before its clock
starts; all of them in turn, five rounds, medians. Ratios count; the figures of one machine do not. The table, a plot
and the raw figures go to `build/bench/`. Axolotl runs where `make bench-peers` has put it.

**The floor** parses every row once (orjson), encodes the rendered text once (fastokens, cold) and writes the bytes of
the result once, each with all processes, set-up excluded. Of premask, too, set-up is excluded from the ratio: it is the
time that 4 times the data takes longer, a third of it for each part.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trl
from corpus import ROOT, write_corpus, write_tokenizer
from peers import AXOLOTL

OUT = ROOT / "build/bench"
CHATS = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = {"ChatML": "chatml", "Llama-3": "llama-3", "Qwen3": str(CHATS / "qwen3.jinja")}
TRAINING = str(CHATS / "qwen3_training.jinja")
"""Qwen3's with TRL's `{% generation %}` tags, which its masks need."""


@dataclass(frozen=True)
class Entry:
    """One line of the table."""

    label: str
    name: str
    data: str
    """Which data: `all`, `quarter` or `sample`."""
    template: str
    processes: int


def entries(processes: int) -> list[Entry]:
    """Everybody who runs."""
    own = [
        Entry(f"{label} {part}", name, part, template, processes)
        for label, template in TEMPLATES.items()
        for name, part in (("floor", "all"), ("premask:fastokens", "all"), ("premask:fastokens", "quarter"))
    ]
    qwen = TEMPLATES["Qwen3"]
    one = [Entry(f"Qwen3 {part}, 1", "premask:fastokens", part, qwen, 1) for part in ("all", "quarter")]
    one.append(Entry("reference encoder", "premask:tokenizers", "sample", qwen, processes))
    alone = [
        Entry("JSON alone (orjson)", "json_alone", "all", qwen, processes),
        Entry("the fast encoder alone (fastokens)", "fast_encoder", "all", qwen, processes),
        Entry("the reference encoder alone (tokenizers)", "raw_tokenizers", "sample", qwen, processes),
        Entry("Jinja alone (as in transformers)", "jinja", "sample", qwen, 1),
    ]
    others = [("TRL", "trl", TRAINING), ("Axolotl's masks, no packing", "axolotl", qwen)][: 1 + AXOLOTL.exists()]
    peers = [Entry(*other[:2], "sample", other[2], count) for other in others for count in (1, processes)]
    peers.append(Entry("masking loop, no packing", "masking_loop", "sample", qwen, processes))
    return [*own, *one, *peers, *alone]


def run(entry: Entry, data: dict[str, Path], tokenizer: Path) -> dict[str, Any]:
    """One run of one contestant."""
    with tempfile.TemporaryDirectory(dir=OUT) as out:
        command = [sys.executable, str(Path(__file__).with_name("contestants.py")), entry.name, str(data[entry.data])]
        command += [str(tokenizer), entry.template, str(entry.processes), out]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{entry}:\n{done.stderr[-3000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def small_job(tokenizer: Path, source: Path) -> float:
    """Seconds of the command itself for 1,000 rows, from the shell and back."""
    with tempfile.TemporaryDirectory(dir=OUT) as out:
        command = [sys.executable, "-m", "premask", "prepare", str(source), "--limit", "1000", "--quiet"]
        command += ["--tokenizer", str(tokenizer), "--template", "chatml", "--out", f"{out}/small"]
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - began


def machine() -> str:
    """Cores, memory and processor of this machine."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    kind = names[0].partition(":")[2].strip() if names else platform.machine()
    return f"{len(os.sched_getaffinity(0))} cores ({kind}), {memory:.0f} GB, Python {platform.python_version()}"


def versions() -> list[str]:
    """Whose versions were measured; and, where Axolotl is absent, that it is."""
    own = {name: importlib.metadata.version(name) for name in ("trl", "transformers", "tokenizers", "fastokens")}
    there = {found.name: found.version for found in importlib.metadata.distributions(path=[str(AXOLOTL)])}
    absent = [] if AXOLOTL.exists() else ["", "Axolotl is absent: `make bench-peers` puts it into `build/axolotl`."]
    own |= {name: version for name, version in there.items() if name == "axolotl"}
    return [", ".join(f"{name} {version}" for name, version in own.items()) + ".", *absent]


def title(entry: Entry) -> str:
    """What a line of the table is called."""
    prefix = {"premask": "premask, ", "floor": "the floor, "}.get(entry.name.partition(":")[0], "")
    return prefix + entry.label


def report(found: dict[Entry, dict[str, float]], small: float, processes: int, rounds: int) -> str:
    """The table and the ratios, in Markdown."""
    speed = {entry: result["bytes"] / result["seconds"] / 1e6 for entry, result in found.items()}
    trl_speed = next(rate for entry, rate in speed.items() if (entry.name, entry.processes) == ("trl", processes))
    how = f"medians of {rounds} rounds" if rounds > 1 else "one round on little data, which says that all run, no more"
    lines = [f"{datetime.date.today()}, {machine()}; {how}.", *versions(), ""]
    lines += ["| | processes | MB | seconds | MB/s | TRL = 1 |", "|---|---|---|---|---|---|"]
    for entry, result in found.items():
        size, seconds, rate = result["bytes"] / 1e6, result["seconds"], speed[entry]
        cells = (f"{size:,.0f}", f"{seconds:.2f}", f"{rate:,.1f}", f"{rate / trl_speed:,.1f}")
        lines.append(f"| {title(entry)} | {entry.processes} | {' | '.join(cells)} |")
    lines += ["", "| | found | must be | |", "|---|---|---|---|"]
    for label, value, sign, bar in ratios(found, speed, small, processes):
        lines.append(f"| {label} | {value:.2f} | {f'{sign} {bar:g}' if sign else ''} | {mark(value, sign, bar)} |")
    return "\n".join(lines)


def mark(value: float, sign: str, bar: float) -> str:
    """Whether a bar was held; a difference of two runs may drown in noise, and then nothing was found."""
    if not sign:
        return ""
    if value <= 0:
        return "UNCLEAR"
    return "held" if (value <= bar if sign == "<=" else value >= bar) else "MISSED"


def ratios(
    found: dict[Entry, dict[str, float]], speed: dict[Entry, float], small: float, processes: int
) -> list[tuple[str, float, str, float]]:
    """What is judged: its name, what was found, and on which side of which figure it must lie, if it must."""
    by = {(entry.name, entry.data, entry.template, entry.processes): entry for entry in found}
    qwen = TEMPLATES["Qwen3"]

    def marginal(template: str, workers: int) -> float:
        """Seconds for all data, set-up excluded."""
        whole, quarter = (found[by["premask:fastokens", part, template, workers]] for part in ("all", "quarter"))
        rate = (whole["seconds"] - quarter["seconds"]) / (whole["bytes"] - quarter["bytes"])
        return rate * whole["bytes"]

    bars = []
    for label, template in TEMPLATES.items():
        floor = found[by["floor", "all", template, processes]]
        whole = found[by["premask:fastokens", "all", template, processes]]
        parts = ", ".join(f"{part} {floor[part]:.2f}" for part in ("parse", "encode", "write"))
        ratio, with_set_up = marginal(template, processes) / floor["seconds"], whole["seconds"] / floor["seconds"]
        bars.append((f"{label}: floors ({parts} s), set-up excluded", ratio, "<=", 2.0))
        bars.append((f"{label}: floors, everything included", with_set_up, "", 0.0))
    ours = speed[by["premask:fastokens", "all", qwen, processes]]
    trl_speed = speed[by["trl", "sample", TRAINING, processes]]
    bars.append((f"times TRL with {processes} processes, everything included", ours / trl_speed, ">=", 30.0))
    reference = by["premask:tokenizers", "sample", qwen, processes]
    bars.append(("times TRL, reference encoder", speed[reference] / trl_speed, "", 0.0))
    if axolotl := by.get(("axolotl", "sample", qwen, processes)):
        bars.append((f"times Axolotl with {processes} processes, everything included", ours / speed[axolotl], "", 0.0))
    bars.append((f"1 to {processes} workers", marginal(qwen, 1) / marginal(qwen, processes), ">=", 1.8))
    bars.append(("1,000 rows from the shell, seconds", small, "<=", 2.0))
    return bars


def plot(found: dict[Entry, dict[str, float]]) -> None:
    """Speeds as bars, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    shown = {e: r for e, r in found.items() if e.data != "quarter"}
    labels = [f"{title(e)} ({e.processes})" for e in shown]
    figure, axes = plt.subplots(figsize=(9, 0.4 * len(labels) + 1))
    axes.barh(labels, [r["bytes"] / r["seconds"] / 1e6 for r in shown.values()], color="#4c9a6a")
    axes.set_xscale("log")
    axes.set_xlabel("MB of JSON lines a second")
    axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(OUT / "end_to_end.svg")


def main() -> None:
    """Run everybody in turn, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tenth of the data, one round")
    quick = parser.parse_args().quick
    size, rounds = (20_000_000, 1) if quick else (200_000_000, 5)
    OUT.mkdir(parents=True, exist_ok=True)
    parts = {"all": size, "quarter": size // 4, "sample": 1_000_000 if quick else 5_000_000}
    data = {part: OUT / f"chat-{amount // 1_000_000}.jsonl" for part, amount in parts.items()}
    for part, amount in parts.items():
        write_corpus(data[part], amount)
    tokenizer = write_tokenizer(OUT / "tokenizer")
    processes = 2
    times: dict[Entry, list[dict[str, Any]]] = defaultdict(list)
    small = []
    small_job(tokenizer, data["sample"])  # compiles what Python compiles once
    for number in range(rounds):
        for entry in entries(processes):
            times[entry].append(run(entry, data, tokenizer))
            print(
                f"round {number + 1} of {rounds}: {entry.label} ({entry.name}): {times[entry][-1]['seconds']:.2f} s",
                file=sys.stderr,
            )
        small.append(small_job(tokenizer, data["sample"]))
    found = {
        entry: {
            key: statistics.median(r[key] for r in runs) for key in runs[0] if not isinstance(runs[0][key], (str, dict))
        }
        for entry, runs in times.items()
    }
    table = report(found, statistics.median(small), processes, rounds)
    (OUT / "end_to_end.md").write_text(table + "\n")
    (OUT / "end_to_end.json").write_text(json.dumps([{**vars(e), "runs": runs} for e, runs in times.items()], indent=1))
    plot(found)
    print(table)


if __name__ == "__main__":
    main()
