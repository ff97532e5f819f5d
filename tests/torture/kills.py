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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import small  # noqa: E402

VICTIMS = ("self", "driver", "all")
PATIENCE = 300.0
TRIES = 3
"""How often premask begins an item before its workers' deaths end the run."""


@dataclass
class Tally:
    """What the kill test has seen."""

    kills: Counter[str] = field(default_factory=Counter)
    """By phase and place."""
    finished: int = 0
    """Datasets that were compared."""
    bytes: int = 0
    failures: list[str] = field(default_factory=list)


class Arena:
    """A folder in which runs are killed."""

    def __init__(self, folder: Path, rng: random.Random, rows: int = 24) -> None:
        self.folder, self.rng = folder, rng
        self.sources = small.write_mixture(folder / "sources", rows)
        self.out = folder / "out"
        self.tally = Tally()
        began = time.monotonic()
        code = self.attempt(workers=2)
        if code:
            raise AssertionError(f"the undisturbed run ended with {code}")
        self.seconds = time.monotonic() - began
        self.events = int((folder / "spec" / "count").read_text())
        self.expected = small.digests(self.out)
        self.size = sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file())

    def attempt(
        self,
        workers: int,
        events: Mapping[int, str] | None = None,
        after: float | None = None,
        call: Sequence[str] | None = None,
    ) -> int:
        """One run, its exit code; SIGKILL at some events (to whom, by number), or after so many seconds, or never."""
        spec = self.folder / "spec"
        shutil.rmtree(spec, ignore_errors=True)
        spec.mkdir()
        (spec / "count").write_text("0")
        (spec / "spec.json").write_text(json.dumps({"events": dict(events or {})}))
        call = [*(call or small.arguments(self.sources, self.out)), "--workers", str(workers)]
        command = [sys.executable, str(HERE / "mortal.py"), str(spec / "spec.json"), "driver", *call]
        with (self.folder / "stderr").open("w+") as errors:
            process = subprocess.Popen(command, stderr=errors, start_new_session=True)
            try:
                process.wait(PATIENCE if after is None else after)
            except subprocess.TimeoutExpired:
                if after is None:
                    process.kill()
                    raise AssertionError("a run hangs") from None
                self._kill_now(process, self.rng.choice(VICTIMS))
                process.wait(PATIENCE)
        return process.returncode

    def _kill_now(self, process: "subprocess.Popen[bytes]", victim: str) -> None:
        """SIGKILL to the driver, to one worker or the server that forks them, or to all of them."""
        workers = _descendants(process.pid)
        chosen = {"self": self.rng.sample(workers, min(1, len(workers))), "driver": [], "all": workers}[victim]
        role = "driver and workers" if victim == "all" else "worker" if chosen else "driver"
        phase = self.folder / "spec" / "phase"
        kill = {"role": role, "phase": phase.read_text() if phase.exists() else "start", "point": "at a random moment"}
        (self.folder / "spec" / "kills").write_text(json.dumps(kill) + "\n")
        for pid in [*chosen, *([] if role == "worker" else [process.pid])]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def torment(self) -> None:
        """One dataset: killed again and again, resumed every time, compared at the end."""
        rng, begun = self.rng, time.monotonic()
        shutil.rmtree(self.out)
        call = small.arguments(self.sources, self.out)
        more = ["--fresh"] if rng.random() < 0.2 else []
        if more:  # over a finished dataset: the killed run has something to clear away
            self._expect_finished(self.attempt(2))
        code = -signal.SIGKILL
        for _ in range(rng.randint(2, 9)):
            events = self._events(self.events)
            after = None if rng.random() < 0.7 else rng.uniform(0.3, 1.2) * self.seconds
            code = self.attempt(rng.choice((1, 2, 2, 2, 5)), {} if after else events, after, [*call, *more])
            more = []
            if self._count(code):
                break
        if code:
            code = self.attempt(rng.choice((1, 2, 5)))
        if self._expect_finished(code) and rng.random() < 0.4:
            self._torment_a_repair()
        print(f"{self.tally.kills.total()} kills, {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)

    def _torment_a_repair(self) -> None:
        """Files lost, the manifest perhaps among them; repairs killed, and one that ends."""
        rng = self.rng
        lost = set(rng.sample(sorted(self.expected), 4)) | set(rng.sample(["manifest.json", "plan.arrow"], 1))
        for name in lost - {small.UNREPEATABLE}:  # the manifest can be made again from it
            (self.out / name).unlink()
        call = ["repair", str(self.out), "--quiet"]
        for _ in range(rng.randint(1, 4)):
            if self._count(self.attempt(rng.choice((1, 2)), self._events(200), call=call)):
                break
        self._expect_finished(self.attempt(1, call=call))

    def _events(self, number: int) -> dict[int, str]:
        """At which of so many events whom a kill hits; sooner rather than later, since a resumed run has fewer."""
        rng = self.rng
        return {1 + int(number * rng.random() ** 1.5): rng.choice(VICTIMS) for _ in range(rng.choice((1, 3, 6)))}

    def _count(self, code: int) -> bool:
        """Count the kills of a run that ended with `code`; whether there is nothing more to kill."""
        kills = self.folder / "spec" / "kills"
        fallen = kills.read_text().splitlines() if kills.exists() else []
        for line in fallen:
            kill = json.loads(line)
            self.tally.kills[f"{kill['role']}, {kill['phase']}: {kill['point']}"] += 1
        lost = code == 3 and len(fallen) >= TRIES  # the workers of one item, one after the other
        if not lost and code not in (0, -signal.SIGKILL):
            self._fail(f"exit code {code} after {len(fallen)} kills: {(self.folder / 'stderr').read_text()[-500:]}")
        return not lost and code != -signal.SIGKILL

    def _expect_finished(self, code: int) -> bool:
        if code:
            self._fail(f"exit code {code}: {(self.folder / 'stderr').read_text()[-500:]}")
        elif wrong := small.differences(self.expected, small.digests(self.out)):
            self._fail(f"other bytes: {', '.join(wrong)}")
        else:
            self.tally.finished += 1
            self.tally.bytes += self.size
            return True
        return False

    def _fail(self, text: str) -> None:
        kept = self.folder / f"failure-{len(self.tally.failures)}"
        shutil.copytree(self.out, kept, dirs_exist_ok=True)
        self.tally.failures.append(f"{text} (kept in {kept})")
        print(text, file=sys.stderr, flush=True)


def _descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return children + [each for child in children for each in _descendants(child)]


def run(folder: Path, kills: int, seed: int, rows: int = 24) -> Tally:
    """Kill until so many kills have fallen."""
    arena = Arena(folder, random.Random(seed), rows)
    while arena.tally.kills.total() < kills and len(arena.tally.failures) < 5:
        arena.torment()
    return arena.tally


def report(tally: Tally) -> list[str]:
    """The tally in lines."""
    by_phase = Counter[str]()
    for name, count in tally.kills.items():
        by_phase[name.partition(":")[0]] += count
    lines = [f"{tally.kills.total()} kills", *(f"  {n:4}  {name}" for name, n in sorted(by_phase.items()))]
    by_point = Counter[str]()
    for name, count in tally.kills.items():
        by_point[name.partition(": ")[2]] += count
    lines += [*(f"  {n:4}  {name}" for name, n in by_point.most_common())]
    return [*lines, f"{tally.finished} datasets finished and compared, {tally.bytes:,} bytes", *tally.failures]
