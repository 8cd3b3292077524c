"""The guard of the embedded server: how often it tries, and what it says."""

from collections.abc import Callable
from threading import Event

import pytest

from app.errors import SetupError
from app.postgres.guard import LONGEST_PAUSE_SECONDS, LOOK_SECONDS, keep_running


class Ended(Event):
    """Lets the guard look so many times, without waiting, and records the pauses."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout
        self.pauses.append(timeout)
        return len(self.pauses) > self.looks


def pauses(looks: int, start_again: Callable[[], str | None]) -> list[float]:
    ended = Ended(looks)
    keep_running(start_again, ended)
    return ended.pauses


def fails() -> None:
    raise SetupError("no room")


@pytest.mark.parametrize("start_again", [fails, lambda: "killed"])
def test_it_tries_less_and_less_often_while_the_server_dies(start_again: Callable[[], str | None]) -> None:
    waited = pauses(10, start_again)
    assert waited[:4] == [LOOK_SECONDS * 2**n for n in range(4)]
    assert waited[-1] == LONGEST_PAUSE_SECONDS


def test_it_looks_often_while_the_server_runs() -> None:
    assert set(pauses(100, lambda: None)) == {LOOK_SECONDS}


def test_a_server_that_has_run_for_long_is_started_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.postgres.guard.STEADY_SECONDS", 0)
    deaths = iter(["killed", None, "killed", None])
    assert pauses(4, lambda: next(deaths)) == [LOOK_SECONDS * n for n in (1, 2, 1, 2, 1)]


def test_each_cause_is_said_once_whatever_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    ends = iter(["12:01 [7] FATAL: no room", "12:02 [8] FATAL: no room", "12:03 [9] PANIC: broken", "12:04 FATAL: no"])
    pauses(4, lambda: next(ends))
    assert capsys.readouterr().err.splitlines() == [
        f"The database died and runs again. Its log ended: {end}"
        for end in ("12:01 [7] FATAL: no room", "12:03 [9] PANIC: broken", "12:04 FATAL: no")
    ]
