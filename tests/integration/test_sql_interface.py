"""The SQL functions of both engines: the same names and types, and the same rows from the same readings."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from random import Random

import psycopg
import pytest
from psycopg import sql

from app.ops.refresh import refresh_aggregates
from app.telemetry.reading import MeterReading
from tests.fixtures.database import _servers
from tests.fixtures.engines import needs_timescale
from tests.fixtures.readings import AGGREGATES, Reading, answer, counted, midnight, random_readings, store

pytestmark = needs_timescale

DOCUMENTED = {
    *AGGREGATES, "aggregate_freshness", "aggregate_retention", "aggregate_instants", "refresh_aggregates",
    "prepare_days", "drop_expired",
    "background_jobs", "job_scheduler", "storage_sizes", "storage_parts", "engine_parts", "prepared_until",
    "importable_from", "in_service", "utc_bucket", "engine_fault", "chunks_not_compressed",
    "spread_fleet", "spread_of", "spread_between", "spread_missing",
}  # fmt: skip
FIRST_DAY, DAYS = 6, 5
# Objects that only one engine needs are left out: triggers, and helpers over continuous aggregates.
SIGNATURES = """
    SELECT proname, prokind, provolatile, pg_get_function_arguments(oid), pg_get_function_result(oid)
    FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace
        AND prorettype != 'trigger'::regtype AND proname NOT LIKE 'cagg\\_%'
        AND NOT EXISTS (
            SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = pg_proc.oid AND deptype = 'e')
    ORDER BY proname
"""

Connections = dict[str, psycopg.Connection]


@pytest.fixture
def url_of_each(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Makes a migrated, empty database on each engine."""
    servers = _servers(request.config, tmp_path_factory)
    urls = {engine: server.clone() for engine, server in servers.items()}
    yield urls
    for engine, url in urls.items():
        servers[engine].drop(url)


@pytest.fixture
def connections(url_of_each: dict[str, str]) -> Iterator[Connections]:
    with ExitStack() as stack:
        yield {
            engine: stack.enter_context(psycopg.connect(url, autocommit=True, prepare_threshold=None))
            for engine, url in url_of_each.items()
        }


def test_names_arguments_and_columns_are_the_same_on_both_engines(connections: Connections) -> None:
    plain, timescale = (connections[engine].execute(SIGNATURES).fetchall() for engine in ("plain", "timescale"))
    assert timescale == plain


def test_there_are_the_documented_functions_and_no_others(connections: Connections) -> None:
    for connection in connections.values():
        assert {row[0] for row in connection.execute(SIGNATURES)} == DOCUMENTED


def test_the_rows_come_in_the_types_that_are_declared(connections: Connections) -> None:
    for name in AGGREGATES:
        plain, timescale = (described(connections[engine], name) for engine in ("plain", "timescale"))
        assert timescale == plain


def described(connection: psycopg.Connection, name: str) -> list[tuple[str, int]]:
    call = sql.SQL("SELECT * FROM {}(now(), now())").format(sql.Identifier(name))
    return [(column.name, column.type_code) for column in connection.execute(call).description or ()]


def some_ranges(random: Random, width: timedelta) -> Iterator[tuple[datetime, datetime]]:
    """Yields the range of all days, then ranges of whole buckets within it."""
    start, buckets = midnight(FIRST_DAY), timedelta(days=DAYS) // width
    yield start, start + timedelta(days=DAYS)
    for _ in range(5):
        first, last = sorted(random.choices(range(buckets + 1), k=2))
        yield start + first * width, start + last * width


def assert_same_rows(connections: Connections) -> None:
    for name, width in AGGREGATES.items():
        for start, end in some_ranges(Random(name), width):
            plain, timescale = (answer(connections[engine], name, start, end) for engine in ("plain", "timescale"))
            assert timescale == plain


async def store_on_each(urls: dict[str, str], readings: list[Reading]) -> None:
    receipts = await asyncio.gather(*(store(url, *readings) for url in urls.values()))
    assert {receipt.inserted for receipt in receipts} == {len(readings)}


async def refresh(urls: dict[str, str]) -> None:
    await asyncio.gather(*(asyncio.to_thread(refresh_aggregates, url, None, None) for url in urls.values()))


def assert_nothing_is_lost(connection: psycopg.Connection, readings: list[Reading]) -> None:
    meter = sum(isinstance(reading, MeterReading) for reading in readings)
    vehicle = len(readings) - meter
    expected = {"meter": meter, "vehicle": vehicle, "fleet": len(readings)}
    for name in AGGREGATES:
        found = counted(connection, name, midnight(FIRST_DAY), midnight(FIRST_DAY - DAYS))
        assert found == expected[name.partition("_")[0]]


async def test_the_same_readings_give_the_same_rows_refreshed_or_not(
    url_of_each: dict[str, str], connections: Connections
) -> None:
    readings = list(random_readings(1, midnight(FIRST_DAY), DAYS, 3000, hours=30))
    await store_on_each(url_of_each, readings[:2000])
    assert_same_rows(connections)
    await refresh(url_of_each)
    assert_same_rows(connections)
    # These are late for the part that is materialised.
    await store_on_each(url_of_each, readings[2000:])
    await refresh(url_of_each)
    assert_same_rows(connections)
    for connection in connections.values():
        assert_nothing_is_lost(connection, readings)


def test_without_readings_there_are_no_rows(connections: Connections) -> None:
    for connection in connections.values():
        for name in AGGREGATES:
            assert answer(connection, name, midnight(30), midnight(-1)) == []
