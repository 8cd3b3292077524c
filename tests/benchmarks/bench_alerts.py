"""Judging an hour of the whole fleet, and the answers made of judged hours and alerts."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import psycopg
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from app.analytics.alerts.evaluator import judge_touched
from app.database import create_pool
from app.settings import Settings
from tests.benchmarks.conftest import ALERTS, DEVICES, Ask, Measure
from tests.benchmarks.history import store_day

_NOW = datetime.now(UTC)
PATHS = {
    "vehicles": ("/v1/analytics/efficiency?worst=20", "worst 20 of the vehicles, 24 h"),
    "meters": ("/v1/analytics/efficiency?worst=20&by=meter", "worst 20 of the meters, 24 h"),
    "computed": (
        f"/v1/analytics/efficiency?worst=20&{urlencode({'from': (_NOW - timedelta(hours=24)).isoformat()})}",
        "worst 20 of the vehicles, 24 h, computed each time",
    ),
    "alerts": ("/v1/analytics/alerts?open=true", f"100 of {ALERTS:,} open alerts"),
}

TOUCH = """
    INSERT INTO touched_hour (stream, device_id, hour, at)
    SELECT stream, id, date_trunc('hour', now() - INTERVAL '10 minutes') - %s * INTERVAL '1 hour',
           now() - INTERVAL '1 hour'
    FROM unnest(ARRAY['meter', 'vehicle']) AS stream, generate_series(1, %s) AS id
"""


def test_one_touched_hour_of_the_whole_fleet(
    database_url: str, connection: psycopg.Connection, benchmark: BenchmarkFixture, report: Callable[[str], None]
) -> None:
    """Judges the hour that is over, as once an hour, and one of which readings came late."""
    store_day(connection, DEVICES, hours=6)

    async def judge() -> None:
        pool = create_pool(database_url, 2)
        while await judge_touched(pool, Settings()):
            pass
        await pool.dispose()

    def judge_each() -> None:
        for what, hours_ago in ("hour that is over", 1), ("late hour", 3):
            connection.execute(TOUCH, [hours_ago, DEVICES])
            started, cpu_started = time.perf_counter(), time.process_time()
            asyncio.run(judge())
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            report(
                f"judging a touched {what} of {2 * DEVICES:,} devices, with those beside it: {seconds:.1f} s, "
                f"and {cpu_seconds:.1f} s of this process's CPU"
            )
            assert connection.execute("SELECT count(*) FROM touched_hour").fetchone() == (0,)

    benchmark.pedantic(judge_each, rounds=1)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("what", PATHS)
def test_answers(what: str, ask: Ask, measure: Measure) -> None:
    path, sentence = PATHS[what]
    answer = ask(path)
    assert len(answer.get("ranking") or answer["alerts"]) == (100 if what == "alerts" else 20)
    measure(sentence, lambda _: path)
