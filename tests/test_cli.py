"""The command line: options, exit codes, the wording of errors, what goes to which stream."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from premask.cli import run
from premask.errors import DataError, MachineError, UsageError
from premask.recipe import Recipe
from premask.show.progress import SilentProgress

SUMMARY = {
    "rows": 3,
    "kept": 2,
    "rejected": {"broken_json": 1},
    "tokens": {"in": 32, "kept": 30, "trimmed": 2},
    "turns": {"in": 2, "kept": 2},
    "mix": [],
    "splits": {"train": {"examples": 2, "packs": 1, "packs_at_least": 1, "tokens": 30, "supervised": 10}},
    "max_length": 64,
    "counts": {"escaped_rows": 1},
    "seconds": 0.5,
    "out": "prepared",
}

CALL = ["prepare", "chat.jsonl", "--tokenizer", "tok", "--out", "prepared"]


class Prepare:
    """Stands in for `premask.prepare.prepare`: remembers how it was called, then does as told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Recipe, Path, dict[str, Any]]] = []
        self.act: Callable[[], None] = lambda: None

    def __call__(self, recipe: Recipe, out: Path, **options: Any) -> dict[str, Any]:
        self.calls.append((recipe, out, options))
        self.act()
        return SUMMARY


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> Prepare:
    stand_in = Prepare()
    module: Any = types.ModuleType("premask.prepare")
    module.prepare = stand_in
    monkeypatch.setitem(sys.modules, "premask.prepare", module)
    monkeypatch.delenv("PREMASK_DEBUG", raising=False)
    return stand_in


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


# --- prepare --------------------------------------------------------------------------------------------------------


