"""Answers say how fresh they are, and house-keeping fails no batch, while batches are stored all the time."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, NamedTuple

import httpx
import psycopg

from app.database import TRANSIENT, connect
from app.ingest.quarantine import Source
from app.ops.maintenance import maintain
from app.telemetry.reading import MeterReading, VehicleReading
from tests.fixtures.readings import batch_of, writing

VEHICLES = [f"v{n}" for n in range(4)]
BITS = 28
"""Each reading of a device has an energy of its own power of two, so that a sum tells which readings are in it."""


class Answered(NamedTuple):
    """What one answer about a vehicle says: the bits of the readings that are in it."""

    as_of: datetime
    dc: int
    paired_ac: int


class Fleet:
    """Vehicles that report once together with their meter in each of some minutes, late ones among them."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.random = Random(5)
        self.committed: dict[str, list[tuple[datetime, int]]] = defaultdict(list)
        self.answers: dict[str, list[Answered]] = defaultdict(list)

    async def report(self, vehicle: str, seconds: float) -> None:
        now = datetime.now(UTC).replace(second=30, microsecond=0)
        minutes = self.random.sample([*range(1, 10), *range(15, 90), *range(600, 620)], BITS)
        for bit, minute in enumerate(minutes):
            await asyncio.sleep(self.random.uniform(0, 2 * seconds / BITS))
            at, energy = (now - timedelta(minutes=minute)).isoformat(), 2**bit / 1_000_000
            meter = {"meterId": f"m{vehicle}", "timestamp": at}
            both = [meter | {"kwhConsumedAc": energy}, meter | {"vehicleId": vehicle, "kwhDeliveredDc": energy}]
            answer = await self.client.post("/v1/telemetry", json=both)
            assert answer.json()["inserted"] == 2
            self.committed[vehicle].append((datetime.fromisoformat(answer.json()["committedAt"]), bit))

    async def ask(self, vehicle: str) -> datetime | None:
        answer = await self.client.get(f"/v1/analytics/performance/{vehicle}", params={"hours": 24})
        document = answer.json()
        if answer.status_code == 404 or document["asOf"] is None:
            return None
        sums = [round(document[total] * 1_000_000) for total in ("totalDcDelivery", "totalAcConsumption")]
        answered = Answered(datetime.fromisoformat(document["asOf"]), *sums)
        self.answers[vehicle].append(answered)
        return answered.as_of

    async def ask_until_all_must_be_in(self, vehicle: str) -> None:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            as_of = await self.ask(vehicle)
            committed = self.committed[vehicle]
            if as_of is not None and len(committed) == BITS and as_of > max(committed)[0]:
                return
            await asyncio.sleep(self.random.uniform(0, 0.05))
        raise AssertionError("asOf stands still")

    def check(self) -> None:
        for vehicle, answers in self.answers.items():
            for answered in answers:
                promised = sum(2**bit for at, bit in self.committed[vehicle] if at < answered.as_of)
                assert promised & ~answered.dc == 0
                assert promised & ~answered.paired_ac == 0


async def repeat(work: Callable[[], object]) -> None:
    """Does the work over and over in a thread, until it is cancelled."""
    while True:
        await asyncio.to_thread(work)
        await asyncio.sleep(0.01)


