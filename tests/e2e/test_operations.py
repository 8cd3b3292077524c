"""docs/operations.md is true: its statements and commands do what it says, read from it and run on both engines."""

import os
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import sql

from app.database import connected
from app.migrate import migrate
from app.ops.maintenance import maintain
from app.ops.refresh import refresh_aggregates
from app.postgres.embedded import running
from tests.fixtures.commands import command
from tests.fixtures.database import Server, available_engines
from tests.fixtures.engines import on_plain, on_timescale, run_policies
from tests.fixtures.readings import answers, counted, meter_reading, midnight, random_readings, store
from tests.fixtures.sending import meter, minutes_ago, vehicle
from tests.fixtures.service import serving
from tests.integration.test_doctor import complaints
from tests.unit.test_docs import section

OWNER, SERVICE = "wattline_owner", "wattline_service"
ANSWERS = (
    "/health/ready",
    "/metrics",
    "/v1/analytics/alerts",
    "/v1/analytics/fleet/series?hours=24",
    "/v1/analytics/performance/V1",
    "/v1/analytics/vehicles/V1/coverage",
    "/v1/analytics/vehicles/V1/readings",
    "/v1/analytics/vehicles/states",
    "/v1/ingestion/mapping?vehicleId=V1",
)


def code(heading: str, language: str) -> list[str]:
    """Returns the blocks of a language below a heading."""
    return re.findall(rf"^```{language}\n(.*?)^```$", section("operations.md", heading), flags=re.DOTALL | re.MULTILINE)


def as_role(url: str, role: str) -> str:
    return url.replace("wattline@", f"{role}@")


