"""Devices may be called silent only after they have had the time to send what they could not."""

import pytest

from app.analytics.alerts import evaluator


class Clocks:
    """Both clocks of a machine, in seconds."""

    def __init__(self) -> None:
        self.running = self.wall = 1000.0

    def monotonic(self) -> float:
        return self.running

    def time(self) -> float:
        return self.wall

    def advance(self, seconds: float) -> None:
        self.running += seconds
        self.wall += seconds


def test_the_grace_begins_anew_when_the_machine_was_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks()
    monkeypatch.setattr(evaluator, "time", clocks)
    grace = evaluator.Grace()
    clocks.advance(599)
    assert not grace.is_over()
    clocks.advance(2)
    assert grace.is_over()
    clocks.wall += 3600
    assert not grace.is_over()
    clocks.advance(599)
    assert not grace.is_over()
    clocks.advance(2)
    assert grace.is_over()
