"""premask as it is, in processes that can be killed at a chosen instant: `python mortal.py SPEC driver ARGUMENT...`

Nothing in premask knows of this. The wrapper replaces a few functions of the process that it runs, the driver or the
server that forks workers, by ones that count an event before going on: a write, a flush, just before and just after a
rename, a removal, a process that starts. At the events whose numbers the spec names, SIGKILL goes to the process
itself, to its driver, or to all.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import small  # noqa: E402

KINDS = {
    "receipts": "a receipt",
    "stage": "a stage file",
    "rejected": "rejected rows",
    "piece": "a piece",
    "data": "a shard",
}
"""What is renamed into place, by its folder or the beginning of its name."""


class Mortal:
    """The events of one process; the count is shared by all processes of a run, in a file."""

    def __init__(self, spec_path: str, role: str, driver: int) -> None:
        self.spec: dict[str, Any] = json.loads(Path(spec_path).read_text())
        self.role, self.driver, self.phase = role, driver, "start"
        self.folder = Path(spec_path).parent
        self.enlist()

    def enlist(self) -> None:
        """Note this process among those that may be killed."""
        with (self.folder / "pids").open("a") as file:
            file.write(f"{os.getpid()}\n")

    def event(self, point: str) -> None:
        """Count one event; die, or kill, when it is the chosen one."""
        with (self.folder / "count").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            number = int(file.read() or 0) + 1
            file.seek(0)
            file.write(str(number))
            file.truncate()
        if victim := self.spec["events"].get(str(number)):
            self.note(point, victim)
            self.kill(victim)

    def note(self, point: str, victim: str) -> None:
        """Write down whom the kill hits, and where."""
        role = {"self": self.role, "driver": "driver", "all": "driver and workers"}[victim]
        with (self.folder / "kills").open("a") as file:
            file.write(json.dumps({"role": role, "phase": self.phase, "point": point}) + "\n")

    def kill(self, victim: str) -> None:
        own = os.getpid()
        others = [int(pid) for pid in (self.folder / "pids").read_text().split()] if victim == "all" else []
        for pid in [*(pid for pid in others if pid != own), self.driver if victim == "driver" else own, own]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def enter(self, phase: str) -> None:
        """A phase begins; where random kills fall is read from the file."""
        self.phase = phase
        (self.folder / "phase").write_text(phase)


def install(mortal: Mortal) -> None:
    """Put the events in."""
    from premask.store import atomic

    _before(mortal, atomic.HashedFile, "write", lambda *_: "writing")
    _before(mortal, os, "fsync", lambda *_: "before the flush")
    replace = Path.replace

    def replaced(self: Path, target: Any) -> Any:
        place = Path(target)
        kind = KINDS.get(place.parent.name) or KINDS.get(place.name.split("-")[0]) or place.name
        mortal.event(f"before the rename of {kind}")
        result = replace(self, target)
        mortal.event(f"after the rename of {kind}")
        return result

    setattr(Path, "replace", replaced)  # noqa: B010
    _before(mortal, Path, "unlink", lambda *_: "removing")
    _before(mortal, shutil, "rmtree", lambda *_: "removing a folder")
    _before(mortal, os, "rmdir", lambda *_: "removing a folder")


def _before(mortal: Mortal, owner: Any, name: str, point: Callable[..., str]) -> None:
    original = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        mortal.event(point(*args))
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def drive(spec: str, arguments: list[str]) -> int:
    """The driver: the command line, with workers that are as mortal."""
    small.shrink()
    from premask import cli
    from premask.run import processes
    from premask.show import progress

    mortal = Mortal(spec, "driver", os.getpid())
    install(mortal)
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        mortal.event("starting the server")
        return popen([sys.executable, __file__, spec, "server", *command[-2:]], **options)

    setattr(processes.subprocess, "Popen", start)  # noqa: B010
    setattr(progress.SilentProgress, "phase", lambda self, name, *_: mortal.enter(name))  # noqa: B010
    return cli.run(arguments)


def serve(spec: str, arguments: list[str]) -> None:
    """The server, and the workers that it forks."""
    from premask.run import items, server

    mortal = Mortal(spec, "server", int(arguments[1]))
    perform = items.WorkItem.perform

    def performed(self: items.WorkItem) -> Any:
        mortal.phase = self.name.split()[0]
        return perform(self)

    def forked() -> None:
        mortal.role = "worker"
        mortal.enlist()

    setattr(items.WorkItem, "perform", performed)  # noqa: B010
    install(mortal)
    _before(mortal, os, "fork", lambda *_: "starting a worker")
    os.register_at_fork(after_in_child=forked)
    sys.argv[1:] = arguments
    server.main()


if __name__ == "__main__":
    spec, role, *rest = sys.argv[1:]
    if role == "driver":
        sys.exit(drive(spec, rest))
    serve(spec, rest)
