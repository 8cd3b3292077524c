"""Migrations: up, down and up again, several at once, against held locks, and the choice of the engine."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import OperationalError

from app.database import command_connection
from app.errors import SetupError
from app.migrate import (
    ALEMBIC_INI,
    OTHER_SQL,
    Migrated,
    migrate,
    migrated,
    newest_revision,
    refuse_unmigrated,
    sql_checksum,
)
from app.postgres.embedded import running
from tests.fixtures.database import available_engines
from tests.fixtures.engines import needs_timescale, on_plain, on_timescale
from tests.fixtures.readings import Rows, answers, midnight, random_readings, store
from tests.fixtures.waiting import eventually

# These are all of our relations and functions in the schema, without those of extensions.
OBJECTS = """
    SELECT relkind::text, relname FROM pg_class
    WHERE relnamespace = 'public'::regnamespace
        AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype = 'e')
    UNION ALL
    SELECT 'function', oid::regprocedure::text FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace
        AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')
    ORDER BY 1, 2
"""


def alembic(url: str, run: Callable[[Config], None]) -> None:
    with command_connection(url) as connection:
        config = Config(ALEMBIC_INI)
        config.attributes["connection"] = connection
        run(config)


def downgrade(url: str, revision: str = "base") -> None:
    alembic(url, lambda config: command.downgrade(config, revision))


def rows(url: str, query: str) -> Rows:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def state(url: str) -> Migrated:
    with command_connection(url) as connection:
        return migrated(connection)


async def fill(url: str) -> None:
    """Stores three days of readings, refreshed."""
    await store(url, *random_readings(2, midnight(3), 3.5, 600))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CALL refresh_aggregates()")


def counted(url: str) -> Rows:
    return rows(url, "SELECT (SELECT count(*) FROM meter_reading), (SELECT count(*) FROM vehicle_reading)")


def test_an_empty_database_goes_up_down_and_up_again(empty_database_url: str) -> None:
    assert state(empty_database_url).revision is None
    migrate(empty_database_url)
    made = rows(empty_database_url, OBJECTS)
    assert state(empty_database_url).revision == newest_revision()
    downgrade(empty_database_url)
    assert rows(empty_database_url, OBJECTS) == [("i", "wattline_version_pkc"), ("r", "wattline_version")]
    migrate(empty_database_url)
    assert rows(empty_database_url, OBJECTS) == made
    alembic(empty_database_url, command.check)


async def test_a_filled_database_goes_up_down_and_up_again(database_url: str) -> None:
    made = rows(database_url, OBJECTS)
    await fill(database_url)
    downgrade(database_url)
    assert rows(database_url, OBJECTS) == [("i", "wattline_version_pkc"), ("r", "wattline_version")]
    migrate(database_url)
    assert rows(database_url, OBJECTS) == made
    await fill(database_url)
    ((meter, vehicle),) = counted(database_url)
    assert meter + vehicle == 600


async def test_the_aggregates_can_be_made_anew_over_the_readings(database_url: str) -> None:
    await fill(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        before = answers(connection, midnight(4), midnight(-1), "hour", "day")
        downgrade(database_url, "0003")
        migrate(database_url)
        connection.execute("CALL refresh_aggregates()")
        assert answers(connection, midnight(4), midnight(-1), "hour", "day") == before


async def test_a_filled_database_is_as_its_migrations_want_it(database_url: str) -> None:
    await fill(database_url)
    before = rows(database_url, OBJECTS), counted(database_url)
    alembic(database_url, command.check)
    assert migrate(database_url) == []
    assert (rows(database_url, OBJECTS), counted(database_url)) == before


def test_each_revision_records_the_checksum_of_the_sql_up_to_it(database_url: str) -> None:
    assert state(database_url).checksum == sql_checksum(newest_revision())
    downgrade(database_url, "0002")
    assert state(database_url)[1:] == ("0002", sql_checksum("0002"))
    assert sql_checksum("0002") != sql_checksum("0003")
    # A database of an earlier release is no other one.
    migrate(database_url)
    refuse_unmigrated(database_url)


OTHERS = {
    "another checksum": "UPDATE installation SET sql_checksum = md5('other')",
    "no checksum": "UPDATE installation SET sql_checksum = NULL",
    # As before checksums were recorded.
    "no version table": """
        ALTER TABLE wattline_version RENAME TO alembic_version;
        ALTER TABLE installation DROP COLUMN sql_checksum
    """,
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@on_plain
def test_a_database_made_by_other_sql_is_refused_and_stays_as_it_is(
    database_url: str, connection: psycopg.Connection, other: str
) -> None:
    connection.execute(other.encode())
    before = rows(database_url, OBJECTS)
    for refused in (migrate, refuse_unmigrated, downgrade):
        with pytest.raises(SetupError, match=re.escape(OTHER_SQL)):
            refused(database_url)
    assert rows(database_url, OBJECTS) == before


@on_plain
def test_another_application_may_migrate_the_same_database_by_alembic(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
        connection.execute("INSERT INTO alembic_version VALUES ('0003')")
    migrate(empty_database_url)
    downgrade(empty_database_url)
    assert rows(empty_database_url, "SELECT version_num FROM alembic_version") == [("0003",)]


def migrating(stack: ExitStack, url: str) -> subprocess.Popen[str]:
    """Starts `wattline migrate` as a process."""
    return stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-m", "app.cli", "migrate"],
            env=os.environ | {"DATABASE_URL": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    )


def test_of_two_migrations_at_once_one_does_the_work_and_both_end_well(empty_database_url: str, engine: str) -> None:
    with ExitStack() as stack:
        processes = [migrating(stack, empty_database_url) for _ in range(2)]
        outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert state(empty_database_url).revision == newest_revision()
    applied = [output.splitlines() for output, _ in outputs]
    (first, second) = sorted(applied, key=len)
    assert first == [
        f"The engine is {engine}, as recorded when the database was first migrated.",
        "The database is migrated.",
    ]
    offers = {"plain": "does not offer", "timescale": "offers"}[engine]
    assert second[0] == f"The engine is {engine}, since this server {offers} TimescaleDB Community."
    assert len(second) > len(first)


# It holds longer than the 5 s that a migration waits for any other lock.
WAITS_FOR_LONG = """
    SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND NOT granted AND waitstart < clock_timestamp() - INTERVAL '5.5 seconds'
