"""Progress: nothing, now and then a line, or a bar."""

import io
import time

import pytest

from premask.show.progress import BarProgress, LineProgress, Progress, SilentProgress, progress_for


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(progress: Progress) -> None:
    progress.phase("read [1]", 1000, "row")
    for _ in range(1000):
        progress.advance()
    progress.note("a [bold] note")
    progress.phase("pack", None, "example")
    progress.advance(7)
    progress.close()
    progress.close()


@pytest.mark.parametrize(
    ("silent", "stream", "kind"),
    [
        (True, Terminal(), SilentProgress),
        (False, Terminal(), BarProgress),
        (False, io.StringIO(), LineProgress),
    ],
)
def test_what_suits_a_stream(silent: bool, stream: io.StringIO, kind: type) -> None:
    progress = progress_for(silent=silent, stream=stream)
    assert isinstance(progress, kind)
    progress.close()


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    work(SilentProgress())
    assert capsys.readouterr() == ("", "")


def test_a_short_run_names_its_phases() -> None:
    out = io.StringIO()
    work(LineProgress(out))
    LineProgress(out).phase("write", 1, "shard")
    assert out.getvalue().splitlines() == [
        "premask: read [1] 1,000 rows",
        "premask: a [bold] note",
        "premask: pack examples",
        "premask: write 1 shard",
    ]


def test_a_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    out = io.StringIO()
    progress = LineProgress(out, interval=5.0)
    progress.phase("read", 40_000, "row")
    for _ in range(12):
        now[0] += 1.0
        progress.advance(1000)
    progress.phase("pack", None, "example")
    now[0] += 5.0
    progress.advance(1234)
    assert out.getvalue().splitlines() == [
        "premask: read 40,000 rows",
        "premask: read: 5,000 of 40,000 rows",
        "premask: read: 10,000 of 40,000 rows",
        "premask: pack examples",
        "premask: pack: 1,234 examples",
    ]


def test_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    work(BarProgress(out))
    assert "a [bold] note" in out.getvalue()
    assert "read [1]" in out.getvalue()
    assert "7/?" in out.getvalue()
