"""Ten days of a whole fleet on TimescaleDB: when chunks are compressed and dropped, their bytes, and late readings."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from math import ceil
from pathlib import Path
from statistics import mean
from typing import Any, LiteralString

import msgspec
import psycopg
import pytest
from psycopg import sql

from app.database import command_connection
from app.ops.refresh import refresh_aggregates
from app.policies.desired import Policies
from app.policies.invariants import read_policies, violations
from app.telemetry.reading import Stream
from tests.fixtures.commands import command
from tests.fixtures.engines import on_timescale, run_policies
from tests.fixtures.files import write_csv
from tests.fixtures.fleet_days import SEED, register_fleet, store_fleet_day
from tests.fixtures.policies import apply_policies
from tests.fixtures.readings import counted, midnight
from tests.fixtures.sending import Reading, meter, vehicle
from tests.fixtures.waiting import eventually

DAYS = 10
HYPERTABLES = {Stream.METER: "meter_reading", Stream.VEHICLE: "vehicle_reading"}
LIMIT_BYTES = 14
# The policies act so long after they were applied, at most: the time that the test has to see them do nothing.
SOON = timedelta(seconds=20)

Chunks = dict[tuple[str, datetime], tuple[str, bool]]


def fetched(connection: psycopg.Connection, query: LiteralString, *parameters: Any) -> list[tuple[Any, ...]]:
    return connection.execute(query, parameters).fetchall()


def chunks(connection: psycopg.Connection) -> Chunks:
    """Returns the name of each chunk of readings, and whether it is compressed, by its table and its end."""
    rows = fetched(
        connection,
        """
        SELECT hypertable_name, range_end, chunk_name, is_compressed FROM timescaledb_information.chunks
        WHERE hypertable_name IN ('meter_reading', 'vehicle_reading')
        """,
    )
    return {(table, end): (name, compressed) for table, end, name, compressed in rows}


def dropped_by_the_job(connection: psycopg.Connection) -> set[str]:
    """Runs the retention jobs; returns the names of the chunks of readings that they dropped."""
    before = chunks(connection)
    run_policies(connection, "policy_retention")
    after = chunks(connection)
    return {name for key, (name, _) in before.items() if key not in after}


def compressed_by_the_job(connection: psycopg.Connection) -> set[str]:
    """Runs the columnstore jobs; returns the names of the chunks of readings that they compressed."""
    before = chunks(connection)
    run_policies(connection, "policy_compression")
    return {name for key, (name, compressed) in chunks(connection).items() if compressed and not before[key][1]}


def apply(url: str, policies: Policies) -> None:
    assert list(violations(policies)) == []
    with command_connection(url) as connection, connection.begin():
        apply_policies(connection, policies)


def acting_at(now: datetime, compressed_end: datetime, dropped_end: datetime) -> Policies:
    """Returns policies by which chunks with these ends become eligible at that time."""
    policies = read_policies()
    ages = [f"{ceil((now - end).total_seconds())} seconds" for end in (compressed_end, dropped_end)]
    columnstore, retention = (dict.fromkeys(HYPERTABLES.values(), age) for age in ages)
    return msgspec.structs.replace(
        policies,
        columnstore_after={**policies.columnstore_after, **columnstore},
        retention={**policies.retention, **retention},
    )


def ended(connection: psycopg.Connection, end: datetime) -> set[str]:
    """Returns the names of both streams' chunks with that end."""
    return {name for (_, its_end), (name, _) in chunks(connection).items() if its_end == end}


def each_acts_at_its_time(connection: psycopg.Connection, url: str) -> None:
    """Lets the policies compress and drop the oldest chunks: nothing before a chunk's end and age, and all after."""
    dropped_end, compressed_end = midnight(DAYS - 1), midnight(DAYS - 2)
    dropped, compressed = ended(connection, dropped_end), ended(connection, compressed_end)
    assert (len(dropped), len(compressed)) == (2, 2)
    # The chunks before are compressed first, so that no run takes long.
    apply(url, acting_at(datetime.now(UTC) + timedelta(hours=1), compressed_end, dropped_end))
    assert compressed_by_the_job(connection) == dropped
    at = datetime.now(UTC).replace(microsecond=0) + SOON
    apply(url, acting_at(at, compressed_end, dropped_end))
    assert dropped_by_the_job(connection) == set()
    assert compressed_by_the_job(connection) == set()
    assert datetime.now(UTC) < at, "the runs took too long to show anything"
    eventually(lambda: datetime.now(UTC) > at)
    assert dropped_by_the_job(connection) == dropped
    assert compressed_by_the_job(connection) == compressed