def test_prepare_with_all_options(prepare: Prepare, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("train_on: last\nseed: 1\n")
    options = (
        f"prepare a.jsonl b.json --tokenizer tok --out o --recipe {file} --template t.jinja --max-length 128 --limit 5 "
        "--format sharegpt --workers 3 --set seed=2 --set turns=separate --fresh --strict --quiet --keep-stage"
    )
    assert run(options.split()) == 0
    recipe, out, keywords = prepare.calls[0]
    assert recipe == Recipe(
        sources=["a.jsonl", "b.json"], tokenizer="tok", template="t.jinja", max_length=128, limit=5, format="sharegpt",
        seed=2, turns="separate", train_on="last",
    )  # fmt: skip
    assert out == Path("o")
    assert isinstance(keywords.pop("progress"), SilentProgress)
    assert keywords == {"workers": 3, "encoder": "auto", "fresh": True, "strict": True, "keep_stage": True}


def test_prepare_with_the_least(prepare: Prepare) -> None:
    assert run(CALL) == 0
    recipe, _, keywords = prepare.calls[0]
    assert recipe == Recipe(sources=["chat.jsonl"], tokenizer="tok")
    assert keywords["workers"] is None
    assert not (keywords["fresh"] or keywords["strict"] or keywords["keep_stage"])


def test_everything_may_stand_in_the_recipe_file(prepare: Prepare, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("sources: [a.jsonl]\ntokenizer: tok\n")
    assert run(["prepare", "--recipe", str(file), "--out", "o"]) == 0
    assert prepare.calls[0][0] == Recipe(sources=["a.jsonl"], tokenizer="tok")


def test_the_summary_goes_to_standard_output(prepare: Prepare, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(CALL) == 0
    captured = capsys.readouterr()
    assert "broken_json" in captured.out
    assert "encoded as plain text: 1\n" in captured.out
    assert "prepared/rejected.jsonl\n" in captured.out
    assert captured.out.endswith("to see its tokens: premask view prepared\n")
    assert captured.err == ""


def test_json(prepare: Prepare, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*CALL, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == SUMMARY
    assert captured.err == ""


def test_quiet(prepare: Prepare, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*CALL, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_progress_is_closed_when_preparing_fails(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(SilentProgress, "close", lambda self: closed.append(self))
    prepare.act = raising(DataError("no"))
    assert run([*CALL, "--quiet"]) == 1
    assert len(closed) == 1


# --- errors and exit codes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DataError("a.jsonl, row 3: no\nremedy"), 1, "premask: error: a.jsonl, row 3: no\n  remedy\n"),
        (UsageError("the call"), 2, "premask: error: the call\n"),
        (MachineError("the machine"), 3, "premask: error: the machine\n"),
        (MemoryError(), 3, "premask: error: out of memory; use fewer --workers"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 3, "premask: error: the disk is full ([Errno 28]"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), 3, "premask: error: the disk is full"),
        (OSError(errno.EIO, "Input/output error", "x"), 3, "premask: error: the machine failed"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "premask: error: not allowed"),
        (KeyboardInterrupt(), 130, "premask: error: interrupted; run the same command again to go on"),
        (
            KeyError("k"),
            70,
            "premask: error: KeyError: 'k'\n  This is a bug in premask: please report it. PREMASK_DEBUG",
        ),
    ],
)
def test_exit_codes(
    prepare: Prepare, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, text: str
) -> None:
    prepare.act = raising(error)
    assert run(CALL) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.lstrip("\n").startswith(text)  # click ends the line of a terminal's ^C
    assert "Traceback" not in captured.err


def test_debug_shows_the_traceback(
    prepare: Prepare, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREMASK_DEBUG", "1")
    prepare.act = raising(DataError("no"))
    assert run(CALL) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("premask: error: no\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "premask: error: Missing command.\n  See `premask --help`.\n"),
        (["prepair"], "premask: error: No such command 'prepair'."),
        (["prepare", "a"], "premask: error: Missing option '--out'.\n  See `premask prepare --help`.\n"),
        (["prepare", "a", "--out", "o"], "premask: error: the recipe is wrong: tokenizer: missing; give --tokenizer"),
        ([*CALL, "--wokers", "2"], "premask: error: No such option '--wokers'"),
        ([*CALL, "--workers", "0"], "premask: error: Invalid value for '--workers': 0 is not in the range x>=1."),
        ([*CALL, "--max-length", "x"], "premask: error: Invalid value for '--max-length'"),
        ([*CALL, "--format", "chatml"], "premask: error: the recipe is wrong: format (command line): expected 'auto'"),
        (
            [*CALL, "--set", "trian_on=all"],
            "premask: error: the recipe is wrong: trian_on (--set): no such option; did",
        ),
        ([*CALL, "--recipe", "none.yaml"], "premask: error: recipe none.yaml: cannot be read: No such file"),
        (["view"], "premask: error: Missing argument 'DIR'."),
        (
            ["view", "d", "--pack", "1", "--source-row", "2"],
            "premask: error: --pack and --source-row exclude each other",
        ),
    ],
)
def test_wrong_calls(prepare: Prepare, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.replace("No such option: --wokers", "No such option '--wokers'").startswith(text)
    assert not prepare.calls


def test_help_names_every_recipe_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prepare", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in Recipe.model_fields)


# --- signals, with real processes -----------------------------------------------------------------------------------

SCRIPT = """
import sys, types
from pathlib import Path
from premask.run.items import WorkItem
from premask.run.local import run_items

def prepare(recipe, out, **options):
    items = [
        WorkItem(name=name, function="item_functions:slow", arguments={"folder": str(out), "name": name, "seconds": 60})
        for name in ("a", "b")
    ]
    run_items(items, workers=2)

module = sys.modules["premask.prepare"] = types.ModuleType("premask.prepare")
module.prepare = prepare
from premask.cli import main
main()
"""


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [
        (signal.SIGINT, 130, "premask: error: interrupted; run the same command again to go on where it stopped\n"),
        (signal.SIGTERM, 143, ""),
    ],
)
def test_signals_end_the_workers(tmp_path: Path, number: signal.Signals, code: int, text: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    out = tmp_path / "out"
    out.mkdir()
    functions = Path(__file__).parent / "run"
    driver = subprocess.Popen(
        [sys.executable, script, "prepare", "s", "--tokenizer", "t", "--out", out],
        env={**os.environ, "PYTHONPATH": str(functions), "PREMASK_DEBUG": ""},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: all((out / f"temporary-{name}").exists() for name in "ab"))
        pids = [int((out / f"{name}.1").read_text()) for name in "ab"]
        driver.send_signal(number)
        _, err = driver.communicate(timeout=20)
    finally:
        driver.kill()
        driver.wait()
    assert (driver.returncode, err.lstrip("\n")) == (code, text)
    assert not list(out.glob("temporary-*"))
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)
