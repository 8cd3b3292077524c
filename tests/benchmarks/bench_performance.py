"""The efficiency of one vehicle over HTTP, from the real server, with a day of 5,000 meters and as many vehicles."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from itertools import count

import psycopg
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.benchmarks.history import store_day
from tests.fixtures.database import Server
from tests.fixtures.service import serving

DEVICES = 5_000
ROUNDS = 100

Ask = Callable[[int], None]


@pytest.fixture(scope="module")
def ask(server: Server) -> Iterator[Ask]:
    """Asks for the efficiency of the vehicle with that number; one connection, as a dashboard has."""
    url = server.clone()
    with psycopg.connect(url, autocommit=True) as connection:
        store_day(connection, DEVICES)
    with serving(url) as process, closing(HTTPConnection("127.0.0.1", process.port)) as client:

        def get(number: int) -> None:
            client.request("GET", f"/v1/analytics/performance/vehicle-{number}")
            assert json.loads(client.getresponse().read())["coverage"]["paired"] > 1_400

        yield get
    server.drop(url)


def test_performance_of_one_vehicle(ask: Ask, benchmark: BenchmarkFixture, report: Callable[[str], None]) -> None:
    benchmark.pedantic(ask, args=(4_711,), rounds=ROUNDS, warmup_rounds=5)  # type: ignore[no-untyped-call]
    report(f"performance of one vehicle over 24 h: median {_median_ms(benchmark):.1f} ms of {ROUNDS} rounds")


def test_performance_of_a_vehicle_not_asked_for_before(
    ask: Ask, benchmark: BenchmarkFixture, report: Callable[[str], None]
) -> None:
    numbers = count(1, step=37)
    benchmark.pedantic(lambda: ask(next(numbers)), rounds=ROUNDS, warmup_rounds=5)  # type: ignore[no-untyped-call]
    report(f"performance of another vehicle each time: median {_median_ms(benchmark):.1f} ms of {ROUNDS} rounds")


def _median_ms(benchmark: BenchmarkFixture) -> float:
    assert benchmark.stats is not None
    median: float = benchmark.stats.stats.median
    return median * 1000
