"""The local executor, with real processes: results, errors, killed workers, killed drivers."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from premask.errors import DataError, MachineError, PremaskError, UsageError
from premask.run.items import InternalError, WorkItem
from premask.run.local import TRIES, Crew, run_items
from premask.run.worker import GRACE

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _functions_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)


def make(name: str, function: str, /, **arguments: Any) -> WorkItem:
    return WorkItem(name=name, function=f"item_functions:{function}", arguments=arguments)


def squares(count: int) -> list[WorkItem]:
    return [make(f"item {n}", "square", number=n) for n in range(count)]


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# --- results --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_results_come_back_by_name_in_the_order_of_the_items(workers: int) -> None:
    done = []
    results = run_items(squares(7), workers=workers, on_done=lambda item, result: done.append((item.name, result)))
    assert list(results) == [f"item {n}" for n in range(7)]
    assert [result["square"] for result in results.values()] == [n * n for n in range(7)]
    assert dict(done) == results
    assert len(done) == 7
    assert ({result["pid"] for result in results.values()} == {os.getpid()}) == (workers == 1)
    assert len({result["pid"] for result in results.values()}) <= workers


def test_nothing_to_do() -> None:
    assert run_items([], workers=2) == {}


def test_one_item_runs_in_the_driver() -> None:
    assert run_items(squares(1), workers=8)["item 0"]["pid"] == os.getpid()


def test_large_results_and_arguments() -> None:
    items = [make("a", "big", size=30_000_000), make("b", "big", size=1), make("c", "chatter", text="x" * 10_000_000)]
    results = run_items(items, workers=2)
    assert [len(result) for result in results.values()] == [30_000_000, 1, 10_000_000]


def test_workers_switch_the_threads_of_tokenizers_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    items = [make(str(n), "environment", name="TOKENIZERS_PARALLELISM") for n in range(2)]
    assert run_items(items, workers=2) == {"0": "false", "1": "false"}
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_what_workers_print_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    run_items([make(str(n), "chatter", text=f"hello {n}") for n in range(2)], workers=2)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "hello 0" in captured.err


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("function", "arguments", "kind", "wording"),
    [
        ("data_error", {"text": "a.jsonl, row 3: no"}, DataError, "^a.jsonl, row 3: no$"),
        ("no_memory", {}, MachineError, "bad: out of memory"),
        ("os_error", {"name": "ENOSPC"}, MachineError, "bad: the disk is full"),
        ("bug", {"key": "k"}, InternalError, "bad: KeyError: 'k'\nThis is a bug in premask"),
    ],
)
def test_errors_inside_items(
    workers: int, function: str, arguments: dict[str, Any], kind: type[PremaskError], wording: str
) -> None:
    with pytest.raises(PremaskError, match=wording) as caught:
        run_items([*squares(2), make("bad", function, **arguments)], workers=workers)
    assert type(caught.value) is kind
    if kind is InternalError:
        assert "item_functions.py" in caught.value.__notes__[0]


def test_errors_and_results_that_cannot_be_sent() -> None:
    with pytest.raises(InternalError, match="Unsendable: ab"):
        run_items([*squares(1), make("bad", "unsendable")], workers=2)
    with pytest.raises(InternalError, match="bad: its result cannot be sent to the driver"):
        run_items([*squares(1), make("bad", "unpicklable")], workers=2)


def test_what_runs_beside_a_failure_comes_to_its_end(tmp_path: Path) -> None:
    done: list[str] = []
    items = [
        make("slow", "slow", folder=str(tmp_path), name="slow", seconds=2.0),
        make("bad", "data_error", text="no"),
        make("later", "slow", folder=str(tmp_path), name="later", seconds=0.0),
    ]
    with pytest.raises(DataError, match="no"):
        run_items(items, workers=2, on_done=lambda item, _: done.append(item.name))
    assert done == ["slow"]
    assert not (tmp_path / "later.1").exists()


def test_the_first_item_of_several_failures_is_reported() -> None:
    items = [make("a", "data_error", text="the first"), make("b", "data_error", text="the second")]
    for _ in range(3):
        with pytest.raises(DataError, match="the first"):
            run_items(items, workers=2)


def test_an_error_in_on_done_ends_the_workers(tmp_path: Path) -> None:
    def fail(item: WorkItem, result: Any) -> None:
        raise OSError("receipt")

    items = [*squares(1), make("s", "stubborn", folder=str(tmp_path), name="s")]
    with pytest.raises(OSError, match="receipt"):
        run_items(items, workers=2, on_done=fail)
    pids = [int(path.read_text()) for path in tmp_path.glob("s.*")]
    assert not any(alive(pid) for pid in pids)


def test_wrong_calls() -> None:
    with pytest.raises(UsageError, match="workers: expected at least 1, found 0"):
        run_items(squares(2), workers=0)
    with pytest.raises(ValueError, match="two work items of one name"):
        run_items([*squares(1), *squares(1)], workers=1)


def test_a_worker_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(MachineError, match=r"a worker process cannot be started.*fewer --workers"):
        run_items(squares(2), workers=2)


def test_a_function_that_workers_cannot_import_is_a_bug() -> None:
    local = WorkItem(name="local", function=lambda: None, arguments={})
    with pytest.raises(InternalError, match=r"local: .*\nThis is a bug in premask"):
        run_items([*squares(1), local], workers=2)


# --- workers that stay ----------------------------------------------------------------------------------------------


def test_workers_stay_from_one_batch_of_items_to_the_next() -> None:
    with Crew(2) as crew:
        first = {result["pid"] for result in crew.perform(squares(6)).values()}
        again = {result["pid"] for result in crew.perform(squares(6)).values()}
    assert again <= first and len(first) == 2 and os.getpid() not in first


def test_what_makes_workers_ready_happens_once_for_all(tmp_path: Path) -> None:
    with Crew(2) as crew:
        crew.start(make("opening", "remember", text="ready", folder=str(tmp_path)), 4)
        assert crew.perform([make(str(n), "remembered") for n in range(4)]) == {str(n): "ready" for n in range(4)}
        assert len({result["pid"] for result in crew.perform(squares(6)).values()}) == 2
        assert crew.opened() == "ready"
        assert crew.opened() == "ready"
    assert len(list(tmp_path.glob("remember.*"))) == 1


@pytest.mark.parametrize(("size", "items", "started"), [(1, 9, False), (3, 1, False), (3, 0, False), (3, 2, True)])
def test_nothing_is_made_ready_where_no_worker_is_needed(tmp_path: Path, size: int, items: int, started: bool) -> None:
    with Crew(size) as crew:
        crew.start(make("opening", "remember", text="ready", folder=str(tmp_path)), items)
        crew.perform(squares(items))
        assert crew.opened() == ("ready" if started else None)
    assert any(tmp_path.iterdir()) == started


def test_nobody_waits_for_an_opening_that_no_worker_needs(tmp_path: Path) -> None:
    began = time.monotonic()
    with Crew(2) as crew:
        crew.start(make("opening", "slow", folder=str(tmp_path), name="opening", seconds=30.0), 3)
        assert crew.opened() is None
    assert time.monotonic() - began < GRACE  # nor waits for it to end


@pytest.mark.parametrize("opening", [make("opening", "data_error", text="x"), make("opening", "leave", code=7)])
def test_an_opening_that_fails_fails_nothing_else(opening: WorkItem) -> None:
    with Crew(2) as crew:
        crew.start(opening, 4)
        results = crew.perform(squares(4))
        assert crew.opened() is None
    assert [results[f"item {n}"]["square"] for n in range(4)] == [0, 1, 4, 9]


def test_a_server_with_another_thread_starts_workers_that_load_for_themselves() -> None:
    with Crew(2) as crew:
        crew.start(make("opening", "keep_a_thread"), 4)
        assert crew.perform([make(str(n), "threads_kept") for n in range(2)]) == {"0": 0, "1": 0}
        assert crew.opened() == 1


def test_a_thread_of_the_opening_that_has_ended_is_none() -> None:
    with Crew(2) as crew:
        crew.start(make("opening", "end_a_thread"), 4)
        assert crew.perform([make(str(n), "threads_kept") for n in range(2)]) == {"0": 1, "1": 1}


def test_workers_of_a_killed_server_are_replaced(tmp_path: Path) -> None:
    items = [make(name, "slow", folder=str(tmp_path), name=name, seconds=1.0) for name in ("a", "b")]

    def kill(item: WorkItem, result: Any) -> None:
        if item.name == "item 0":
            os.kill(result["parent"], signal.SIGKILL)

    with Crew(2) as crew:
        results = crew.perform([*squares(1), *items], kill)
        assert (results["a"], results["b"]) == ("a", "b")
        again = crew.perform(squares(4))
    assert [again[f"item {n}"]["square"] for n in range(4)] == [0, 1, 4, 9]
    assert not list(tmp_path.glob("temporary-*"))


def test_a_worker_that_cannot_be_forked(tmp_path: Path) -> None:
    with Crew(2) as crew:
        crew.start(make("opening", "forbid_forks"), 2)
        with pytest.raises(MachineError, match=r"item \d: its worker died 3 times, the last one could not be started"):
            crew.perform(squares(2))


# --- deaths ---------------------------------------------------------------------------------------------------------


def test_items_of_killed_workers_run_again(tmp_path: Path) -> None:
    fatal = [
        make("dies once", "die_at_first", folder=str(tmp_path), name="once", deaths=1),
        make("dies twice", "die_at_first", folder=str(tmp_path), name="twice", deaths=TRIES - 1),
    ]
    results = run_items([*fatal, *squares(4)], workers=2)
    assert (results["dies once"], results["dies twice"]) == (2, TRIES)
    assert [results[f"item {n}"]["square"] for n in range(4)] == [0, 1, 4, 9]


def test_an_item_that_always_kills_its_worker(tmp_path: Path) -> None:
    fatal = make("stage 5", "die_at_first", folder=str(tmp_path), name="fatal", deaths=99)
    with pytest.raises(MachineError, match=r"^stage 5: its worker died 3 times.*SIGKILL.*memory.*fewer --workers"):
        run_items([*squares(3), fatal], workers=2)
    assert len(list(tmp_path.glob("fatal.*"))) == TRIES


def test_innocent_items_do_not_pay_for_a_fatal_one(tmp_path: Path) -> None:
    slow = [make(f"slow {n}", "slow", folder=str(tmp_path), name=f"slow{n}", seconds=0.3) for n in range(3)]
    run_items([make("f", "die_at_first", folder=str(tmp_path), name="f", deaths=2), *slow], workers=2)
    assert len(list(tmp_path.glob("slow*"))) == 3


def test_a_worker_that_leaves_by_itself() -> None:
    with pytest.raises(MachineError, match="quits: its worker died 3 times, the last one exited with code 7"):
        run_items([*squares(1), make("quits", "leave", code=7)], workers=2)


def test_a_worker_killed_from_outside(tmp_path: Path) -> None:
    items = [make(name, "slow", folder=str(tmp_path), name=name, seconds=1.5) for name in ("a", "b", "c")]
    killer = subprocess.Popen(
        [sys.executable, "-c", f"import pathlib, os, time\np = pathlib.Path({str(tmp_path / 'b.1')!r})\n"
         "while not (p.exists() and p.read_text()): time.sleep(0.02)\nos.kill(int(p.read_text()), 9)"]
    )  # fmt: skip
    results = run_items(items, workers=2)
    assert killer.wait() == 0
    assert results == {name: name for name in "abc"}
    assert (tmp_path / "b.2").exists()
    assert not (tmp_path / "a.2").exists()


# --- the end of the driver ------------------------------------------------------------------------------------------

DRIVER = """
import sys
from pathlib import Path
from premask.run.items import WorkItem
from premask.run.local import run_items

