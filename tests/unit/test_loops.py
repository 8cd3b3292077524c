"""A loop in the background that fails ends the service; how the rest stops is not spoilt by it."""

import asyncio
import signal

import pytest
from structlog.testing import capture_logs

from app import main
from app.ingest.store.writer import Writer
from app.settings import Settings
from app.webhooks.deliver import tell_forever
from tests.fixtures.waiting import DEADLINE_S

NOWHERE = "postgresql://127.0.0.1:1/none"


@pytest.mark.parametrize("failing", ["maintain_forever", "judge_forever", "tell_forever"])
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

    names = ["maintain_forever", "judge_forever", "tell_forever"]
    for name in names:
        monkeypatch.setattr(main, name, loop(name))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    writer = Writer(NOWHERE, queue_max_readings=1, new_devices_per_hour=None)
    try:
        with capture_logs() as log:
            async with asyncio.timeout(DEADLINE_S), main.ingesting(NOWHERE, Settings(), writer, None):
                await terminated.wait()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    assert sorted(ended) == sorted(set(names) - {failing})
    assert [line["event"] for line in log] == ["task_failed"]


async def test_a_proxy_for_other_programs_does_not_end_the_webhooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    settings = Settings(webhook_url="http://127.0.0.1:1/", webhook_secret=f"whsec_{'A' * 32}")
    telling = asyncio.create_task(tell_forever(NOWHERE, settings))
    _, running = await asyncio.wait({telling}, timeout=0.3)
    telling.cancel()
    assert running
