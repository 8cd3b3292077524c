"""Acknowledged means committed: each reading is stored exactly once.

The service, or Wattline's own database, is killed at random moments.
"""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import psycopg
import pytest

from app.postgres.embedded import running
from tests.fixtures.database import available_engines
from tests.fixtures.retrying import Load, check_stored
from tests.fixtures.service import Process, serving


async def kill_rounds(process: Process, rounds: int, kill: Callable[[], Awaitable[None]]) -> Load:
    """Kills something, under load, at a random moment in each round, and waits until the service is ready again."""
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
        await kill()
        await asyncio.to_thread(process.await_ready)
    load.done = True
    await sending
    assert load.sent_again >= rounds
    return load


async def kill_and_check(process: Process, connection: psycopg.Connection, rounds: int) -> None:
    async def kill() -> None:
        process.signal_all(signal.SIGKILL)
        await asyncio.to_thread(process.popen.wait)
        process.start()

    check_stored(connection, await kill_rounds(process, rounds, kill))


async def test_every_reading_is_stored_once(server_process: Process, connection: psycopg.Connection) -> None:
    await kill_and_check(server_process, connection, rounds=2)


@pytest.mark.soak
async def test_every_reading_is_stored_once_after_many_kills(
    server_process: Process, connection: psycopg.Connection
) -> None:
    await kill_and_check(server_process, connection, rounds=20)


@pytest.mark.parametrize("engine", list(available_engines()))
async def test_every_reading_is_stored_once_although_the_embedded_database_is_killed(engine: str) -> None:
    # In /tmp itself: where root has no user namespaces, `nobody` could not enter pytest's own directory.
    with tempfile.TemporaryDirectory(prefix="wattline-test-") as directory:
        pid_file = Path(directory) / "postgres" / "postmaster.pid"
        pg_bin = str(available_engines()[engine].bin)
        with serving("", WATTLINE_DATA_DIR=directory, WATTLINE_PG_BIN=pg_bin, WATTLINE_LOG_LEVEL="error") as process:

            async def kill() -> None:
                os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)

            load = await kill_rounds(process, 2, kill)
            with running(Path(directory), start=False) as url, psycopg.connect(url) as connection:
                check_stored(connection, load)
            process.popen.send_signal(signal.SIGTERM)
            assert process.await_end() == 0
        assert not pid_file.exists()
