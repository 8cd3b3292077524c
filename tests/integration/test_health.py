"""The health calls: is the service alive, can it serve, and on what?"""

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psycopg
import pytest

from app import __version__
from app.faults import STORE_FAULTS
from app.migrate import migrate, newest_revision
from app.postgres.embedded import running
from app.settings import Settings
from tests.fixtures.database import available_engines
from tests.fixtures.engines import needs_timescale, on_timescale
from tests.fixtures.readings import meter_reading, store
from tests.fixtures.sending import meter, minutes_ago, problem
from tests.fixtures.service import service
from tests.fixtures.waiting import eventually_here
from tests.integration.test_doctor import complaints


async def test_a_service_that_can_serve_names_engine_and_versions(
    client: httpx.AsyncClient, engine: str, connection: psycopg.Connection
) -> None:
    live = await client.get("/health/live")
    assert (live.status_code, live.json()) == (200, {"status": "ok", "version": __version__})
    answer = await client.get("/health/ready")
    ready = answer.json()
    assert (answer.status_code, ready["status"], ready["version"], ready["engine"]) == (200, "ok", __version__, engine)
    assert ready["revision"] == ready["neededRevision"] == newest_revision()
    assert connection.execute("SHOW server_version").fetchone() == (ready["postgresql"],)
    timescaledb = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'").fetchone()
    assert ready["timescaledb"] == (timescaledb[0] if timescaledb else None)
    assert (timescaledb is not None) == (engine == "timescale")


async def test_another_revision_is_not_ready(client: httpx.AsyncClient, connection: psycopg.Connection) -> None:
    connection.execute("UPDATE wattline_version SET version_num = 'other'")
    answer = await client.get("/health/ready")
    assert (answer.status_code, answer.json()["status"], answer.json()["revision"]) == (503, "not_migrated", "other")


async def test_a_database_of_other_sql_is_not_ready(client: httpx.AsyncClient, connection: psycopg.Connection) -> None:
    connection.execute("UPDATE installation SET sql_checksum = NULL")
    ready = await client.get("/health/ready")
    assert (ready.status_code, ready.json()["status"], ready.json()["revision"]) == (
        503,
        "other_sql",
        newest_revision(),
    )


