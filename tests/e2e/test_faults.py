"""Faults of the database: each is answered soon and by its name, and over without a restart when it is over."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random

import httpx
import psycopg
import pytest
from psycopg import sql

from app.migrate import migrate
from app.postgres.embedded import running
from tests.fixtures.database import available_engines
from tests.fixtures.retrying import Load, check_stored
from tests.fixtures.sending import meter, minutes_ago, problem, vehicle
from tests.fixtures.service import Process, serving
from tests.fixtures.waiting import eventually, eventually_here

JSON = {"Content-Type": "application/json"}
ANSWERS = (
    "/v1/analytics/performance/V1",
    "/v1/analytics/vehicles/V1/series",
    "/v1/analytics/fleet/series",
    "/v1/analytics/vehicles/states",
    "/v1/analytics/meters/states",
    "/v1/analytics/freshness",
    "/v1/analytics/alerts",
    "/v1/analytics/sessions",
    "/v1/analytics/efficiency",
    "/v1/ingestion/mapping?vehicleId=V1",
    "/v1/storage",
)


class Database:
    """A server of its own, which a test may harm."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory, self.url = directory, url

    def processes(self) -> list[int]:
        """Returns the ids of all processes of the server."""
        postmaster = int((self.directory / "postgres" / "postmaster.pid").read_text().split()[0])
        parents = {
            int(stat.parent.name): int(stat.read_text().rpartition(")")[2].split()[1])
            for stat in Path("/proc").glob("[0-9]*/stat")
        }
        return [postmaster, *(process for process, parent in parents.items() if parent == postmaster)]

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            name = sql.Identifier(connection.info.dbname)
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(sql.SQL(statement).format(name=name))


@contextmanager
def frozen(database: Database) -> Iterator[None]:
    stopped = database.processes()
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in stopped:
            os.kill(process, signal.SIGCONT)


@contextmanager
def locked(database: Database) -> Iterator[None]:
    with psycopg.connect(database.url) as connection:
        connection.execute("LOCK TABLE meter_state, vehicle_state, meter_reading, installation")
        yield
        connection.rollback()


@contextmanager
def read_only(database: Database) -> Iterator[None]:
    database.execute("ALTER DATABASE {name} SET default_transaction_read_only = on")
    database.execute(TERMINATE)
    yield
    database.execute("ALTER DATABASE {name} RESET default_transaction_read_only")


@contextmanager
def out_of_connections(database: Database) -> Iterator[None]:
    with ExitStack() as taken:
        first = taken.enter_context(psycopg.connect(database.url, autocommit=True))
        with suppress(psycopg.OperationalError):
            while True:
                taken.enter_context(psycopg.connect(database.url))
        # What the service opens again is refused.
        first.execute(TERMINATE_SERVICE)
        with suppress(psycopg.OperationalError):
            while True:
                taken.enter_context(psycopg.connect(database.url))
        yield


@contextmanager
def often(database: Database, statement: str) -> Iterator[None]:
    """Executes a statement again and again."""
    over = threading.Event()

    def execute() -> None:
        while not over.wait(0.1):
            database.execute(statement)

    thread = threading.Thread(target=execute)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


