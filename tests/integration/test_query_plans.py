"""The database's work for an answer: the chunks, partitions and indexes that its plans really use."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from app import tables
from app.analytics.buckets import Buckets
from app.analytics.efficiency.evidence import settled_margin
from app.analytics.efficiency.neighbours import REACH
from app.analytics.efficiency.performance import fetch_performance
from app.analytics.fleet_series import fetch_fleet_series
from app.analytics.series import fetch_meter_series, fetch_vehicle_series
from app.analytics.series_source import Width
from app.analytics.window import Window, window_of
from app.database import create_pool
from app.settings import Settings
from tests.fixtures.engines import on_plain, on_timescale
from tests.fixtures.readings import AGGREGATES, midnight, random_readings, store

# The minutes of fewer devices are found by time alone as cheaply as by device.
DEVICES = 20
# Vehicles 1 and 2 charge at meter 1; even vehicles do not name their meter, and are mapped to it.
FLEET = """
    INSERT INTO meter (external_id) SELECT 'M' || n FROM generate_series(1, {devices}) AS n ORDER BY n;
    INSERT INTO vehicle (external_id) SELECT 'V' || n FROM generate_series(1, {devices}) AS n ORDER BY n;
    INSERT INTO vehicle_meter (vehicle_id, meter_id, valid)
    SELECT n, greatest(n - 1, 1), tstzrange(NULL, NULL) FROM generate_series(2, {devices}, 2) AS n;
    SELECT prepare_days(now() - INTERVAL '3 days', now());
    INSERT INTO meter_reading (ts, meter_id, ac_milliwh)
    SELECT ts, n, 1000
    FROM generate_series(now() - INTERVAL '3 days', now(), '1 minute') AS ts, generate_series(1, {devices}) AS n;
    INSERT INTO vehicle_reading (ts, vehicle_id, meter_id, dc_milliwh)
    SELECT ts, n, CASE WHEN n % 2 = 1 THEN n END, 900
    FROM generate_series(now() - INTERVAL '3 days', now(), '1 minute') AS ts, generate_series(1, {devices}) AS n;
