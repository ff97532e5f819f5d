"""Seconds by stage: each counts once, for the innermost."""

import time

import pytest

from premask.clock import spent, stage, timed


def test_a_second_counts_for_the_innermost_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    def items():
        wait(1)
        yield "a"
        wait(2)
        yield "b"
        wait(4)

    with spent() as found, stage("outer"):
        wait(8)
        for _ in timed("items", items()):
            with stage("inner"):
                wait(16)
                with stage("outer"):
                    wait(32)
            wait(64)
    assert found == {"outer": 8 + 64 * 2 + 32 * 2, "items": 7, "inner": 32}


def test_a_stage_that_fails_is_counted_too() -> None:
    with spent() as found:
        with pytest.raises(ValueError, match="no"), stage("failing"):
            raise ValueError("no")
        with stage("next"):
            pass
    assert set(found) == {"failing", "next"}
