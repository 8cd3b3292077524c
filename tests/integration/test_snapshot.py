"""An answer sees one state of the database, whatever the house-keeping does meanwhile."""

import asyncio
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import text

from app.analytics.buckets import Buckets
from app.analytics.series import fetch_meter_series
from app.database import connect, create_pool, snapshot
from app.settings import Settings
from tests.fixtures.database import lock_waits
from tests.fixtures.engines import on_plain, on_timescale, refresh_while_young
from tests.fixtures.readings import meter_reading, midnight, store
from tests.fixtures.waiting import eventually_here

# The statement waits between its start and its reads, so that a refresh can commit in its middle.
PAUSED = """
    SELECT minutes.readings, hours.readings
    FROM (SELECT pg_advisory_xact_lock(1)::text AS paused OFFSET 0) AS pause,
        LATERAL (SELECT sum(readings) AS readings
                 FROM (SELECT readings, paused FROM meter_minute(:start, :end) OFFSET 0) AS minute) AS minutes,
        LATERAL (SELECT sum(meter_readings) AS readings
                 FROM (SELECT meter_readings, paused FROM fleet_hour(:start, :end) OFFSET 0) AS hour) AS hours
"""


@on_timescale
async def test_a_refresh_that_commits_in_the_middle_of_a_statement_hides_no_reading(
    connection: psycopg.Connection, database_url: str
) -> None:
    await store(database_url, *(meter_reading(midnight(days) + timedelta(hours=1)) for days in (5, 4, 2, 1)))
    refresh_while_young(connection, midnight(6), midnight(3))
    pool = create_pool(database_url, 1)
    connection.execute("SELECT pg_advisory_lock(1)")
    async with pool.connect() as asked, snapshot(asked):
        answer = asyncio.ensure_future(asked.execute(text(PAUSED), {"start": midnight(6), "end": midnight(0)}))
        await eventually_here(lambda: lock_waits(connection) == 1)
        await asyncio.to_thread(connection.execute, "CALL refresh_aggregates()")
        assert not answer.done()
        connection.execute("SELECT pg_advisory_unlock(1)")
        assert (await answer).one() == (4, 4)
    await pool.dispose()


@on_plain
async def test_a_day_that_is_dropped_while_an_answer_waits_for_it_is_in_the_answer(
    connection: psycopg.Connection, database_url: str
) -> None:
    await store(database_url, *(meter_reading(midnight(40) + timedelta(hours=hour)) for hour in range(6)))
    buckets = Buckets("1h", midnight(40), midnight(39))
    pool = create_pool(database_url, 1)
    inserting = await connect(database_url)
    connection.execute("ALTER FUNCTION drop_expired() SET lock_timeout = '60s'")
    async with inserting.transaction():
        # An insert holds this lock: the drop waits for it, and then the answer waits for the drop.
        await inserting.execute("LOCK TABLE ONLY meter_reading IN ROW EXCLUSIVE MODE")
        with psycopg.connect(database_url, autocommit=True) as observer:
            dropping = asyncio.ensure_future(asyncio.to_thread(connection.execute, "SELECT drop_expired()"))
            await eventually_here(lambda: lock_waits(observer) == 1)
            answer = asyncio.ensure_future(fetch_meter_series(pool, "M1", buckets, Settings()))
            await eventually_here(lambda: lock_waits(observer) == 2)
        assert not dropping.done()
        assert not answer.done()
    assert (await dropping).fetchone() == (True,)
    assert len((await answer).columns.t) == 6
    await inserting.close()
    await pool.dispose()


async def test_after_an_error_the_connection_is_given_back_outside_of_any_transaction(database_url: str) -> None:
    pool = create_pool(database_url, 1)
    async with pool.connect() as connection:
        with pytest.raises(KeyError):
            async with snapshot(connection):
                raise KeyError
    async with pool.connect() as connection:
        level = await connection.scalar(text("SELECT current_setting('transaction_isolation')"))
        assert level == "read committed"
    await pool.dispose()
