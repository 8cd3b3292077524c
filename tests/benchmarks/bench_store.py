"""`store` against a bare binary COPY of the same rows, and with registers against differences, in turns."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
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
    return in_batches(readings)


def in_batches(readings: list[MeterReading]) -> list[Batch]:
    cuts = range(0, len(readings), BATCH_READINGS)
    return [Batch(BATCH_READINGS, readings[cut : cut + BATCH_READINGS], [], []) for cut in cuts]


def following_batches(start_us: int, round_number: int, *, of_registers: bool) -> list[Batch]:
    """Returns as many readings, each device's in order; those of a round are later than those of the round before."""
    name = "register" if of_registers else "difference"
    readings = []
    for n in range(BATCHES * BATCH_READINGS):
        step = round_number * (BATCHES * BATCH_READINGS // METERS) + n // METERS
        ts_us = start_us + step * 500_000 + n % METERS * 10
        if of_registers:
            readings.append(MeterReading(f"{name}-{n % METERS}", ts_us, None, 23_000, 20_957_000_000 + 1_070 * step))
        else:
            readings.append(MeterReading(f"{name}-{n % METERS}", ts_us, 1_070, 23_000))
    return in_batches(readings)


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
            (r.ts_us - EPOCH_US, ids[r.meter_id], r.ac_milliwh, r.voltage_centiv, r.register_milliwh)
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


WRITER = """
    SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'wattline'
"""


class Cost:
    """The seconds that each way has taken: by the clock, and of the processor in this process and in the database."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.own: list[float] = []
        self.database: list[float] = []

    @contextmanager
    def measured(self, backends: list[int]) -> Iterator[None]:
        started, own, database = time.perf_counter(), time.process_time(), of_processes(backends)
        yield
        self.seconds.append(time.perf_counter() - started)
        self.own.append(time.process_time() - own)
        self.database.append(of_processes(backends) - database)

    def told(self) -> str:
        readings = BATCHES * BATCH_READINGS
        own, database = (1e6 * median(seconds) / readings for seconds in (self.own, self.database))
        return f"{readings / median(self.seconds):,.0f} readings/s ({own:.1f} + {database:.1f} us of CPU each)"


def of_processes(numbers: list[int]) -> float:
    """Returns the seconds of the processor that these processes have used."""
    fields = [Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split() for number in numbers]
    return sum(int(field) for of_process in fields for field in of_process[11:13]) / os.sysconf("SC_CLK_TCK")


def test_registers_against_differences(
    database_url: str, connection: psycopg.Connection, benchmark: BenchmarkFixture, report: Callable[[str], None]
) -> None:
    start_us = time.time_ns() // 1000 - 500_000_000
    costs = {of_registers: Cost() for of_registers in (False, True)}
    rounds = count(0)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        writer = Writer(database_url, queue_max_readings=1_000_000, new_devices_per_hour=None)

        async def start() -> asyncio.Task[None]:
            return asyncio.create_task(writer.run())

        writing = runner.run(start())

        def contest() -> None:
            number = next(rounds)
            for of_registers, cost in costs.items():
                to_send = following_batches(start_us, number, of_registers=of_registers)
                backends = [pid for (pid,) in connection.execute(WRITER).fetchall()]
                with cost.measured(backends):
                    runner.run(store_all(writer, to_send))

        contest()  # registers the devices
        for cost in costs.values():
            for seconds in (cost.seconds, cost.own, cost.database):
                seconds.clear()
        benchmark.pedantic(contest, rounds=ROUNDS)  # type: ignore[no-untyped-call]
        writer.close()

        async def end() -> None:
            await writing

        runner.run(end())
    ratios = [ours / theirs for ours, theirs in zip(costs[False].seconds, costs[True].seconds, strict=True)]
    benchmark.extra_info["ratio"] = median(ratios)
    report(
        f"differences {costs[False].told()}, registers {costs[True].told()}, "
        f"ratio median {median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f} of {ROUNDS} rounds)"
    )
    assert median(ratios) >= 0.5