TERMINATE_SERVICE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'wattline'
"""
ALTER = "ALTER TABLE meter_state ADD COLUMN added int; ALTER TABLE meter_state DROP COLUMN added"
TERMINATE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
FAULTS: dict[str, Callable[[Database], AbstractContextManager[None]]] = {
    "frozen": frozen,
    "locked": locked,
    "read_only": read_only,
    "out_of_connections": out_of_connections,
}
DISTURBANCES = FAULTS | {
    "terminated": lambda database: often(database, TERMINATE_SERVICE),
    "altered": lambda database: often(database, ALTER),
}


@pytest.fixture(params=list(available_engines()))
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with running(tmp_path, pg_bin=available_engines()[request.param].bin) as url:
        migrate(url, engine=request.param)
        yield Database(tmp_path, url)


BATCHES = [json.dumps([meter(at), vehicle(at, meterId="M1")]) for at in map(minutes_ago, range(5))]


def post(process: Process, number: int) -> httpx.Response:
    return process.post("/v1/telemetry", content=BATCHES[number], headers=JSON)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_database_is_answered_by_its_name_while_it_lasts(
    database: Database, tmp_path: Path, fault: str
) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr, serving(database.url, stderr=stderr) as process:
        assert post(process, 1).json()["inserted"] == 2
        for path in ANSWERS:
            process.get(path)  # now the service has connections
        with FAULTS[fault](database):
            # What ends connections is `away` for a moment.
            eventually(lambda: post(process, 2).json().get("code") == fault)
            refused = post(process, 2)
            problem(refused, 503, fault)
            assert int(refused.headers["retry-after"]) > 0
            ready = process.get("/health/ready")
            assert (ready.status_code, ready.json()["status"]) == (503, fault)
            assert process.get("/health/live").status_code == httpx.codes.OK
            assert "wattline_request_seconds" in process.get("/metrics").text
            for path in ANSWERS:
                answer = process.get(path)
                if answer.status_code != httpx.codes.OK:
                    problem(answer, 503, fault)
        eventually(lambda: process.get("/health/ready").json()["status"] == "ok")
        eventually(lambda: post(process, 2).status_code == httpx.codes.OK)
        assert post(process, 3).json()["inserted"] == 2
        for path in ANSWERS:
            assert process.get(path).status_code == httpx.codes.OK
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert {line.get("code") for line in lines if line["event"] == "request" and line["status"] == 503} >= {fault}
    assert [fault] in [line["faults"] for line in lines if line["event"] == "store_unavailable"]
    with psycopg.connect(database.url) as connection:
        assert connection.execute("SELECT count(*) FROM meter_reading").fetchone() == (3,)


def test_a_dead_connection_is_no_frozen_database(database: Database) -> None:
    with serving(database.url) as process, psycopg.connect(database.url, autocommit=True) as connection:
        backends = connection.execute("SELECT pid FROM pg_stat_activity WHERE query = 'SELECT'").fetchall()
        for (backend,) in backends:
            os.kill(backend, signal.SIGSTOP)
        try:
            assert len(backends) == 1
            asked = "SELECT FROM pg_stat_activity WHERE query = 'SELECT' AND pid <> %s"
            eventually(lambda: connection.execute(asked, backends[0]).rowcount)
            eventually(lambda: post(process, 1).status_code == httpx.codes.OK)
            assert process.get("/health/ready").json()["status"] == "ok"
        finally:
            for (backend,) in backends:
                os.kill(backend, signal.SIGCONT)


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.soak)])
@pytest.mark.parametrize("disturbance", DISTURBANCES)
async def test_nothing_is_lost_and_everything_is_answered_under_load(
    database: Database, disturbance: str, seconds: int
) -> None:
    with serving(database.url, WATTLINE_LOG_LEVEL="error") as process:
        load = Load(process.base_url, Random(7))
        sending = asyncio.create_task(load.run())
        await more(load, sending)
        before = process.peak_memory_bytes()
        with DISTURBANCES[disturbance](database):
            await asyncio.sleep(seconds)
        await more(load, sending)
        load.done = True
        await sending
        print(f"slowest answer {load.slowest_s:.1f} s")  # noqa: T201 - shown by -s
        assert load.unanswered == 0
        assert process.peak_memory_bytes() - before < 50 * 2**20
    with psycopg.connect(database.url) as connection:
        check_stored(connection, load)


async def more(load: Load, sending: asyncio.Task[None]) -> None:
    """Waits until more batches are acknowledged."""
    enough = load.acknowledged + 20

    def is_enough() -> bool:
        assert not sending.done(), sending.result()
        return load.acknowledged >= enough

    await eventually_here(is_enough)