def rows_of(connection: psycopg.Connection, chunk: str) -> int:
    statement = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("_timescaledb_internal", chunk))
    ((count,),) = connection.execute(statement).fetchall()
    return int(count)


def bytes_per_compressed_reading(connection: psycopg.Connection) -> dict[Stream, float]:
    """Returns the bytes of each stream's compressed chunks, with their indexes, divided by their readings."""
    sizes = {}
    for stream, table in HYPERTABLES.items():
        query = """
            SELECT chunk_name, after_compression_total_bytes FROM chunk_columnstore_stats(%s::regclass)
            WHERE after_compression_total_bytes IS NOT NULL
        """
        of_chunks = dict(fetched(connection, query, table))
        sizes[stream] = sum(of_chunks.values()) / sum(rows_of(connection, chunk) for chunk in of_chunks)
    return sizes


def late_readings(devices: int, day: datetime) -> Iterator[Reading]:
    """Yields a second reading of some devices in some minutes of a day, which the fleet has not sent."""
    for minute in range(0, 1440, 7):
        for number in range(1, devices + 1, max(1, devices // 10)):
            at = day + timedelta(minutes=minute, microseconds=1)
            yield meter(at, 0.25, meter_id=f"M{number}")
            yield vehicle(at, 0.125, vehicle_id=f"V{number}", meterId=f"M{number}")


def sums(connection: psycopg.Connection, day: datetime) -> dict[str, int]:
    functions = [f"{stream}_{width}" for stream in Stream for width in ("minute", "hour", "day")]
    end = day + timedelta(days=1)
    return {name: counted(connection, name, day, end) for name in [*functions, "fleet_minute", "fleet_hour"]}


def late_ones_are_stored_once(connection: psycopg.Connection, url: str, devices: int, files: Path) -> None:
    """Imports readings of a compressed day, then again in another order; the import refreshes that day."""
    apply(url, read_policies())
    day = midnight(DAYS - 1)
    ((_, compressed), *_) = [chunk for (_, end), chunk in chunks(connection).items() if end == day + timedelta(days=1)]
    assert compressed
    before, readings = sums(connection, day), list(late_readings(devices, day))
    for name, part, new in (("new", readings, len(readings)), ("again", readings[::-1], 0)):
        file = files / f"{name}.csv"
        write_csv(file, iter(part))
        printed = command("import", str(file), DATABASE_URL=url)
        assert printed.returncode == 0, printed.stderr
        assert f"inserted {new:,} " in printed.stdout
    more = {name: len(readings) // (1 if name.startswith("fleet_") else 2) for name in before}
    assert sums(connection, day) == {name: count + more[name] for name, count in before.items()}
    # The next run of the policy moves the late rows into the columnstore, where they count as before.
    run_policies(connection, "policy_compression")
    assert sums(connection, day) == {name: count + more[name] for name, count in before.items()}


@on_timescale
@pytest.mark.parametrize("devices", [80, pytest.param(2_000, marks=pytest.mark.soak)])
def test_ten_days_of_a_fleet(connection: psycopg.Connection, database_url: str, tmp_path: Path, devices: int) -> None:
    now = datetime.now(UTC)
    register_fleet(connection, devices)

    def store(stream: Stream) -> int:
        with psycopg.connect(database_url, autocommit=True) as own:
            own.execute(SEED)
            return sum(store_fleet_day(own, stream, devices, midnight(ago), now) for ago in range(DAYS, -1, -1))

    with ThreadPoolExecutor() as threads:
        assert min(threads.map(store, HYPERTABLES)) > DAYS * 1440 * devices
    refresh_aggregates(database_url, midnight(DAYS), midnight(DAYS - 2))
    each_acts_at_its_time(connection, database_url)
    sizes = bytes_per_compressed_reading(connection)
    print({stream: f"{size:.1f} bytes" for stream, size in sizes.items()})  # noqa: T201
    assert mean(sizes.values()) <= LIMIT_BYTES
    late_ones_are_stored_once(connection, database_url, devices, tmp_path)