"""

DEVICE_FUNCTIONS = [name for name in AGGREGATES if not name.startswith("fleet_")]

Node = dict[str, Any]
Sent = list[tuple[str, Any]]


@pytest.fixture
def filled(connection: psycopg.Connection) -> psycopg.Connection:
    """Stores three days of a small fleet, refreshed and analysed."""
    connection.execute(FLEET.format(devices=DEVICES).encode())
    connection.execute("CALL refresh_aggregates()")
    connection.execute("VACUUM ANALYZE")
    return connection


@asynccontextmanager
async def capturing(url: str) -> AsyncIterator[tuple[AsyncEngine, Sent]]:
    """Opens a pool as answers have it; yields it and the list of what is sent over its connection."""
    pool = create_pool(url, 1)
    sent: Sent = []

    execute = psycopg.AsyncCursor.execute

    def noting(cursor: Any, statement: Any, parameters: Any = None, **more: Any) -> Any:
        if isinstance(statement, str | bytes):
            sent.append((statement if isinstance(statement, str) else statement.decode(), parameters))
        return execute(cursor, statement, parameters, **more)

    try:
        with patch.object(psycopg.AsyncCursor, "execute", noting):
            yield pool, sent
    finally:
        await pool.dispose()


async def statements_of_performance(url: str, window: Window) -> Sent:
    """Returns the statements that read aggregates, for a vehicle that shares its meter with one that is mapped."""
    async with capturing(url) as (pool, sent):
        found = await fetch_performance(pool, "V1", window, Settings())
    assert found.coverage.shared > 1000
    reads = [one for one in sent if re.search(r"(meter|vehicle)_minute\(", one[0])]
    assert len(reads) >= 3
    return reads


def plan(connection: psycopg.Connection, statement: str, parameters: Any) -> list[Node]:
    """Returns all nodes of the plan."""
    row = connection.execute(f"EXPLAIN (FORMAT JSON) {statement}".encode(), parameters).fetchone()
    assert row
    return list(nodes_below(row[0][0]["Plan"]))


def nodes_below(node: Node) -> Iterator[Node]:
    yield node
    for child in node.get("Plans", []):
        yield from nodes_below(child)


def chunks(connection: psycopg.Connection, *, raw: bool) -> dict[str, datetime]:
    """Returns the end of each chunk of the readings, or of the aggregates of minutes."""
    rows = connection.execute(
        """
        SELECT chunk.chunk_name, chunk.range_end
        FROM timescaledb_information.chunks AS chunk
        LEFT JOIN timescaledb_information.continuous_aggregates AS cagg
            ON cagg.materialization_hypertable_name = chunk.hypertable_name
        WHERE coalesce(cagg.view_name, chunk.hypertable_name) = ANY (%s)
        """,
        [["meter_reading", "vehicle_reading"] if raw else ["meter_minute_cagg", "vehicle_minute_cagg"]],
    ).fetchall()
    return dict(rows)


def watermark(connection: psycopg.Connection) -> datetime:
    row = connection.execute(
        "SELECT min(materialized_through) FROM aggregate_freshness() WHERE name LIKE '%_minute'"
    ).fetchone()
    assert row
    moment: datetime = row[0]
    return moment


@on_timescale
async def test_performance_reads_raw_chunks_only_after_the_watermark(
    filled: psycopg.Connection, database_url: str
) -> None:
    materialised = watermark(filled)
    assert datetime.now(UTC) - materialised < timedelta(minutes=5)
    raw = chunks(filled, raw=True)
    tail = {name for name, end in raw.items() if end > materialised}
    assert len(tail) < len(raw)
    # Shortly after midnight, today's chunk is so small that reading all of it is cheapest.
    filled.execute("SET enable_seqscan = off")
    for sent in await statements_of_performance(database_url, window_of(None, None, 24, now=datetime.now(UTC))):
        scans = [node for node in plan(filled, *sent) if node.get("Relation Name") in raw]
        assert {node["Relation Name"] for node in scans} <= tail
        for node in scans:
            assert after_watermark(node, materialised), node


def after_watermark(node: Node, materialised: datetime) -> bool:
    """Returns True when an index condition begins at the watermark, read when the query runs or when it is planned."""
    conditions = " ".join(one["Index Cond"] for one in nodes_below(node) if "Index Cond" in one)
    known = re.findall(r"ts >= '([^']+)'::timestamp with time zone", conditions)
    return bool(re.search(r"ts >= COALESCE\([\w.]+\([\w.]+\.cagg_watermark\(", conditions)) or any(
        datetime.fromisoformat(instant) >= materialised for instant in known
    )


@on_timescale
async def test_performance_finds_a_device_s_minutes_by_index(filled: psycopg.Connection, database_url: str) -> None:
    materialised = chunks(filled, raw=False)
    for sent in await statements_of_performance(database_url, window_of(None, None, 24, now=datetime.now(UTC))):
        scans = [node for node in plan(filled, *sent) if node.get("Relation Name") in materialised]
        assert scans
        for node in scans:
            # PostgreSQL cuts the names of indexes after 63 characters.
            assert_by_index(node, r"_(meter|vehicle)_id_bucket_", "bucket")


def assert_by_index(node: Node, name: str, time_column: str) -> None:
    """Checks that the index is searched by device and time at once, and by nothing else."""
    used = [one for one in nodes_below(node) if "Index Name" in one]
    assert used, node
    for one in used:
        assert re.search(name, one["Index Name"]), one
        assert re.search(r"(meter|vehicle)_id = ", one["Index Cond"]), one
        assert f"{time_column} >= " in one["Index Cond"], one
        assert f"{time_column} < " in one["Index Cond"], one


@on_plain
async def test_performance_reads_only_the_partitions_of_its_window_by_index(
    filled: psycopg.Connection, database_url: str
) -> None:
    window = Window(midnight(2) + timedelta(hours=12), midnight(1) + timedelta(hours=12))
    reach = settled_margin(Settings()) + REACH
    days = days_of(window.start - reach, window.end + reach)
    for sent in await statements_of_performance(database_url, window):
        scans = [node for node in plan(filled, *sent) if "_reading_2" in node.get("Relation Name", "")]
        assert {node["Relation Name"].rpartition("_")[2] for node in scans} <= days
        for node in scans:
            assert_by_index(node, r"_reading_\d{8}_(pkey|meter_id_vehicle_id_ts_idx)$", "ts")


async def test_every_function_is_inlined_and_its_range_reaches_the_planner(
    connection: psycopg.Connection, database_url: str, engine: str
) -> None:
    await store(database_url, *random_readings(12, midnight(2), 2, 200))
    connection.execute("CALL refresh_aggregates()")
    for name in AGGREGATES:
        call = sql.SQL("SELECT * FROM {}(%s, %s)").format(sql.Identifier(name)).as_string()
        stored, elsewhere = (plan(connection, call, [midnight(days), midnight(days - 2)]) for days in (2, 400))
        assert "Function Scan" not in {node["Node Type"] for node in stored + elsewhere}
        # The fleet's minutes are tables without partitions on plain.
        from_tables = engine == "plain" and name.startswith("fleet_")
        assert any(map(reads_fleet_s_minutes if from_tables else reads_days, stored))
        assert not any(map(reads_days, elsewhere))


async def test_the_device_of_a_call_reaches_the_index(filled: psycopg.Connection, database_url: str) -> None:
    # The kept hours and days are empty tables on plain, and what is small is read whole.
    filled.execute("SET enable_seqscan = off")
    for name in DEVICE_FUNCTIONS:
        buckets = some_buckets("1d" if name.endswith("day") else "1h")
        bounds = {"range_from": buckets.start, "range_to": buckets.end, "devices": [3]}
        async with capturing(database_url) as (pool, sent), pool.connect() as connection:
            found = (await connection.execute(select(getattr(tables, name)), bounds)).mappings().all()
        assert {row[f"{name.partition('_')[0]}_id"] for row in found} == {3}
        nodes = plan(filled, *sent[-1])
        assert "Function Scan" not in {node["Node Type"] for node in nodes}
        scans = [node for node in nodes if re.search(r"_reading_\d{8}$|_kept$|_chunk$", node.get("Relation Name", ""))]
        assert any(reads_days(node) for node in scans)
        for node in scans:
            conditions = " ".join(one["Index Cond"] for one in nodes_below(node) if "Index Cond" in one)
            assert "_id = ANY ('{3}'::integer[])" in conditions, (name, node)


def test_the_devices_of_a_call_are_planned_as_a_condition_is(filled: psycopg.Connection) -> None:
    for name in DEVICE_FUNCTIONS:
        names = {"function": sql.Identifier(name), "device": sql.Identifier(f"{name.partition('_')[0]}_id")}
        as_argument, as_condition = (
            plan(filled, sql.SQL(call).format(**names).as_string(), [midnight(2), midnight(1), [3, 7]])
            for call in (
                "SELECT * FROM {function}(%s, %s, %s)",
                "SELECT * FROM {function}(%s, %s) WHERE {device} = ANY (%s)",
            )
        )
        assert list(map(scanned, as_argument)) == list(map(scanned, as_condition))


def scanned(node: Node) -> tuple[Any, ...]:
    return node["Node Type"], node.get("Relation Name"), node.get("Index Name")


def test_a_call_for_all_devices_has_no_condition_on_them(filled: psycopg.Connection) -> None:
    for name in DEVICE_FUNCTIONS:
        every, unlimited = (
            plan(filled, sql.SQL(call).format(sql.Identifier(name)).as_string(), [midnight(2), midnight(1)])
            for call in ("SELECT * FROM {}(%s, %s)", "SELECT * FROM {}(%s, %s, NULL)")
        )
        assert unlimited == every
        assert "_id = ANY" not in str(every)


def reads_fleet_s_minutes(node: Node) -> bool:
    return bool(re.fullmatch(r"fleet_(meter|vehicle)_minute", node.get("Relation Name", "")))


def reads_days(node: Node) -> bool:
    return bool(re.search(r"_reading_\d{8}$|_chunk$", node.get("Relation Name", "")))


async def statements_of_series(url: str, what: str, buckets: Buckets) -> Sent:
    """Returns those that read aggregates, for a vehicle that shares its meter, for that meter, or for the fleet."""
    async with capturing(url) as (pool, sent):
        if what == "meter":
            assert (await fetch_meter_series(pool, "M1", buckets, Settings())).columns.t
        elif what == "vehicle":
            assert (await fetch_vehicle_series(pool, "V1", buckets, Settings())).columns.t
        else:
            assert (await fetch_fleet_series(pool, buckets)).columns.t
    reads = [one for one in sent if re.search(r"(meter|vehicle|fleet)_(minute|hour|day)\(", one[0])]
    assert len(reads) >= {"meter": 1, "vehicle": 4, "fleet": 1}[what]
    return reads


async def test_an_answer_reads_each_device_s_minutes_once(filled: psycopg.Connection, database_url: str) -> None:
    sent = [await statements_of_performance(database_url, window_of(None, None, 24, now=datetime.now(UTC)))]
    sent += [await statements_of_series(database_url, what, some_buckets("1m")) for what in ("meter", "vehicle")]
    for statements in sent:
        read = [(re.findall(r"FROM (\w+)\(", statement), parameters["devices"]) for statement, parameters in statements]
        for stream in "meter", "vehicle":
            assert sum(found == [f"{stream}_minute"] and 1 in (devices or ()) for found, devices in read) <= 1


def some_buckets(width: Width) -> Buckets:
    """Returns most of the day before yesterday: for a few hours of this small fleet, an index by time is as good.

    It is not the whole day, except in days: TimescaleDB drops conditions that the whole chunk meets.
    """
    hours = timedelta(hours=0 if width == "1d" else 2)
    return Buckets(width, midnight(2) + hours, midnight(1) - hours)


def read_range(what: str, buckets: Buckets) -> tuple[datetime, datetime]:
    """Returns the range with what counts for power and efficiency: minutes of a device, buckets of the fleet."""
    if what == "vehicle":
        return buckets.start - timedelta(hours=1) - REACH, buckets.end + REACH
    if what == "fleet":
        return buckets.start - timedelta(days=1), buckets.end + timedelta(days=1)
    margin = timedelta(hours=0 if buckets.width == "1d" else 5)
    return buckets.start - margin, buckets.end + margin


def days_of(start: datetime, end: datetime) -> set[str]:
    return {f"{start + timedelta(days=n):%Y%m%d}" for n in range((end.date() - start.date()).days + 1)}


SERIES: list[tuple[str, Width]] = [
    ("meter", "1m"), ("meter", "1h"), ("meter", "1d"),
    ("vehicle", "1m"), ("vehicle", "1h"), ("vehicle", "1d"),
    ("fleet", "1m"), ("fleet", "1h"), ("fleet", "1d"),
]  # fmt: skip


@on_plain
async def test_a_series_reads_only_the_partitions_of_its_range_and_finds_its_rows_by_index(
    filled: psycopg.Connection, database_url: str
) -> None:
    # The kept hours and days are empty tables here, and what is small is read whole.
    filled.execute("SET enable_seqscan = off")
    for what, width in SERIES:
        buckets = some_buckets(width)
        days = days_of(*read_range(what, buckets))
        for sent in await statements_of_series(database_url, what, buckets):
            nodes = plan(filled, *sent)
            partitions = [node for node in nodes if "_reading_2" in node.get("Relation Name", "")]
            assert {node["Relation Name"].rpartition("_")[2] for node in partitions} <= days
            assert bool(partitions) == (what != "fleet")
            for node in partitions:
                assert_by_index(node, r"_reading_\d{8}_(pkey|meter_id_vehicle_id_ts_idx)$", "ts")
            tables = [node for node in nodes if re.search(r"_kept$|^fleet_", node.get("Relation Name", ""))]
            for node in tables:
                assert_range_by_index(node, "bucket")
                if what != "fleet":
                    assert_by_index(node, r"_kept_pkey$", "bucket")


@on_timescale
async def test_a_series_reads_only_the_chunks_of_its_range_by_index_and_raw_ones_only_after_the_watermark(
    filled: psycopg.Connection, database_url: str
) -> None:
    chunks = filled.execute(
        """
        SELECT chunk_name, hypertable_name IN ('meter_reading', 'vehicle_reading'), range_start, range_end
        FROM timescaledb_information.chunks
        """
    ).fetchall()
    filled.execute("SET enable_seqscan = off")
    for what, width in SERIES:
        buckets = some_buckets(width)
        start, end = read_range(what, buckets)
        raw = {name: first < end and last > start for name, is_raw, first, last in chunks if is_raw}
        assert list(raw.values()).count(False) >= 2
        materialised = {name for name, is_raw, _, _ in chunks if not is_raw}
        for sent in await statements_of_series(database_url, what, buckets):
            scans = [node for node in plan(filled, *sent) if node.get("Relation Name") in materialised | raw.keys()]
            assert any(node["Relation Name"] in materialised for node in scans)
            for node in scans:
                if node["Relation Name"] in materialised:
                    assert_range_by_index(node, "bucket")
                    if what != "fleet":
                        # PostgreSQL cuts the names of indexes after 63 characters.
                        assert_by_index(node, r"_(meter|vehicle)_id_bucke", "bucket")
                else:
                    assert raw[node["Relation Name"]], node
                    conditions = " ".join(one["Index Cond"] for one in nodes_below(node) if "Index Cond" in one)
                    assert re.search(r"ts >= (COALESCE\(|\(InitPlan )", conditions), node
                    assert what == "fleet" or re.search(r"(meter|vehicle)_id = ", conditions), node


def assert_range_by_index(node: Node, time_column: str) -> None:
    """Checks that the index is searched by time at both ends, and by nothing less exact."""
    conditions = [one["Index Cond"] for one in nodes_below(node) if "Index Cond" in one]
    assert conditions, node
    for condition in conditions:
        assert f"{time_column} >= " in condition, node
        assert f"{time_column} < " in condition, node
