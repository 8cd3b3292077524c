"""The benchmarks' fixtures: seeded data, GC as in production, the figures in the summary at the end."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from http.client import HTTPConnection
from typing import Any

import psycopg
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.benchmarks.history import CHARGED, HOURS, LABELS, OPEN, store_day
from tests.fixtures.database import Server
from tests.fixtures.service import Process, serving

DEVICES = 5_000
ALERTS = 1_000
SESSIONS = 57 * DEVICES
AT_SITE = 40
ROUNDS = 100
INGEST_HZ = 10
INGEST_READINGS = 100

_LINES = pytest.StashKey[list[str]]()

Ask = Callable[[str], Any]
Measure = Callable[[str, Callable[[int], str]], None]


@pytest.fixture
def report(request: pytest.FixtureRequest, engine: str) -> Callable[[str], None]:
    """Adds a line to the summary at the end of the run."""
    lines = request.config.stash.setdefault(_LINES, [])
    return lambda line: lines.append(f"{engine}: {line}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_LINES, []):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def day_url(server: Server) -> Iterator[str]:
    """Makes a database with 26 hours of 5,000 meters and as many vehicles, judged, with 1,000 open alerts.

    In the field, a window of 24 hours has minutes before it.
    """
    url = server.clone()
    with psycopg.connect(url, autocommit=True) as connection:
        store_day(connection, DEVICES, hours=26)
        connection.execute(HOURS, [DEVICES])
        connection.execute(OPEN, [ALERTS])
        connection.execute(CHARGED, [DEVICES])
        connection.execute("UPDATE installation SET judged_as_of = now()")
        connection.execute(LABELS.encode(), [AT_SITE // 2] * 2)
        connection.execute("VACUUM ANALYZE efficiency_hour, alert, charging_session")
    yield url
    server.drop(url)


@pytest.fixture(scope="session")
def loaded(day_url: str) -> Iterator[Process]:
    """Runs the real server with that day, while it takes 1,000 readings/s."""
    with serving(day_url) as process, _ingest(process.port), _refresh(day_url):
        yield process


@pytest.fixture(scope="session")
def ask(loaded: Process) -> Iterator[Ask]:
    """Asks the server over one connection, as a dashboard does."""
    with closing(HTTPConnection("127.0.0.1", loaded.port)) as client:

        def get(path: str) -> Any:
            client.request("GET", path)
            answer = client.getresponse()
            body = answer.read()
            assert answer.status == 200, body
            return json.loads(body)

        yield get


@contextmanager
def _ingest(port: int) -> Iterator[None]:
    """Sends readings of now, a batch of 100 each tenth of a second."""
    stopped = threading.Event()
    failures: list[str] = []
    number, started = 0, time.monotonic()

    def send() -> None:
        nonlocal number
        with closing(HTTPConnection("127.0.0.1", port)) as client:
            due = started
            while not stopped.wait(max(0.0, due - time.monotonic())):
                due += 1 / INGEST_HZ
                client.request(
                    "POST", "/v1/telemetry", json.dumps(_batch(number)), {"Content-Type": "application/json"}
                )
                answer = client.getresponse()
                body = json.loads(answer.read())
                if answer.status != 200 or body["inserted"] != INGEST_READINGS:
                    failures.append(str(body))
                number += 1

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        yield
    finally:
        stopped.set()
        sender.join(timeout=10)
    assert failures == []
    assert number > 0.9 * INGEST_HZ * (time.monotonic() - started)


@contextmanager
def _refresh(url: str) -> Iterator[None]:
    """Does what the refresh policies do each minute; the tests' servers run without them."""
    stopped = threading.Event()

    def refresh() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not stopped.wait(60):
                connection.execute("CALL refresh_aggregates(now() - INTERVAL '1 hour', now())")

    refresher = threading.Thread(target=refresh, daemon=True)
    refresher.start()
    yield
    stopped.set()
    refresher.join(timeout=60)


def _batch(number: int) -> list[dict[str, Any]]:
    now = datetime.now(UTC).isoformat()
    first = number * INGEST_READINGS // 2 % DEVICES
    devices = range(first + 1, first + INGEST_READINGS // 2 + 1)
    meters = [{"meterId": f"meter-{n}", "timestamp": now, "kwhConsumedAc": 0.12, "voltage": 230} for n in devices]
    vehicles = [
        {"vehicleId": f"vehicle-{n}", "meterId": f"meter-{n}", "timestamp": now, "kwhDeliveredDc": 0.108, "soc": 50}
        for n in devices
    ]
    return [*meters, *vehicles]


@pytest.fixture
def measure(ask: Ask, benchmark: BenchmarkFixture, report: Callable[[str], None]) -> Measure:
    """Asks for a path 100 times, and reports the median; the path may depend on the number of the round."""

    def run(what: str, path: Callable[[int], str]) -> None:
        rounds = iter(range(ROUNDS + 5))
        benchmark.pedantic(lambda: ask(path(next(rounds))), rounds=ROUNDS, warmup_rounds=5)  # type: ignore[no-untyped-call]
        assert benchmark.stats is not None
        median_ms = benchmark.stats.stats.median * 1000
        report(f"{what}: median {median_ms:.1f} ms of {ROUNDS} rounds")

    return run
