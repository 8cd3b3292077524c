"""Loops in the background: an error that they survive is reported, any other ends the service in good order."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from app import main
from app.ingest.store.writer import Writer
from app.loops import backoff_seconds, repeat
from app.ops.watch import Watch
from app.settings import Settings
from app.webhooks.deliver import deliver_forever
from tests.fixtures.waiting import DEADLINE_S

NOWHERE = "postgresql://127.0.0.1:1/none"


@pytest.mark.parametrize("failing", ["maintain_forever", "judge_forever", "deliver_forever", "watch"])
async def test_a_loop_that_fails_ends_the_service_in_good_order(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    terminated, ended = asyncio.Event(), list[str]()

    def loop(name: str) -> object:
        async def run(*_: object) -> None:
            if name == failing:
                raise ImportError
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(name)

        return run

    names = ["maintain_forever", "judge_forever", "deliver_forever"]
    for name in names:
        monkeypatch.setattr(main, name, loop(name))
    monkeypatch.setattr(Watch, "run", loop("watch"))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    writer = Writer(NOWHERE, queue_max_readings=1, new_devices_per_hour=None)
    try:
        with capture_logs() as log:
            watch = Watch(NOWHERE, Settings())
            async with asyncio.timeout(DEADLINE_S), main.ingesting(NOWHERE, Settings(), writer, None, watch):
                await terminated.wait()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    assert sorted(ended) == sorted({*names, "watch"} - {failing})
    assert [line["event"] for line in log] == ["task_failed"]


async def test_a_proxy_for_other_programs_does_not_end_the_webhooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    settings = Settings(webhook_url="http://127.0.0.1:1/", webhook_secret=f"whsec_{'A' * 32}")
    delivering = asyncio.create_task(deliver_forever(NOWHERE, settings))
    _, running = await asyncio.wait({delivering}, timeout=0.3)
    delivering.cancel()
    assert running


async def test_work_goes_on_after_an_error_with_what_it_needs_opened_anew() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[int]:
        events.append("opened")
        if events == ["opened"]:
            raise ConnectionRefusedError
        try:
            yield len(events)
        finally:
            events.append("closed")

    async def work(resource: int) -> None:
        events.append(f"work {resource}")
        if len(events) == 5:
            raise BrokenPipeError
        if len(events) == 9:
            raise ValueError  # a bug

    with pytest.raises(ValueError, match=r"^$"):
        await repeat(
            work,
            opened,
            period_seconds=0,
            survives=OSError,
            failed=lambda error: events.append(type(error).__name__),
        )
    assert events == [
        *("opened", "ConnectionRefusedError"),
        *("opened", "work 3", "work 3", "closed", "BrokenPipeError"),
        *("opened", "work 8", "closed"),
    ]


def test_pauses_double_up_to_the_longest() -> None:
    assert [backoff_seconds(n, first=0.5, longest=10) for n in range(7)] == [0.5, 1, 2, 4, 8, 10, 10]
    assert backoff_seconds(10_000, first=0.5, longest=10) == 10


GRANDCHILD = """
import os, threading
from app.loops import when_parent_ends
when_parent_ends(lambda: os._exit(0))
print(os.getpid(), flush=True)
threading.Event().wait(30)
print('still here')
"""


def test_a_process_ends_with_its_parent() -> None:
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {GRANDCHILD!r}]).wait()"
    with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        grandchild = int(parent.stdout.readline())
        os.kill(grandchild, 0)
        parent.kill()
        # The process holds the other end of the pipe as long as it lives.
        assert parent.stdout.read() == ""


async def test_an_error_in_place_of_a_cancellation_ends_a_loop() -> None:
    working = asyncio.Event()

    async def work(_: None) -> None:
        try:
            working.set()
            await asyncio.Event().wait()
        finally:
            raise ValueError  # as a rollback does that finds its connection lost

    @asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        yield

    survived = list[Exception]()
    loop = asyncio.create_task(repeat(work, opened, period_seconds=0.01, survives=ValueError, failed=survived.append))
    await working.wait()
    loop.cancel()
    await asyncio.wait({loop}, timeout=DEADLINE_S)
    assert loop.cancelled()
    assert survived == []
