"""The efficiency of one vehicle, over HTTP in this process, with a day of 5,000 meters and 5,000 vehicles stored."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import count

import httpx
import psycopg
import pytest
import uvloop
from pytest_benchmark.fixture import BenchmarkFixture

from app.settings import Settings
from tests.benchmarks.history import store_day
from tests.fixtures.service import service

DEVICES = 5_000
ROUNDS = 100

Ask = Callable[[str], httpx.Response]


@pytest.fixture
def ask(database_url: str, connection: psycopg.Connection) -> Iterator[Ask]:
    """GETs a path from the service on the stored day."""
    store_day(connection, DEVICES)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        context = service(Settings(database_url=database_url))
        client = runner.run(context.__aenter__())
        yield lambda path: runner.run(client.get(path))
        runner.run(context.__aexit__(None, None, None))


def test_performance_of_one_vehicle(ask: Ask, benchmark: BenchmarkFixture, report: Callable[[str], None]) -> None:
    vehicles = count(1, step=37)

    def get() -> None:
        answer = ask(f"/v1/analytics/performance/vehicle-{next(vehicles)}")
        assert answer.json()["coverage"]["paired"] > 1_400

    benchmark.pedantic(get, rounds=ROUNDS, warmup_rounds=5)  # type: ignore[no-untyped-call]
    assert benchmark.stats is not None
    median_ms = benchmark.stats.stats.median * 1000
    report(f"performance of one vehicle over 24 h: median {median_ms:.1f} ms of {ROUNDS} rounds")
