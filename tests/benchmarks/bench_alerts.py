"""Judging an hour of the whole fleet, and what is answered from the hours as judged."""

import asyncio
import time
from collections.abc import Callable

import psycopg
import pytest

from app.analytics.alerts.evaluator import judge_touched
from app.database import create_pool
from app.settings import Settings
from tests.benchmarks.conftest import DEVICES
from tests.benchmarks.history import store_day

MAX_SECONDS = 10

TOUCH = """
    INSERT INTO touched_hour (stream, device_id, hour, at)
    SELECT stream, id, date_trunc('hour', now()) - %s * INTERVAL '1 hour', now() - INTERVAL '1 hour'
    FROM unnest(ARRAY['meter', 'vehicle']) AS stream, generate_series(1, %s) AS id
    ON CONFLICT DO NOTHING
"""


def judge(url: str) -> float:
    """How many seconds it takes."""

    async def run() -> None:
        pool = create_pool(url, 2)
        while await judge_touched(pool, Settings()):
            pass
        await pool.dispose()

    started = time.perf_counter()
    asyncio.run(run())
    return time.perf_counter() - started


@pytest.mark.parametrize("hours_ago", [3])
def test_one_touched_hour_of_the_whole_fleet(
    database_url: str, connection: psycopg.Connection, report: Callable[[str], None], hours_ago: int
) -> None:
    store_day(connection, DEVICES, hours=6)
    connection.execute("CALL refresh_aggregates()")
    connection.execute(TOUCH, [hours_ago, DEVICES])
    seconds = judge(database_url)
    assert connection.execute("SELECT count(*) FROM efficiency_hour").fetchone() == (3 * DEVICES,)
    report(f"judging a touched hour of {2 * DEVICES:,} devices, and the hours beside it: {seconds:.1f} s")
    assert seconds < MAX_SECONDS
