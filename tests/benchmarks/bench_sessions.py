"""Making the sessions of a fleet that charges all at once, and listing some of many."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from app.analytics.alerts.evaluator import judge_touched
from app.database import create_pool
from app.settings import Settings
from tests.benchmarks.conftest import AT_SITE, DEVICES, SESSIONS, Ask, Measure
from tests.benchmarks.history import store_day
from tests.fixtures.sending import stamp

DAY = datetime.now(UTC) - timedelta(days=10)
OF_DAY = f"from={stamp(DAY)}&to={stamp(DAY + timedelta(days=1))}"
PATHS = {
    "newest": ("/v1/analytics/sessions", f"the newest 100 of {SESSIONS:,} sessions"),
    "vehicle": ("/v1/analytics/sessions?vehicle=vehicle-7", f"a vehicle's of {SESSIONS:,} sessions"),
    "meter": ("/v1/analytics/sessions?meter=meter-7", f"a meter's of {SESSIONS:,} sessions"),
    "day": (f"/v1/analytics/sessions?limit=100&{OF_DAY}", f"100 of a day's {2 * DEVICES:,} sessions"),
    "month": (
        f"/v1/analytics/sessions?vehicle=vehicle-7&from={stamp(DAY - timedelta(days=20))}",
        f"a vehicle's of 30 days, of {SESSIONS:,} sessions",
    ),
    "site": ("/v1/analytics/sessions?site=depot", f"the newest 100 of a site of {AT_SITE} devices"),
    "nowhere": ("/v1/analytics/sessions?site=nowhere", "sessions of a site without devices"),
}

# Readings of now touch the hour that is not over.
TOUCH = """
    INSERT INTO touched_hour (stream, device_id, hour, at)
    SELECT stream, id, date_trunc('hour', now()), now() - INTERVAL '1 hour'
    FROM unnest(ARRAY['meter', 'vehicle']) AS stream, generate_series(1, %s) AS id
"""


def test_running_sessions_of_the_whole_fleet(
    database_url: str, connection: psycopg.Connection, benchmark: BenchmarkFixture, report: Callable[[str], None]
) -> None:
    """Makes the sessions of all vehicles that have charged for six hours, as each five minutes."""
    store_day(connection, DEVICES, hours=6)
    connection.execute(TOUCH, [DEVICES])

    async def judge() -> None:
        pool = create_pool(database_url, 2)
        await judge_touched(pool, Settings())
        await pool.dispose()

    def make() -> None:
        started, cpu_started = time.perf_counter(), time.process_time()
        asyncio.run(judge())
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        report(
            f"making the running sessions of {DEVICES:,} vehicles, of 6 h each: {seconds:.1f} s, "
            f"and {cpu_seconds:.1f} s of this process's CPU"
        )

    benchmark.pedantic(make, rounds=1)  # type: ignore[no-untyped-call]
    assert connection.execute("SELECT count(*) FROM charging_session").fetchone() == (DEVICES,)


@pytest.mark.parametrize("what", PATHS)
def test_answers(what: str, ask: Ask, measure: Measure) -> None:
    path, sentence = PATHS[what]
    assert bool(ask(path)["sessions"]) == (what != "nowhere")
    measure(sentence, lambda _: path)
