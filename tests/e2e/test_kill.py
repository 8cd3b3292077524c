"""Acknowledged means committed: each reading is stored exactly once.

The service, or Wattline's own database, is killed at random moments.
"""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, LiteralString

import httpx
import psycopg
import pytest

from app.postgres.embedded import running
from tests.fixtures.database import available_engines
from tests.fixtures.service import Process, serving

CLIENTS = 6

Row = tuple[str, datetime, int]


class Load:
    """Clients that send each batch until its receipt comes."""

    def __init__(self, base_url: str, random: Random) -> None:
        self.base_url = base_url
        self.random = random
        self.meters: set[Row] = set()
        self.vehicles: set[Row] = set()
        self.acknowledged = self.sent_again = 0
        self.done = False
        self.start = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=5)

    async def run(self) -> None:
        """Sends until `done`; then each client waits for the receipt of its last batch."""
        async with asyncio.TaskGroup() as group:
            for client in range(CLIENTS):
                group.create_task(self._send(client))

    async def _send(self, client: int) -> None:
        async with httpx.AsyncClient(base_url=self.base_url, timeout=10) as http:
            number = 0
            while not self.done:
                batch = self._batch(client, number)
                while not await self._receipt_came(http, batch):
                    self.sent_again += 1
                    await asyncio.sleep(self.random.uniform(0, 0.05))
                self.acknowledged += 1
                number += 1

    async def _receipt_came(self, http: httpx.AsyncClient, batch: list[dict[str, Any]]) -> bool:
        try:
            answer = await http.post("/v1/telemetry", json=batch)
        except httpx.TransportError:
            return False
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return False
        assert answer.status_code == httpx.codes.OK, answer.text
        receipt = answer.json()
        assert receipt["inserted"] + receipt["duplicates"] == len(batch)
        assert receipt["conflicts"] == 0
        return True

    def _batch(self, client: int, number: int) -> list[dict[str, Any]]:
        """Returns new readings of meters that all clients report and of the client's own vehicles; some are late."""
        batch: list[dict[str, Any]] = []
        for n in range(self.random.randrange(1, 40)):
            age = timedelta(hours=self.random.choice([0, 0, 0, 0, 1, 30]))
            at = self.start - age + timedelta(milliseconds=number * CLIENTS + client)
            meter = (f"m{n}", at, self.random.randrange(10**6))
            vehicle = (f"v{client}.{n}", at, self.random.randrange(10**6))
            self.meters.add(meter)
            self.vehicles.add(vehicle)
            batch.append({"meterId": meter[0], "timestamp": at.isoformat(), "kwhConsumedAc": meter[2] / 1e6})
            batch.append({"vehicleId": vehicle[0], "timestamp": at.isoformat(), "kwhDeliveredDc": vehicle[2] / 1e6})
        return batch


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


def check_stored(connection: psycopg.Connection, load: Load) -> None:
    """Checks that exactly the readings sent are stored, and that the latest states are the newest of them."""

    def rows(query: LiteralString) -> list[Row]:
        return sorted(connection.execute(query).fetchall())

    meters = "SELECT external_id, ts, ac_milliwh FROM {} JOIN meter ON id = meter_id"
    vehicles = "SELECT external_id, ts, dc_milliwh FROM {} JOIN vehicle ON id = vehicle_id"
    assert rows(meters.format("meter_reading")) == sorted(load.meters)
    assert rows(vehicles.format("vehicle_reading")) == sorted(load.vehicles)
    assert rows(meters.format("meter_state")) == newest(load.meters)
    assert rows(vehicles.format("vehicle_state")) == newest(load.vehicles)


def newest(sent: set[Row]) -> list[Row]:
    return sorted({device: (device, at, energy) for device, at, energy in sorted(sent)}.values())


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
