"""House-keeping fails no batch: refresh, compression and dropping forced together under five times the sizing load."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from random import Random

import httpx
import psycopg
import pytest

from app.faults import TRANSIENT
from app.ops.refresh import refresh_aggregates
from tests.fixtures.engines import policy_jobs
from tests.fixtures.readings import counted
from tests.fixtures.sending import Reading, meter, vehicle
from tests.fixtures.service import Process

# Five times the 167 readings a second that 10,000 devices send.
READINGS_PER_SECOND = 5 * 167
CLIENTS = 5
DEVICES = 500
# The age of a batch: most are new, some are late.
AGES = [timedelta(0)] * 6 + [timedelta(hours=3), timedelta(days=1), timedelta(days=3), timedelta(days=6)]
ROUNDS = 3
"""Each kind of house-keeping is done as many times at least, whatever it takes."""

OLD_DAYS = "SELECT prepare_days(now() - INTERVAL '42 days', now() - INTERVAL '38 days')"
OLD = """
    INSERT INTO {table} (ts, {device}, {energy})
    SELECT now() - make_interval(days => %s, secs => n), 1, 1 FROM generate_series(1, 100) AS n
"""


def store_old(connection: psycopg.Connection, first: int, last: int) -> None:
    """Stores readings of a first device, so many days ago."""
    for table, device, energy in (
        ("meter_reading", "meter_id", "ac_milliwh"),
        ("vehicle_reading", "vehicle_id", "dc_milliwh"),
    ):
        for days in range(first, last):
            connection.execute(OLD.format(table=table, device=device, energy=energy).encode(), [days])


def drop_chunks(connection: psycopg.Connection) -> None:
    """Makes chunks of days long ago, and drops them."""
    store_old(connection, 39, 42)
    for table in ("meter_reading", "vehicle_reading"):
        connection.execute("SELECT drop_chunks(%s::regclass, now() - INTERVAL '35 days')", [table])


def drop_partitions(connection: psycopg.Connection) -> None:
    """Makes partitions of days long ago, and drops them as the maintenance loop does."""
    # In one transaction, since the server's own maintenance would drop the partitions before anything is in them.
    with connection.transaction():
        connection.execute(OLD_DAYS)
        store_old(connection, 39, 42)
    while connection.execute("SELECT drop_expired()").fetchone() == (True,):
        pass


def compress(connection: psycopg.Connection) -> None:
    """Converts the chunks that HTTP no longer writes to, and converts them back."""
    chunks = connection.execute(
        """
        SELECT format('%I.%I', chunk_schema, chunk_name) FROM timescaledb_information.chunks
        WHERE hypertable_name IN ('meter_reading', 'vehicle_reading')
            AND range_end BETWEEN now() - INTERVAL '35 days' AND now() - INTERVAL '8 days'
        """
    ).fetchall()
    assert len(chunks) >= 4
    for direction in ("columnstore", "rowstore"):
        for (chunk,) in chunks:
            connection.execute(f"CALL convert_to_{direction}(%s::regclass)".encode(), [chunk])


def run_jobs(connection: psycopg.Connection) -> None:
    """Runs the jobs but those that compress, whose chunks are taken by compress()."""
    for procedure in ("cagg_refresh", "policy_retention"):
        for job in policy_jobs(connection, procedure):
            connection.execute("CALL run_job(%s)", [job])


def refresh_all(connection: psycopg.Connection) -> None:
    connection.execute("CALL refresh_aggregates()")


WORKS: dict[str, list[Callable[[psycopg.Connection], None]]] = {
    "timescale": [drop_chunks, compress, run_jobs, refresh_all],
    "plain": [drop_partitions],
}


@contextmanager
def house_keeping(url: str, engine: str) -> Iterator[Counter[str]]:
    """Repeats each kind of house-keeping without a pause; yields how many times each has been done."""
    done: Counter[str] = Counter()
    ending = threading.Event()

    def repeat(work: Callable[[psycopg.Connection], None]) -> None:
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
            while not ending.is_set():
                # Two refreshes of one aggregate exclude each other, and a batch comes before the drop of its table.
                with suppress(*TRANSIENT):
                    work(connection)
                    done[work.__name__] += 1

    with ThreadPoolExecutor() as threads:
        loops = [threads.submit(repeat, work) for work in WORKS[engine]]
        try:
            yield done
        finally:
            ending.set()
    for loop in loops:
        loop.result()


class Load:
    """Batches of a fleet at a fixed rate; every one must be stored at its first attempt."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.random = Random(11)
        self.now = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=10)
        self.sent: list[Reading] = []
        self.latencies: list[float] = []

    async def send(self, client: int, done: Callable[[], bool]) -> None:
        """Sends a batch a second, or at once when it is late with it."""
        started = time.monotonic()
        async with httpx.AsyncClient(base_url=self.base_url, timeout=60) as http:
            number = 0
            while not done():
                await asyncio.sleep(max(0.0, started + number - time.monotonic()))
                batch = self.batch(client, number)
                asked = time.monotonic()
                answer = await http.post("/v1/telemetry", json=batch)
                self.latencies.append(time.monotonic() - asked)
                assert answer.status_code == httpx.codes.OK, answer.text
                receipt = answer.json()
                assert (receipt["inserted"], receipt["rejected"]) == (len(batch), [])
                self.sent += batch
                number += 1

    def batch(self, client: int, number: int) -> list[Reading]:
        at = self.now - self.random.choice(AGES) + timedelta(milliseconds=number, microseconds=client)
        first = (number * CLIENTS + client) * READINGS_PER_SECOND // CLIENTS
        return [
            make(at, (1 + n % 997) / 1_000_000, **{f"{make.__name__}_id": f"{make.__name__[0]}{n // 2 % DEVICES}"})
            for n in range(first, first + READINGS_PER_SECOND // CLIENTS)
            for make in ((meter, vehicle)[n % 2],)
        ]


@pytest.mark.parametrize("seconds", [5, pytest.param(300, marks=pytest.mark.soak)])
async def test_no_batch_fails_while_all_is_refreshed_compressed_and_dropped(
    server_process: Process, connection: psycopg.Connection, engine: str, seconds: int
) -> None:
    url = server_process.database_url
    connection.execute("SELECT prepare_days(now() - INTERVAL '15 days', now())")
    store_old(connection, 10, 13)
    load = Load(server_process.base_url)
    end = time.monotonic() + seconds
    with house_keeping(url, engine) as done:

        def enough() -> bool:
            return time.monotonic() > end and all(done[work.__name__] >= ROUNDS for work in WORKS[engine])

        async with asyncio.TaskGroup() as group:
            for client in range(CLIENTS):
                group.create_task(load.send(client, enough))
    print(f"{len(load.sent):,} readings, {dict(done)}, slowest batch {max(load.latencies):.2f} s")  # noqa: T201
    refresh_aggregates(url, None, None)
    for stream, energy in (("meter", "kwhConsumedAc"), ("vehicle", "kwhDeliveredDc")):
        mine = [reading for reading in load.sent if energy in reading]
        since = "ts > now() - INTERVAL '8 days'"
        query = f"SELECT count(*), sum({energy[-2:].lower()}_milliwh) FROM {stream}_reading WHERE {since}"  # noqa: S608
        right = (len(mine), sum(round(reading[energy] * 1_000_000) for reading in mine))
        assert connection.execute(query.encode()).fetchone() == right
        week = load.now - timedelta(days=7, hours=12), datetime.now(UTC)
        assert counted(connection, f"{stream}_minute", *week) == len(mine)
        assert counted(connection, f"{stream}_day", load.now - timedelta(days=8), datetime.now(UTC)) == len(mine)
