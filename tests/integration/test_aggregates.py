"""Aggregates follow late readings, are never refreshed wider than needed, and never erased."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from app.errors import SetupError
from app.ops.refresh import refresh_aggregates
from tests.fixtures.engines import on_plain, on_timescale, run_policies
from tests.fixtures.readings import (
    AGGREGATES,
    answer,
    answers,
    counted,
    meter_reading,
    midnight,
    random_readings,
    store,
    vehicle_reading,
)

REFRESH = "cagg_refresh"
NAMES = {
    "meter_minute", "vehicle_minute", "fleet_meter_minute", "fleet_vehicle_minute",
    "fleet_meter_hour", "fleet_vehicle_hour", "meter_hour", "vehicle_hour", "meter_day", "vehicle_day",
}  # fmt: skip

START = datetime(2000, 1, 1, tzinfo=UTC)

Refresh = Callable[[], None]


def ago(**span: float) -> datetime:
    return datetime.now(UTC) - timedelta(**span)


def now(connection: psycopg.Connection) -> datetime:
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row
    moment: datetime = row[0]
    return moment


def freshness(connection: psycopg.Connection) -> dict[str, tuple[Any, Any]]:
    rows = connection.execute("SELECT name, materialized_through, as_of FROM aggregate_freshness()").fetchall()
    return {name: (through, as_of) for name, through, as_of in rows}


def readings_in(connection: psycopg.Connection, at: datetime) -> dict[str, int]:
    """Returns how many readings each aggregate has in the bucket of an instant."""
    found = {}
    for name, width in AGGREGATES.items():
        bucket = START + (at - START) // width * width
        found[name] = counted(connection, name, bucket, bucket + width)
    return found


@pytest.fixture
def run_refreshes(connection: psycopg.Connection, engine: str) -> Refresh:
    """Returns the next refresh, which is that of the policies; plain needs none."""
    return lambda: run_policies(connection, REFRESH) if engine == "timescale" else None


async def test_a_reading_of_almost_seven_days_is_in_every_aggregate_after_the_next_refresh(
    connection: psycopg.Connection, database_url: str, engine: str, run_refreshes: Refresh
) -> None:
    at = ago(days=6, hours=23, minutes=59)
    await store(database_url, *random_readings(4, midnight(9), 9, 500))
    run_refreshes()
    before = readings_in(connection, at)
    receipt = await store(database_url, meter_reading(at, meter_id="L1"), vehicle_reading(at, vehicle_id="L1"))
    assert (receipt.inserted, receipt.late) == (2, 2)
    if engine == "timescale":
        assert readings_in(connection, at) == before
    run_refreshes()
    added = {name: 2 if name.startswith("fleet_") else 1 for name in AGGREGATES}
    assert readings_in(connection, at) == {name: before[name] + added[name] for name in AGGREGATES}


@on_timescale
@pytest.mark.parametrize("minutes", [range(15, 375, 7), range(0, 375, 7)], ids=["late", "fresh and late"])
async def test_a_batch_that_spans_six_hours_invalidates_no_more_than_an_hour_at_a_time(
    connection: psycopg.Connection, database_url: str, minutes: range
) -> None:
    await store(database_url, *random_readings(5, ago(hours=8), 8 / 24, 300))
    refresh_aggregates(database_url, None, None)
    assert invalidated(connection) == []
    times = [ago(minutes=minute, seconds=90) for minute in minutes]
    await store(database_url, *map(meter_reading, times), *map(vehicle_reading, times))
    ranges = invalidated(connection)
    assert max(last - first for first, last in ranges) <= timedelta(hours=1)
    # None is missing: every late reading lies in a range.
    late = [at for at in times if at < ago(minutes=10)]
    assert all(any(first <= at <= last for first, last in ranges) for at in late)


def invalidated(connection: psycopg.Connection) -> list[tuple[datetime, datetime]]:
    """Returns the ranges of readings that the next refresh computes again."""
    return connection.execute(
        """
        SELECT _timescaledb_functions.to_timestamp(lowest_modified_value),
               _timescaledb_functions.to_timestamp(greatest_modified_value)
        FROM _timescaledb_catalog.continuous_aggs_hypertable_invalidation_log AS log
        JOIN _timescaledb_catalog.hypertable ON hypertable.id = log.hypertable_id
        WHERE table_name IN ('meter_reading', 'vehicle_reading')
        """
    ).fetchall()


@on_timescale
@pytest.mark.parametrize("newer", [True, False], ids=["with newer readings", "with no reading left"])
async def test_a_refresh_over_dropped_readings_erases_nothing(
    connection: psycopg.Connection, database_url: str, newer: bool
) -> None:
    await store(database_url, *random_readings(6, midnight(25), 3, 300))
    if newer:
        await store(database_url, *random_readings(7, midnight(5), 5, 300))
    refresh_aggregates(database_url, None, None)
    before = answers(connection, midnight(50), midnight(-1))
    assert all(before.values())
    for table in ("meter_reading", "vehicle_reading"):
        connection.execute("SELECT drop_chunks(%s, now() - INTERVAL '20 days')", [table])
    for bounds in ((midnight(28), midnight(21)), (None, None)):
        refresh_aggregates(database_url, *(bound and bound.replace(tzinfo=None) for bound in bounds))
        assert answers(connection, midnight(50), midnight(-1)) == before


async def late_readings(connection: psycopg.Connection, database_url: str, engine: str) -> datetime:
    """Stores late readings that no refresh has seen yet; returns their instant, two days ago."""
    at = midnight(2) + timedelta(hours=10, minutes=30, seconds=7)
    await store(database_url, *random_readings(8, midnight(3), 3, 200))
    refresh_aggregates(database_url, None, None)
    await store(database_url, meter_reading(at, meter_id="L1"), vehicle_reading(at, vehicle_id="L1"))
    if engine == "timescale":
        assert readings_in(connection, at)["fleet_minute"] == 0
    return at


@pytest.mark.parametrize(
    "bounds",
    [(0, 0.001), (-60, None), (None, 60)],
    ids=["from and to", "from", "to"],
)
async def test_wattline_refresh_brings_in_the_buckets_that_its_range_touches(
    connection: psycopg.Connection, database_url: str, engine: str, bounds: tuple[float | None, float | None]
) -> None:
    at = await late_readings(connection, database_url, engine)
    start, end = (s if s is None else (at + timedelta(seconds=s)).replace(tzinfo=None) for s in bounds)
    refresh_aggregates(database_url, start, end)
    found = readings_in(connection, at)
    assert found["fleet_minute"] == 2
    for width in ("minute", "hour", "day"):
        stored = {stream: stored_in(connection, stream, width, at) for stream in ("meter", "vehicle")}
        assert {stream: found[f"{stream}_{width}"] for stream in stored} == stored
        assert found[f"fleet_{width}"] == sum(stored.values())


def stored_in(connection: psycopg.Connection, stream: str, width: str, at: datetime) -> int:
    statement = sql.SQL(
        "SELECT count(*) FROM {} WHERE date_trunc(%s, ts, 'UTC') = date_trunc(%s, %s::timestamptz, 'UTC')"
    ).format(sql.Identifier(f"{stream}_reading"))
    ((count,),) = connection.execute(statement, [width, width, at]).fetchall()
    return int(count)


@on_timescale
async def test_wattline_refresh_leaves_what_its_range_does_not_touch(
    connection: psycopg.Connection, database_url: str, engine: str
) -> None:
    at = await late_readings(connection, database_url, engine)
    refresh_aggregates(database_url, None, (at - timedelta(minutes=1)).replace(second=0, tzinfo=None))
    assert readings_in(connection, at)["meter_minute"] == 0


async def test_two_refreshes_at_once_both_end_well(connection: psycopg.Connection, database_url: str) -> None:
    await store(database_url, *random_readings(9, midnight(3), 3, 300))
    before = answers(connection, midnight(4), midnight(-1))
    with ThreadPoolExecutor() as threads:
        for ended in [threads.submit(refresh_aggregates, database_url, None, None) for _ in range(2)]:
            ended.result()
    assert answers(connection, midnight(4), midnight(-1)) == before


def test_wattline_refresh_of_a_database_that_is_not_migrated_says_so(empty_database_url: str) -> None:
    with pytest.raises(SetupError, match="wattline migrate"):
        refresh_aggregates(empty_database_url, None, None)


@on_timescale
async def test_before_any_refresh_no_freshness_is_claimed(connection: psycopg.Connection, database_url: str) -> None:
    await store(database_url, meter_reading(ago(minutes=3)))
    assert freshness(connection) == dict.fromkeys(NAMES, (None, None))


async def test_after_a_full_refresh_answers_are_as_fresh_as_its_start(
    connection: psycopg.Connection, database_url: str
) -> None:
    await store(database_url, *random_readings(10, midnight(3), 3, 100))
    called = now(connection)
    refresh_aggregates(database_url, None, None)
    fresh = freshness(connection)
    assert fresh.keys() == NAMES
    for through, as_of in fresh.values():
        assert called - timedelta(seconds=6) <= as_of < now(connection)
        assert through <= now(connection)


@on_timescale
async def test_a_refresh_of_a_range_does_not_make_answers_fresh(
    connection: psycopg.Connection, database_url: str
) -> None:
    await store(database_url, *random_readings(11, midnight(3), 3, 100))
    connection.execute("CALL refresh_aggregates(now() - INTERVAL '1 day', now())")
    assert {as_of for _, as_of in freshness(connection).values()} == {None}


@on_plain
def test_answers_are_no_fresher_than_a_transaction_under_way(connection: psycopg.Connection, database_url: str) -> None:
    connection.execute("SELECT prepare_days(now(), now())")
    with psycopg.connect(database_url) as storing:
        started = storing.execute("SELECT now()").fetchone()
        assert started
        storing.execute("INSERT INTO meter_reading (ts, meter_id, ac_milliwh) VALUES (now(), 1, 1)")
        time.sleep(0.05)
        under_way = freshness(connection)
        assert {as_of for _, as_of in under_way.values()} == {started[0]}
        storing.commit()
    before = now(connection)
    after = freshness(connection)
    assert after.keys() == NAMES
    assert all(before <= as_of <= now(connection) for _, as_of in after.values())
    assert len(answer(connection, "meter_minute", midnight(1), midnight(-1))) == 1


@on_plain
def test_a_transaction_that_only_reads_holds_no_answer_back(connection: psycopg.Connection, database_url: str) -> None:
    with psycopg.connect(database_url) as reading:
        reading.execute("SELECT count(*) FROM meter_reading")
        before = now(connection)
        assert all(as_of >= before for _, as_of in freshness(connection).values())
