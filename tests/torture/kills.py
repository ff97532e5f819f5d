"""The kill test: SIGKILL at chosen events and at random moments, each followed by a resume; always the same bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import small  # noqa: E402

VICTIMS = ("self", "driver", "all")
PATIENCE = 120.0


@dataclass
class Tally:
    """What the kill test has seen."""

    kills: Counter[str] = field(default_factory=Counter)
    """By phase and place."""
    victims: Counter[str] = field(default_factory=Counter)
    finished: int = 0
    """Datasets that were finished after at least one kill, and compared."""
    bytes: int = 0
    failures: list[str] = field(default_factory=list)


class Arena:
    """A folder in which runs are killed."""

    def __init__(self, folder: Path, rng: random.Random, rows: int = 120) -> None:
        self.folder, self.rng = folder, rng
        self.sources = small.write_sources(folder / "sources", rows)
        self.out = folder / "out"
        self.tally = Tally()
        began = time.monotonic()
        code = self.attempt(event=None, workers=2)
        if code:
            raise AssertionError(f"the undisturbed run ended with {code}")
        self.seconds = time.monotonic() - began
        self.events = int((folder / "spec" / "count").read_text())
        self.expected = small.digests(self.out)
        self.size = sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file())

    def attempt(
        self, event: int | None, workers: int, victim: str = "self", after: float | None = None, *more: str
    ) -> int:
        """One run, to be killed at an event, or after so many seconds, or not at all; its exit code."""
        spec = self.folder / "spec"
        shutil.rmtree(spec, ignore_errors=True)
        spec.mkdir()
        (spec / "count").write_text("0")
        (spec / "spec.json").write_text(json.dumps({"event": event, "victim": victim}))
        call = small.arguments(self.sources, self.out, "--workers", str(workers), *more)
        command = [sys.executable, str(HERE / "mortal.py"), str(spec / "spec.json"), "driver", *call]
        with (self.folder / "stderr").open("w+") as errors:
            process = subprocess.Popen(command, stderr=errors, start_new_session=True)
            try:
                process.wait(PATIENCE if after is None else after)
            except subprocess.TimeoutExpired:
                if after is None:
                    process.kill()
                    raise AssertionError("a run hangs") from None
                self._kill_now(process, victim)
                process.wait(PATIENCE)
        return process.returncode

    def _kill_now(self, process: "subprocess.Popen[bytes]", victim: str) -> None:
        """SIGKILL to the driver, to one worker, or to all of them."""
        workers = _children(process.pid)
        chosen = {"self": self.rng.sample(workers, min(1, len(workers))), "driver": [], "all": workers}[victim]
        phase = self.folder / "spec" / "phase"
        where = phase.read_text() if phase.exists() else "start"
        role = "worker" if victim == "self" and chosen else "driver"
        with (self.folder / "spec" / "kills").open("a") as file:
            file.write(json.dumps({"role": role, "phase": where, "point": "at a random moment"}) + "\n")
        for pid in [*chosen, *([] if role == "worker" else [process.pid])]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def torment(self) -> None:
        """One dataset: killed again and again, resumed every time, compared at the end."""
        rng, begun = self.rng, time.monotonic()
        shutil.rmtree(self.out)
        more = ["--fresh"] if rng.random() < 0.2 else []
        if more:  # over a finished dataset: the killed run has something to clear away
            self._expect_finished(self.attempt(None, 2))
        for _ in range(rng.randint(2, 9)):
            by_event, victim = rng.random() < 0.7, rng.choice(VICTIMS)
            event = 1 + int(self.events * rng.random() ** 1.5) if by_event else None  # a resumed run has fewer
            after = None if by_event else rng.uniform(0.3, 1.2) * self.seconds
            code = self.attempt(event, rng.choice((1, 2, 2, 5)), victim, after, *more)
            self._count(victim)
            more = []
            if code == 0:
                break
            if code != -signal.SIGKILL:
                self._fail(f"exit code {code} after a kill: {(self.folder / 'stderr').read_text()[-500:]}")
                break
        if code:
            code = self.attempt(None, rng.choice((1, 2, 5)))
        self._expect_finished(code)
        print(f"{sum(self.tally.kills.values())} kills, {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)

    def _count(self, victim: str) -> None:
        kills = self.folder / "spec" / "kills"
        for line in kills.read_text().splitlines() if kills.exists() else []:
            kill = json.loads(line)
            self.tally.kills[f"{kill['role']}, {kill['phase']}: {kill['point']}"] += 1
            self.tally.victims[victim if kill["role"] != "worker" or victim != "self" else "a worker"] += 1

    def _expect_finished(self, code: int) -> None:
        if code:
            self._fail(f"exit code {code}: {(self.folder / 'stderr').read_text()[-500:]}")
        elif wrong := small.differences(self.expected, small.digests(self.out)):
            self._fail(f"other bytes: {', '.join(wrong)}")
        else:
            self.tally.finished += 1
            self.tally.bytes += self.size

    def _fail(self, text: str) -> None:
        kept = self.folder / f"failure-{len(self.tally.failures)}"
        shutil.copytree(self.out, kept, dirs_exist_ok=True)
        self.tally.failures.append(f"{text} (kept in {kept})")
        print(text, file=sys.stderr, flush=True)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def run(folder: Path, kills: int, seed: int) -> Tally:
    """Kill until so many kills have fallen."""
    arena = Arena(folder, random.Random(seed))
    while sum(arena.tally.kills.values()) < kills and len(arena.tally.failures) < 5:
        arena.torment()
    return arena.tally


def report(tally: Tally) -> list[str]:
    """The tally in lines."""
    by_phase = Counter[str]()
    for name, count in tally.kills.items():
        by_phase[name.partition(":")[0]] += count
    lines = [f"{sum(tally.kills.values())} kills", *(f"  {n:4}  {name}" for name, n in sorted(by_phase.items()))]
    by_point = Counter[str]()
    for name, count in tally.kills.items():
        by_point[name.partition(": ")[2]] += count
    lines += [*(f"  {n:4}  {name}" for name, n in by_point.most_common())]
    return [*lines, f"{tally.finished} datasets finished and compared, {tally.bytes:,} bytes", *tally.failures]


def main(arguments: Sequence[str]) -> int:
    """`kills.py FOLDER [KILLS] [SEED]`"""
    folder, kills, seed = Path(arguments[0]), int((arguments[1:2] or ["200"])[0]), int((arguments[2:3] or ["0"])[0])
    began = time.monotonic()
    tally = run(folder, kills, seed)
    print("\n".join(report(tally)), f"{time.monotonic() - began:.0f} s", sep="\n")
    return bool(tally.failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