async def stopped(*loops: asyncio.Task[None]) -> None:
    """Ends loops; an error that one has ended with is raised."""
    for loop in loops:
        loop.cancel()
    for result in await asyncio.gather(*loops, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


async def test_what_was_committed_before_as_of_is_in_the_answer(
    client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    fleet = Fleet(client)
    refreshing = asyncio.create_task(repeat(lambda: connection.execute("CALL refresh_aggregates()")))
    async with asyncio.TaskGroup() as group:
        for vehicle in VEHICLES:
            group.create_task(fleet.report(vehicle, 3))
            group.create_task(fleet.ask_until_all_must_be_in(vehicle))
    await stopped(refreshing)
    fleet.check()
    assert all(len({answered.as_of for answered in fleet.answers[vehicle]}) > 5 for vehicle in VEHICLES)


SECONDS = 4
OLD = timedelta(days=40)
CHUNKS = """
    SELECT format('%I.%I', chunk_schema, chunk_name) FROM timescaledb_information.chunks
    WHERE hypertable_name = ANY (ARRAY['meter_reading', 'vehicle_reading'])
"""


def convert_chunks(connection: psycopg.Connection) -> None:
    """Moves all chunks into the columnstore, also those that are written to; which may lose against a batch."""
    for (chunk,) in connection.execute(CHUNKS).fetchall():
        try:
            connection.execute("CALL convert_to_columnstore(%s::regclass)", [chunk])
        except (*TRANSIENT, psycopg.errors.UndefinedTable):
            continue


def drop_chunks(connection: psycopg.Connection) -> None:
    """Retention. The batches go on to bring readings that are too old."""
    for table in ("meter_reading", "vehicle_reading"):
        try:
            connection.execute("SELECT drop_chunks(%s::regclass, now() - INTERVAL '30 days')", [table])
        except TRANSIENT:
            continue


async def maintain_all_the_time(url: str) -> None:
    connection = await connect(url)
    try:
        while True:
            try:
                await maintain(connection)
            except TRANSIENT:
                pass
            await asyncio.sleep(0.05)
    finally:
        await connection.close()


class Traffic:
    """Batches of fresh, late and far too old readings, some of them sent again."""

    def __init__(self) -> None:
        self.random = Random(6)
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.sent: list[tuple[MeterReading, VehicleReading]] = []

    def pair(self, client: int, number: int) -> tuple[MeterReading, VehicleReading]:
        age = self.random.choice([timedelta(0), timedelta(0), timedelta(hours=3), timedelta(days=3), OLD])
        at = self.now - age + timedelta(milliseconds=number)
        ts_us = round(at.timestamp() * 1_000_000)
        return MeterReading(f"m{client}", ts_us, number), VehicleReading(f"v{client}", ts_us, number)

    async def send(self, url: str, client: int) -> None:
        """Sends for some seconds through a writer of its own. Each batch must be stored at once."""
        deadline = time.monotonic() + SECONDS
        number = 0
        async with writing(url) as writer:
            while time.monotonic() < deadline:
                new = [self.pair(client, number := number + 1) for _ in range(self.random.randrange(1, 20))]
                again = self.random.sample(self.sent, min(len(self.sent), self.random.choice([0, 0, 3])))
                batch = batch_of(*(reading for pair in (*new, *again) for reading in pair))
                receipt = await writer.store(batch, Source.HTTP)
                assert receipt.received == receipt.inserted + receipt.duplicates
                self.sent += new

    def kept(self) -> set[tuple[int, int]]:
        """Instant and energy of the meter readings that are young enough to be kept."""
        oldest = (self.now - OLD / 2).timestamp() * 1_000_000
        return {(meter.ts_us, meter.ac_milliwh) for meter, _ in self.sent if meter.ts_us > oldest}


async def test_house_keeping_fails_no_batch(database_url: str, engine: str) -> None:
    traffic = Traffic()
    house_keepers: list[Callable[[psycopg.Connection], Any]] = [lambda c: c.execute("CALL refresh_aggregates()")]
    if engine == "timescale":
        house_keepers += [convert_chunks, drop_chunks]
    connections = [psycopg.connect(database_url, autocommit=True) for _ in house_keepers]
    loops = [asyncio.create_task(maintain_all_the_time(database_url))]
    for work, connection in zip(house_keepers, connections, strict=True):
        loops.append(asyncio.create_task(repeat(lambda work=work, connection=connection: work(connection))))  # type: ignore[misc]
    async with asyncio.TaskGroup() as group:
        for client in range(4):
            group.create_task(traffic.send(database_url, client))
    await stopped(*loops)
    with psycopg.connect(database_url) as check:
        rows = check.execute(
            "SELECT ts, ac_milliwh FROM meter_reading WHERE ts > now() - INTERVAL '20 days'"
        ).fetchall()
    assert {(round(ts.timestamp() * 1_000_000), ac) for ts, ac in rows} == traffic.kept()
    for connection in connections:
        connection.close()