"""


@on_plain
def test_a_migration_waits_for_another_that_takes_longer_than_any_lock_may(database_url: str) -> None:
    with ExitStack() as stack:
        other = psycopg.connect(database_url, autocommit=True)
        other.execute("SELECT pg_advisory_lock(hashtext('wattline migrate'))")
        process = migrating(stack, database_url)
        with other:
            eventually(lambda: process.poll() is not None or other.execute(WAITS_FOR_LONG).fetchall())
        output = process.communicate()
    assert process.returncode == 0, output


def test_a_migration_that_meets_a_held_lock_fails_within_its_limit(database_url: str) -> None:
    made = rows(database_url, OBJECTS)
    with psycopg.connect(database_url) as reader:
        reader.execute("LOCK TABLE meter_reading IN ACCESS EXCLUSIVE MODE")
        started = time.monotonic()
        with pytest.raises(OperationalError) as refused:
            downgrade(database_url, "0001")
        assert isinstance(refused.value.orig, psycopg.errors.LockNotAvailable)
        assert time.monotonic() - started < 30  # the limit is 5 s
    # Each revision is a transaction: those before the failed one are done, and the way up is open.
    assert state(database_url).revision in ("0002", "0003")
    migrate(database_url)
    assert rows(database_url, OBJECTS) == made


def test_the_engine_is_the_best_that_the_server_has(empty_database_url: str, engine: str) -> None:
    migrate(empty_database_url)
    assert state(empty_database_url).engine == engine


@on_timescale
async def test_plain_works_whole_on_a_server_with_timescale(empty_database_url: str) -> None:
    migrate(empty_database_url, engine="plain")
    assert state(empty_database_url).engine == "plain"
    assert rows(empty_database_url, "SELECT extname FROM pg_extension WHERE extname = 'timescaledb'") == []
    await fill(empty_database_url)
    await store(empty_database_url, *random_readings(3, datetime.now(UTC) - timedelta(days=40), 1, 50))
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        before = answers(connection, midnight(60), midnight(-1))
        assert all(before.values())
        while connection.execute("SELECT drop_expired()").fetchone() == (True,):
            pass
        after = answers(connection, midnight(60), midnight(-1))
        connection.execute("CALL refresh_aggregates(now() - INTERVAL '1 day', now())")
        freshness = connection.execute("SELECT name FROM aggregate_freshness() WHERE as_of <= now()").fetchall()
    assert len(freshness) == 10
    assert len(after["meter_minute"]) < len(before["meter_minute"])
    assert {name: after[name] for name in after if name.endswith(("hour", "day"))} == {
        name: before[name] for name in before if name.endswith(("hour", "day"))
    }
    alembic(empty_database_url, command.check)
    downgrade(empty_database_url)
    migrate(empty_database_url, engine="plain")


@on_plain
def test_timescale_where_the_server_lacks_it_is_refused_and_leaves_nothing(empty_database_url: str) -> None:
    with pytest.raises(SetupError, match="does not offer TimescaleDB Community"):
        migrate(empty_database_url, engine="timescale")
    assert state(empty_database_url).revision is None
    migrate(empty_database_url, engine="auto")
    assert state(empty_database_url).engine == "plain"


@on_timescale
def test_a_role_that_may_not_create_the_extension_does_not_end_on_plain_unawares(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS tenant")
        connection.execute("CREATE ROLE tenant LOGIN")
        connection.execute("GRANT CREATE ON SCHEMA public TO tenant")
        connection.execute("CREATE EXTENSION btree_gist")
        url = empty_database_url.replace("wattline@", "tenant@")
        lines: list[str] = []
        try:
            for engine in ("auto", "timescale"):
                with pytest.raises(SetupError, match=r"CREATE EXTENSION timescaledb; .*WATTLINE_ENGINE=plain"):
                    migrate(url, engine=engine, progress=lines.append)
                assert state(url).engine is None
            migrate(url, engine="plain", progress=lines.append)
            assert lines == ["The engine is plain, as WATTLINE_ENGINE asks."]
        finally:
            connection.execute("DROP OWNED BY tenant CASCADE")
            connection.execute("DROP ROLE tenant")


@needs_timescale
def test_a_server_that_has_timescale_but_does_not_load_it_is_refused(tmp_path: Path) -> None:
    pg_bin = available_engines()["timescale"].bin
    with running(tmp_path, pg_bin=pg_bin, settings={"shared_preload_libraries": ""}) as url:
        with pytest.raises(SetupError, match="shared_preload_libraries"):
            migrate(url)
        migrate(url, engine="plain")


def test_an_engine_that_contradicts_the_record_is_refused(database_url: str, engine: str) -> None:
    with pytest.raises(SetupError, match=f"migrated for the engine '{engine}'"):
        migrate(database_url, engine="plain" if engine == "timescale" else "timescale")
    assert state(database_url).engine == engine
    assert migrate(database_url, engine="auto") == []
