"""Acknowledged means committed: the service is killed at random moments, and each reading is stored exactly once."""

import asyncio
import signal
import time
from random import Random

import psycopg
import pytest

from tests.fixtures.retrying import Load, check_stored
from tests.fixtures.service import Process


async def kill_rounds(process: Process, rounds: int) -> Load:
    """Kills the service, under load, at a random moment in each round, and starts it again."""
    seed = time.time_ns() % 1_000_000
    print(f"seed: {seed}")  # noqa: T201 - pytest shows it with a failure
    random = Random(seed)
    load = Load(process.base_url, random)
    sending = asyncio.create_task(load.run())
    for _ in range(rounds):
        before = load.acknowledged
        await asyncio.sleep(random.uniform(0, 0.5))
        while load.acknowledged == before and not sending.done():  # noqa: ASYNC110 - a round needs some load
            await asyncio.sleep(0)
        process.signal_all(signal.SIGKILL)
        await asyncio.to_thread(process.popen.wait)
        process.start()
        await asyncio.to_thread(process.await_ready)
    load.done = True
    await sending
    return load


async def kill_and_check(process: Process, connection: psycopg.Connection, rounds: int) -> None:
    load = await kill_rounds(process, rounds)
    assert load.sent_again >= rounds
    check_stored(connection, load)


async def test_every_reading_is_stored_once(server_process: Process, connection: psycopg.Connection) -> None:
    await kill_and_check(server_process, connection, rounds=2)


@pytest.mark.soak
async def test_every_reading_is_stored_once_after_many_kills(
    server_process: Process, connection: psycopg.Connection
) -> None:
    await kill_and_check(server_process, connection, rounds=20)
