"""The health calls: is the service alive, can it serve, and on what?"""

import httpx
import psycopg

from app import __version__
from app.migrate import newest_revision
from app.settings import Settings
from tests.fixtures.sending import meter, minutes_ago, problem
from tests.fixtures.service import service


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