def execute(url: str, statements: str) -> None:
    """Runs each statement in a transaction of its own, as psql does."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in filter(str.strip, statements.split(";\n")):
            connection.execute(statement.encode())


def run(shell: str, engine: str, directory: Path, **environment: str) -> str:
    """Returns what the commands print, which must succeed; the programs are those of the engine's PostgreSQL."""
    path = os.pathsep.join([str(available_engines()[engine].bin), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", "-euc", shell],
        capture_output=True,
        text=True,
        cwd=directory,
        env=os.environ | {"PATH": path} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def empty_fleet(server: Server) -> Iterator[str]:
    """Makes the roles and the database of the page; yields the database's URL for the administrator."""
    execute(server.url("postgres"), code("## Roles", "sql")[0])
    try:
        yield server.url("fleet")
    finally:
        execute(
            server.url("postgres"),
            f"DROP DATABASE IF EXISTS restored WITH (FORCE);\nDROP DATABASE fleet WITH (FORCE);\n"
            f"DROP ROLE {SERVICE};\nDROP ROLE {OWNER};\n",
        )


@pytest.fixture
def fleet(empty_fleet: str) -> str:
    """Migrates the database as its owner, and grants what the page says."""
    migrate(as_role(empty_fleet, OWNER))
    execute(as_role(empty_fleet, OWNER), code("## Roles", "sql")[1])
    return empty_fleet


def test_a_role_with_the_documented_rights_serves_and_stores(fleet: str) -> None:
    at = minutes_ago(2)
    batch = [meter(at), vehicle(at, meterId="M1"), meter(at - timedelta(days=3)), vehicle(at, -1)]
    with serving(as_role(fleet, SERVICE)) as process:
        mapping = {"vehicleId": "V1", "meterId": "M1"}
        assert process.post("/v1/ingestion/mapping", json=mapping).status_code == httpx.codes.OK
        for inserted in (3, 0):
            receipt = process.post("/v1/telemetry", json=batch).json()
            assert (receipt["inserted"], receipt["duplicates"], len(receipt["rejected"])) == (inserted, 3 - inserted, 1)
        refresh_aggregates(as_role(fleet, OWNER), None, None)
        freshness = process.get("/v1/analytics/freshness").json()
        assert freshness["asOf"] is not None
        for path in ANSWERS:
            answer = process.get(path)
            assert answer.status_code == httpx.codes.OK, (path, answer.text)
        listed = command("quarantine", "list", DATABASE_URL=as_role(fleet, SERVICE))
        assert "energy_out_of_range" in listed.stdout
    assert complaints(as_role(fleet, OWNER)) == []


async def test_that_role_maintains_the_database(fleet: str, engine: str) -> None:
    start, end = midnight(40), midnight(39)
    await store(as_role(fleet, SERVICE), meter_reading(start))
    async with connected(as_role(fleet, SERVICE)) as connection:
        assert await maintain(connection)
    with psycopg.connect(as_role(fleet, SERVICE)) as service:
        stored = service.execute("SELECT count(*) FROM meter_reading").fetchone()
        if engine == "plain":
            assert (stored, counted(service, "meter_hour", start, end)) == ((0,), 1)
            assert service.execute("SELECT prepared_until() > now() + INTERVAL '2 days'").fetchone() == (True,)
        else:
            assert stored == (1,)  # the owner's job drops it


REFUSED = (
    "DROP TABLE meter_reading",
    "TRUNCATE meter_reading",
    "ALTER TABLE meter_reading ADD COLUMN more integer",
    "CREATE TABLE other ()",
    "UPDATE retention SET drop_after = '1 day'",
    "DELETE FROM policy_change",
    f"SET ROLE {OWNER}",
)


def test_that_role_can_change_no_table_and_no_policy(fleet: str) -> None:
    for statement in REFUSED:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            execute(as_role(fleet, SERVICE), statement)


@on_timescale
async def test_that_role_can_run_none_of_the_jobs(fleet: str) -> None:
    await store(as_role(fleet, SERVICE), meter_reading(midnight(2)))
    with psycopg.connect(as_role(fleet, SERVICE), autocommit=True) as service:
        for procedure in ("cagg_refresh", "policy_compression", "policy_retention"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                run_policies(service, procedure)
    done = command("refresh", DATABASE_URL=as_role(fleet, SERVICE))
    assert (done.returncode, "must be owner" in done.stderr) == (1, True)


async def test_a_schema_of_its_own_holds_everything(empty_fleet: str) -> None:
    execute(as_role(empty_fleet, OWNER), code("## Shared servers", "sql")[0])
    migrate(as_role(empty_fleet, OWNER))
    receipt = await store(as_role(empty_fleet, OWNER), meter_reading(datetime.now(UTC)))
    assert receipt.inserted == 1
    refresh_aggregates(as_role(empty_fleet, OWNER), None, None)
    with psycopg.connect(empty_fleet) as connection:
        schemas = "SELECT DISTINCT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
        wheres = connection.execute(f"{schemas} WHERE relname LIKE 'meter_%' OR relname = 'device'").fetchall()
        assert wheres == [("telemetry",)]


async def test_a_dump_is_restored_whole(fleet: str, server: Server, engine: str, tmp_path: Path) -> None:
    dump, on_timescaledb, elsewhere, _ = code("## Backup and restore", "sh")
    # Two days ago at the latest: the doctor finds silent devices that have reported within a day.
    batch = [*random_readings(7, midnight(5), 3, 400)]
    stored = await store(as_role(fleet, SERVICE), *batch)
    assert stored.inserted
    refresh_aggregates(as_role(fleet, OWNER), None, None)
    with psycopg.connect(fleet) as connection:
        before = answers(connection, midnight(6), midnight(-1))
    run(dump, engine, tmp_path, DATABASE_URL=fleet)

    execute(server.url("postgres"), f"CREATE DATABASE restored OWNER {OWNER} TEMPLATE template0")
    restored = server.url("restored")
    # Only a superuser can restore TimescaleDB's own tables.
    restorer = restored if engine == "timescale" else as_role(restored, OWNER)
    run(on_timescaledb if engine == "timescale" else elsewhere, engine, tmp_path, RESTORED_URL=restorer)

    assert complaints(as_role(restored, OWNER)) == []
    again = await store(as_role(restored, SERVICE), *batch)
    assert (again.inserted, again.duplicates) == (0, stored.inserted + stored.duplicates)
    with psycopg.connect(as_role(restored, OWNER), autocommit=True) as connection:
        if engine == "timescale":
            for procedure in ("cagg_refresh", "policy_compression", "policy_retention"):
                run_policies(connection, procedure)
        assert answers(connection, midnight(6), midnight(-1)) == before


@pytest.mark.parametrize("engine_of_copy", list(available_engines()))
async def test_a_base_backup_starts_as_the_embedded_database(engine_of_copy: str, tmp_path: Path) -> None:
    base = code("## Backup and restore", "sh")[3]
    reading = meter_reading(datetime.now(UTC))
    with running(tmp_path / ".wattline", pg_bin=available_engines()[engine_of_copy].bin) as url:
        migrate(url)
        await store(url, reading)
        run(base, engine_of_copy, tmp_path, DATABASE_URL=url)
    with running(tmp_path / "copy") as url:
        again = await store(url, reading)
        assert (again.inserted, again.duplicates) == (0, 1)
        async with connected(url) as connection:
            assert await maintain(connection)
        assert complaints(url) == []


@on_timescale
def test_the_extension_is_updated_by_its_owner(fleet: str, engine: str, tmp_path: Path) -> None:
    (update,) = code("## Upgrades", "sh")
    assert "already installed" in run(update, engine, tmp_path, DATABASE_URL=as_role(fleet, OWNER))


def in_psql(statement: str, engine: str, directory: Path, url: str) -> str:
    (directory / "statement.sql").write_text(statement)
    return run('psql -XAt --set=ON_ERROR_STOP=1 --dbname="$URL" --file=statement.sql', engine, directory, URL=url)


def test_an_abandoned_slot_is_found_and_dropped(fleet: str, engine: str, tmp_path: Path) -> None:
    slots = code("## When the disk is full", "sql")[0]
    with psycopg.connect(fleet, autocommit=True) as connection:
        connection.execute("SELECT pg_create_physical_replication_slot('gone', true)")
        try:
            assert in_psql(slots, engine, tmp_path, as_role(fleet, OWNER)).startswith("gone|f|")
        finally:
            connection.execute("SELECT pg_drop_replication_slot('gone')")
    assert in_psql(slots, engine, tmp_path, as_role(fleet, OWNER)) == ""


QUARANTINED = """
    INSERT INTO quarantine (source, code, message, payload, hash, times, first_at, last_at)
    SELECT 'http', 'malformed', '', repeat(md5(n::text), 100)::bytea, decode(md5(n::text), 'hex'), 1, now(), now()
    FROM generate_series(1, 1000) AS n
"""


def test_truncating_the_quarantine_frees_its_disk_at_once(fleet: str, engine: str, tmp_path: Path) -> None:
    truncate = code("## When the disk is full", "sql")[1]
    with psycopg.connect(as_role(fleet, OWNER), autocommit=True) as owner:
        size = "SELECT pg_total_relation_size('quarantine')"
        empty = owner.execute(size).fetchall()
        owner.execute(QUARANTINED)
        assert owner.execute(size).fetchall() > empty
        owner.execute("DELETE FROM quarantine WHERE id % 2 = 0")
        in_psql(truncate, engine, tmp_path, as_role(fleet, OWNER))
        assert owner.execute(size).fetchall() == empty


@on_timescale
async def test_the_retention_jobs_drop_at_once_what_is_too_old(fleet: str, engine: str, tmp_path: Path) -> None:
    await store(as_role(fleet, SERVICE), meter_reading(midnight(40)), meter_reading(midnight(1)))
    in_psql(code("## When the disk is full", "sql")[2], engine, tmp_path, as_role(fleet, OWNER))
    with psycopg.connect(fleet) as connection:
        assert connection.execute("SELECT ts FROM meter_reading").fetchall() == [(midnight(1),)]


@on_plain
async def test_on_plain_the_service_drops_at_once_what_is_too_old(fleet: str) -> None:
    await store(as_role(fleet, SERVICE), *(meter_reading(midnight(days)) for days in (40, 35, 1)))
    async with connected(as_role(fleet, SERVICE)) as connection:
        assert await maintain(connection)
    partitions = sql.SQL("SELECT count(*) FROM pg_inherits WHERE inhparent = 'meter_reading'::regclass AND {}").format(
        sql.SQL("to_date(right(inhrelid::regclass::text, 8), 'YYYYMMDD') < now() - INTERVAL '31 days'")
    )
    with psycopg.connect(fleet) as plain:
        assert plain.execute(partitions).fetchone() == (0,)