async def test_warnings_go_on_after_the_connection_was_lost(
    database_url: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.ops.watch.PERIOD_SECONDS", 0.1)
    async with service(Settings(database_url=database_url)) as client:

        async def warned() -> set[str]:
            return {warning["code"] for warning in (await client.get("/health/ready")).json()["warnings"]}

        async def is_warned() -> bool:
            return "not_durable" in await warned()

        await eventually_here(is_warned)
        connection.execute(TERMINATE)
        connection.execute("TRUNCATE policy_change")

        async def is_found() -> bool:
            answer = await client.get("/metrics")
            return 'wattline_finding{code="policies_missing"}' in answer.text

        await eventually_here(is_found)
        # It is the status, and no warning.
        assert (await client.get("/health/ready")).json()["status"] == "policies_missing"
        assert "policies_missing" not in await warned()


TERMINATE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'wattline'
"""
FAULTS = {
    "read_only": "ALTER DATABASE {name} SET default_transaction_read_only = on",
    "keys_missing": "ALTER TABLE vehicle_reading DROP CONSTRAINT vehicle_reading_pkey",
    "policies_missing": "TRUNCATE policy_change",
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_database_that_cannot_store_is_not_ready_and_stores_nothing(
    database_url: str, connection: psycopg.Connection, fault: str
) -> None:
    connection.execute(FAULTS[fault].format(name=connection.info.dbname).encode())
    await refuses_batches(database_url, fault)
    assert connection.execute("SELECT count(*) FROM meter_reading").fetchone() == (0,)


async def refuses_batches(url: str, fault: str) -> None:
    """Ready names the fault, a batch is answered with its sentence, and the doctor says the same once."""
    async with service(Settings(database_url=url)) as client:
        answer = await client.get("/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, fault)
        code = "read_only" if fault in {"standby", "read_only"} else "store_unavailable"
        refused = problem(await client.post("/v1/telemetry", json=meter(minutes_ago(1))), 503, code)
        assert refused["detail"] == STORE_FAULTS[fault]
    assert complaints(url).count(STORE_FAULTS[fault]) == 1


WRITE = "SELECT, INSERT, UPDATE, DELETE"


@pytest.mark.parametrize(
    ("rights", "ready"),
    [("", []), ("SELECT", []), (WRITE, ["timescale"]), (f"{WRITE}, MAKE DAYS", ["timescale", "plain"])],
)
async def test_a_role_that_may_not_store_is_not_ready(
    database_url: str, connection: psycopg.Connection, engine: str, rights: str, ready: list[str]
) -> None:
    """On plain PostgreSQL, the first reading of a day needs a partition, which takes the owner's rights."""
    on_tables, _, make_days = rights.partition(", MAKE")
    connection.execute("DROP ROLE IF EXISTS reader")
    connection.execute("CREATE ROLE reader LOGIN")
    try:
        if on_tables:
            connection.execute(f"GRANT {on_tables} ON ALL TABLES IN SCHEMA public TO reader".encode())
        if make_days:
            connection.execute("ALTER FUNCTION prepare_days(timestamptz, timestamptz) SECURITY DEFINER")
        async with service(Settings(database_url=database_url.replace("wattline@", "reader@"))) as client:
            answer = await client.get("/health/ready")
            expected = (200, "ok") if engine in ready else (503, "not_permitted")
            assert (answer.status_code, answer.json()["status"]) == expected
            stored = await client.post("/v1/telemetry", json=meter(minutes_ago(1)))
            assert stored.status_code == expected[0]
    finally:
        connection.execute("DROP OWNED BY reader")
        connection.execute("DROP ROLE reader")


def restore_without_preparation(url: str, into: str) -> None:
    """As an operator does who reads neither the manual nor the three errors."""
    pg_bin = available_engines()["timescale"].bin
    dump = subprocess.run([pg_bin / "pg_dump", "-Fc", url], capture_output=True, check=True).stdout
    command = [str(pg_bin / "pg_restore"), "--no-owner", "-d", into]
    assert subprocess.run(command, input=dump, capture_output=True).returncode == 1


@needs_timescale
async def test_a_server_that_does_not_load_timescale_is_not_ready(tmp_path: Path) -> None:
    pg_bin = available_engines()["timescale"].bin
    with running(tmp_path, pg_bin=pg_bin) as url:
        migrate(url)
    with running(tmp_path, pg_bin=pg_bin, settings={"shared_preload_libraries": ""}) as url:
        await refuses_batches(url, "not_preloaded")
        async with service(Settings(database_url=url)) as client:
            answer = problem(await client.get("/v1/analytics/freshness"), 503, "store_unavailable")
            assert answer["detail"] == STORE_FAULTS["not_preloaded"]


@on_timescale
async def test_a_restore_without_preparation_stores_nothing(database_url: str, empty_database_url: str) -> None:
    await store(database_url, meter_reading(datetime.now(UTC)))
    restore_without_preparation(database_url, empty_database_url)
    migrate(empty_database_url)
    await refuses_batches(empty_database_url, "keys_missing")


async def test_a_database_without_tables_is_not_ready_and_stores_nothing(empty_database_url: str) -> None:
    async with service(Settings(database_url=empty_database_url)) as client:
        answer = await client.get("/health/ready")
        ready = answer.json()
        assert (answer.status_code, ready["status"], ready["revision"]) == (503, "not_migrated", None)
        assert ready["postgresql"]
        assert (await client.get("/health/live")).status_code == httpx.codes.OK
        for refused in (
            await client.post("/v1/telemetry", json=meter(minutes_ago(1))),
            await client.get("/v1/analytics/performance/V1"),
            await client.get("/v1/analytics/freshness"),
        ):
            assert problem(refused, 503, "store_unavailable")["detail"].endswith("run `wattline migrate`.")
            assert int(refused.headers["retry-after"]) > 0