folder = sys.argv[1]
items = [
    WorkItem(name=name, function=f"item_functions:{function}", arguments={"folder": folder, "name": name, **more})
    for name, function, more in (("a", "slow", {"seconds": 60}), ("b", "slow", {"seconds": 60}), ("c", "stubborn", {}))
]
idle = [WorkItem(name=f"i{n}", function="item_functions:begin", arguments={"folder": folder, "name": f"i{n}"}) for n in range(3)]
run_items([*idle, *items] if len(sys.argv) < 3 else items, workers=4)
"""  # noqa: E501


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, -15), (signal.SIGINT, -2)])
def test_no_worker_outlives_its_driver(tmp_path: Path, number: signal.Signals, code: int) -> None:
    script = tmp_path / "driver.py"  # with no `if __name__ == "__main__"`: none is needed
    script.write_text(DRIVER)
    driver = subprocess.Popen(
        [sys.executable, script, tmp_path],
        env={**os.environ, "PYTHONPATH": str(HERE)},
        stderr=subprocess.DEVNULL,
    )
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(driver.wait)
        cleanup.callback(driver.kill)
        started = [tmp_path / f"{name}.1" for name in "abc"]
        assert eventually(lambda: all(path.exists() and path.read_text() for path in started))
        pids = [int(path.read_text()) for path in tmp_path.glob("*.1")]
        pids += [parent_of(pid) for pid in pids]
        assert driver.pid not in pids
        assert all(alive(int(path.read_text())) for path in started)
        os.kill(driver.pid, number)
        assert driver.wait(20) == code
        assert eventually(lambda: not any(alive(pid) for pid in pids))
        assert not list(tmp_path.glob("temporary-*"))
