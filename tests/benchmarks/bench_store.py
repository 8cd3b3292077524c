"""`store` against a bare binary COPY of the same rows, in turns."""

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import count
from statistics import median

import psycopg
import pytest
import uvloop
from pytest_benchmark.fixture import BenchmarkFixture

from app.database import connect
from app.ingest.batch import Batch, Row, Source
from app.ingest.store.statements import METER
from app.ingest.store.writer import Writer
from app.telemetry.instant import EPOCH_US
from app.telemetry.reading import MeterReading

METERS = 5_000
BATCHES = 400
BATCH_READINGS = 1_000
IN_FLIGHT = 32
ROUNDS = 7
COPY_READINGS = 5_000

TWIN = {
    "timescale": """
        CREATE TABLE twin (LIKE meter_reading INCLUDING DEFAULTS, PRIMARY KEY (ts, meter_id));
        SELECT create_hypertable('twin', by_range('ts', INTERVAL '1 day'), create_default_indexes => false);
    """,
    "plain": """
        CREATE TABLE twin (LIKE meter_reading INCLUDING DEFAULTS, PRIMARY KEY (meter_id, ts)) PARTITION BY RANGE (ts);
        CREATE TABLE twin_yesterday PARTITION OF twin FOR VALUES FROM (current_date - 1) TO (current_date);
        CREATE TABLE twin_today PARTITION OF twin FOR VALUES FROM (current_date) TO (current_date + 1);
    """,
}


def batches(round_number: int) -> list[Batch]:
    """Returns 400,000 readings of 5,000 meters, the last of them now, each round at other instants."""
    start_us = time.time_ns() // 1000 - 400_000_000 + round_number
    readings = [
        MeterReading(f"meter-{n % METERS}", start_us + n // METERS * 5_000_000 + n % METERS * 10, 1000 + n % 77, 23_000)
        for n in range(BATCHES * BATCH_READINGS)
    ]
    cuts = range(0, len(readings), BATCH_READINGS)
    return [Batch(BATCH_READINGS, readings[cut : cut + BATCH_READINGS], [], []) for cut in cuts]


async def store_all(writer: Writer, to_send: list[Batch]) -> None:
    remaining = iter(to_send)

    async def client() -> None:
        for batch in remaining:
            receipt = await writer.store(batch, Source.HTTP)
            assert receipt.inserted == BATCH_READINGS

    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))


async def copy_all(connection: psycopg.AsyncConnection, rows: list[Row]) -> None:
    for cut in range(0, len(rows), COPY_READINGS):
        async with (
            connection.transaction(),
            connection.cursor().copy(METER.copy.replace("meter_reading", "twin").encode()) as copy,
        ):
            copy.set_types(METER.copy_types)
            for row in rows[cut : cut + COPY_READINGS]:
                await copy.write_row(row)


class Contest:
    """Both sides, prepared: they are connected, the devices are known, the partitions exist."""

    def __init__(self, runner: asyncio.Runner, url: str) -> None:
        self.runner = runner
        self.writer = Writer(url, queue_max_readings=1_000_000, new_devices_per_hour=None)
        self.connection = runner.run(connect(url))
        self.writing = runner.run(self._start())
        self.reference_seconds: list[float] = []
        self.store_seconds: list[float] = []

    async def _start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.writer.run())

    def round(self, number: int) -> None:
        """Runs the reference, then `store`, with the same readings."""
        to_send = batches(number)
        ids = {f"meter-{n}": n for n in range(METERS)}
        rows = [
            (r.ts_us - EPOCH_US, ids[r.meter_id], r.ac_milliwh, r.voltage_centiv)
            for batch in to_send
            for r in batch.meter
        ]
        started = time.perf_counter()
        self.runner.run(copy_all(self.connection, rows))
        between = time.perf_counter()
        self.runner.run(store_all(self.writer, to_send))
        self.reference_seconds.append(between - started)
        self.store_seconds.append(time.perf_counter() - between)

    def close(self) -> None:
        self.writer.close()

        async def end() -> None:
            await self.writing
            await self.connection.close()

        self.runner.run(end())


@pytest.fixture
def contest(database_url: str, connection: psycopg.Connection, engine: str) -> Iterator[Contest]:
    connection.execute(TWIN[engine].encode())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        contest = Contest(runner, database_url)
        contest.round(0)  # registers the devices
        contest.store_seconds.clear()
        contest.reference_seconds.clear()
        yield contest
        contest.close()


def test_store_against_bare_copy(contest: Contest, benchmark: BenchmarkFixture, report: Callable[[str], None]) -> None:
    rounds = count(1)
    benchmark.pedantic(lambda: contest.round(next(rounds)), rounds=ROUNDS)  # type: ignore[no-untyped-call]
    readings = BATCHES * BATCH_READINGS
    ratios = [ref / own for ref, own in zip(contest.reference_seconds, contest.store_seconds, strict=True)]
    benchmark.extra_info["ratio"] = median(ratios)
    report(
        f"store {readings / median(contest.store_seconds):,.0f} readings/s, "
        f"bare COPY {readings / median(contest.reference_seconds):,.0f}, "
        f"ratio median {median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f} of {ROUNDS} rounds)"
    )
