"""An answer sees one state of the database, whatever the house-keeping does meanwhile."""

import asyncio
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import text

from app.database import create_pool, snapshot
from tests.fixtures.engines import refresh_while_young
from tests.fixtures.readings import meter_reading, midnight, store

# It pauses between its start and its reads, so that a refresh can commit in its middle.
PAUSED = """
    SELECT minutes.readings, hours.readings
    FROM (SELECT pg_sleep(1)::text AS paused OFFSET 0) AS pause,
        LATERAL (SELECT sum(readings) AS readings
                 FROM (SELECT readings, paused FROM meter_minute(:start, :end) OFFSET 0) AS minute) AS minutes,
        LATERAL (SELECT sum(meter_readings) AS readings
                 FROM (SELECT meter_readings, paused FROM fleet_hour(:start, :end) OFFSET 0) AS hour) AS hours
"""


async def test_a_refresh_that_commits_in_the_middle_of_a_statement_hides_no_reading(
    connection: psycopg.Connection, database_url: str
) -> None:
    await store(database_url, *(meter_reading(midnight(days) + timedelta(hours=1)) for days in (5, 4, 2, 1)))
    refresh_while_young(connection, midnight(6), midnight(3))
    pool = create_pool(database_url, 1)
    async with pool.connect() as asked, snapshot(asked):
        answer = asyncio.ensure_future(asked.execute(text(PAUSED), {"start": midnight(6), "end": midnight(0)}))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(connection.execute, "CALL refresh_aggregates()")
        assert not answer.done()
        assert (await answer).one() == (4, 4)
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
