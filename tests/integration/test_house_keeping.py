"""Answers say how fresh they are, and house-keeping fails no batch, while batches are stored all the time."""

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import NamedTuple

import httpx
import psycopg

from app.database import connect
from app.faults import TRANSIENT
from app.ingest.batch import Source
from app.ops.maintenance import maintain
from app.telemetry.reading import MeterReading, VehicleReading
from tests.fixtures.readings import Reading, batch_of, store, writing
from tests.fixtures.waiting import DEADLINE_S

VEHICLES = [f"v{n}" for n in range(4)]
BITS = 28
"""Each reading of a device has an energy of its own power of two, so that a sum tells which readings are in it."""


class Answered(NamedTuple):
    """The answer about a vehicle or its meter, with the bits of the readings that it includes."""

    as_of: datetime
    milliwh: int


class Fleet:
    """Vehicles that each report once, together with their meter, in some minutes, with late readings among them."""

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
        """Asks for the energy of both devices; returns the instant up to which both answers are complete."""
        sums = []
        answer = await self.client.get(f"/v1/analytics/performance/{vehicle}", params={"hours": 24})
        document = answer.json()
        if answer.status_code != 404:
            sums.append((document["asOf"], document["totalDcDelivery"]))
        path = f"/v1/analytics/meters/m{vehicle}/series"
        answer = await self.client.get(path, params={"hours": 24, "bucket": "1m"})
        document = answer.json()
        if answer.status_code != 404:
            sums.append((document["asOf"], sum(document["columns"]["acKwh"])))
        found = [Answered(datetime.fromisoformat(at), round(kwh * 1_000_000)) for at, kwh in sums if at is not None]
        self.answers[vehicle] += found
        return min(answered.as_of for answered in found) if len(found) == 2 else None

    async def ask_until_all_must_be_in(self, vehicle: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            as_of = await self.ask(vehicle)
            committed = self.committed[vehicle]
            if as_of is not None and len(committed) == BITS and as_of > max(committed)[0]:
                return
            await asyncio.sleep(self.random.uniform(0, 0.2))
        raise AssertionError("asOf stands still")

    def check(self) -> None:
        for vehicle, answers in self.answers.items():
            for answered in answers:
                promised = sum(2**bit for at, bit in self.committed[vehicle] if at < answered.as_of)
                assert promised & ~answered.milliwh == 0


async def repeat(work: Callable[[], object]) -> None:
    """Repeats the work in a thread until it is cancelled."""
    while True:
        await asyncio.to_thread(work)
        await asyncio.sleep(0.01)


async def stopped(*loops: asyncio.Task[None]) -> None:
    """Ends loops; raises an error with which one has ended."""
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
            group.create_task(fleet.report(vehicle, 2))
            group.create_task(fleet.ask_until_all_must_be_in(vehicle))
    await stopped(refreshing)
    fleet.check()
    assert all(len({answered.as_of for answered in fleet.answers[vehicle]}) > 5 for vehicle in VEHICLES)


CLIENTS = 4
SECONDS = 4
OLD = timedelta(days=40)
CONVERTED = timedelta(days=12)


def convert(connection: psycopg.Connection) -> None:
    """Moves the chunks of that day to the columnstore, as its policy does with chunks that HTTP no longer writes to.

    An insert into the very chunk waits for up to 5 s, until the conversion has given up waiting for it in turn.
    """
    chunks = connection.execute(
        """
        SELECT format('%%I.%%I', chunk_schema, chunk_name) FROM timescaledb_information.chunks
        WHERE hypertable_name = ANY (ARRAY['meter_reading', 'vehicle_reading'])
            AND range_start <= now() - %(age)s AND now() - %(age)s < range_end
        """,
        {"age": CONVERTED},
    ).fetchall()
    assert len(chunks) == 2
    for (chunk,) in chunks:
        connection.execute("CALL convert_to_columnstore(%s::regclass)", [chunk])


def drop_old(connection: psycopg.Connection) -> None:
    """Drops old chunks, which batches make again; it may lose against a batch."""
    for table in ("meter_reading", "vehicle_reading"):
        with suppress(*TRANSIENT):
            connection.execute("SELECT drop_chunks(%s::regclass, now() - INTERVAL '30 days')", [table])


async def maintain_all_the_time(url: str) -> None:
    connection = await connect(url)
    try:
        while True:
            with suppress(*TRANSIENT):
                await maintain(connection)
            await asyncio.sleep(0.05)
    finally:
        await connection.close()


def _pair(client: int, number: int, at: datetime) -> tuple[MeterReading, VehicleReading]:
    ts_us = round(at.timestamp() * 1_000_000) + number * 1_000
    return MeterReading(f"m{client}", ts_us, number), VehicleReading(f"v{client}", ts_us, number)


class Traffic:
    """Batches of readings of some ages, a few of them sent again."""

    def __init__(self, url: str, ages: list[timedelta]) -> None:
        self.url = url
        self.ages = ages
        self.random = Random(6)
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.sent: list[tuple[MeterReading, VehicleReading]] = []

    async def send(self, client: int) -> None:
        """Sends for some seconds through a writer of its own. Each batch must be stored at once."""
        deadline = time.monotonic() + SECONDS
        numbers = itertools.count()
        async with writing(self.url) as writer:
            while time.monotonic() < deadline:
                few = itertools.islice(numbers, self.random.randrange(1, 20))
                new = [_pair(client, number, self.now - self.random.choice(self.ages)) for number in few]
                again = self.random.sample(self.sent, min(len(self.sent), self.random.choice([0, 0, 3])))
                readings: list[Reading] = [reading for pair in new + again for reading in pair]
                batch = batch_of(*readings)
                receipt = await writer.store(batch, Source.HTTP)
                assert receipt.received == receipt.inserted + receipt.duplicates
                self.sent += new

    async def send_one(self, age: timedelta) -> None:
        """Sends a reading of each stream before the traffic begins."""
        self.sent.append(_pair(CLIENTS, 0, self.now - age))
        await store(self.url, *self.sent[-1])

    def kept(self) -> list[tuple[int, int]]:
        """Returns instant and energy of the meter readings that are young enough to be kept, sorted."""
        oldest = self.now.timestamp() * 1_000_000 - 20 * 86_400_000_000
        return sorted((meter.ts_us, meter.ac_milliwh or 0) for meter, _ in self.sent if meter.ts_us > oldest)


async def test_house_keeping_fails_no_batch(database_url: str, connection: psycopg.Connection, engine: str) -> None:
    traffic = Traffic(database_url, [timedelta(0), timedelta(0), timedelta(hours=3), timedelta(days=3)])
    await store(database_url, *_pair(CLIENTS, 0, traffic.now - OLD))
    await traffic.send_one(CONVERTED)
    works: list[Callable[[psycopg.Connection], object]] = [lambda its: its.execute("CALL refresh_aggregates()")]
    if engine == "timescale":
        works.append(drop_old)
        traffic.ages.append(OLD)
    with ExitStack() as stack:
        loops = [asyncio.create_task(maintain_all_the_time(database_url))]
        for work in works:
            own = stack.enter_context(psycopg.connect(database_url, autocommit=True))
            loops.append(asyncio.create_task(repeat(partial(work, own))))
        async with asyncio.TaskGroup() as group:
            for client in range(CLIENTS):
                group.create_task(traffic.send(client))
            if engine == "timescale":
                await asyncio.to_thread(convert, connection)
            traffic.ages.append(CONVERTED)
        await stopped(*loops)
    rows = connection.execute("SELECT ts, ac_milliwh FROM meter_reading WHERE ts > now() - INTERVAL '20 days'")
    assert sorted((round(ts.timestamp() * 1_000_000), ac) for ts, ac in rows.fetchall()) == traffic.kept()
