"""TimescaleDB's jobs on servers with workers: each cause that keeps jobs from their work is one finding."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Timer

import psycopg
import pytest

from app.database import connected
from app.migrate import migrate
from app.ops.doctor.checks import wrong
from app.ops.doctor.facts import Finding
from app.ops.maintenance import maintain
from app.postgres.embedded import running
from tests.fixtures.database import available_engines
from tests.fixtures.engines import needs_timescale
from tests.fixtures.readings import meter_reading, store
from tests.fixtures.waiting import eventually
from tests.integration.test_doctor import facts

pytestmark = needs_timescale

JOBS = "late_jobs", "crashed_jobs", "failed_jobs", "too_few_workers", "no_scheduler", "owner_no_login", "not_refreshed"
SCHEDULE = """
    SELECT alter_job(job_id, schedule_interval => %s::interval, next_start => now() + %s::interval)
    FROM timescaledb_information.jobs WHERE proc_name = 'cagg_refresh'
"""
EVERY_SECOND = ["1 second", "0 seconds"]
OTHERS_RAN = """
    SELECT WHERE NOT EXISTS (
        SELECT FROM background_jobs() WHERE work <> 'refresh' AND last_status IS DISTINCT FROM 'success')
"""
REFRESHING = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'Refresh meter_minute %' AND wait_event_type = 'Lock'
"""


@contextmanager
def served(directory: Path, **settings: str) -> Iterator[str]:
    """Runs a server of its own with a database that is not migrated."""
    settings = {"fsync": "off"} | settings
    with running(directory, pg_bin=available_engines()["timescale"].bin, settings=settings) as url:
        yield url


def of_jobs(url: str) -> list[Finding]:
    return [finding for finding in wrong(facts(url)) if finding.code in JOBS]


def other_database(url: str, name: str) -> None:
    """Makes another database with TimescaleDB, whose scheduler takes a worker."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    with psycopg.connect(url.replace("@/wattline?", f"@/{name}?"), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION timescaledb")


def test_an_owner_who_may_not_log_in_is_one_finding(tmp_path: Path) -> None:
    with served(tmp_path) as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute('CREATE ROLE "the owner" LOGIN')
        connection.execute('ALTER DATABASE wattline OWNER TO "the owner"')
        migrate(url.replace("wattline@", "the%20owner@"), engine="timescale")
        assert of_jobs(url) == []
        connection.execute('ALTER ROLE "the owner" NOLOGIN')
        connection.execute(SCHEDULE, EVERY_SECOND)
        failed = "SELECT FROM background_jobs() WHERE last_status = 'failed'"
        eventually(lambda: connection.execute(failed).fetchall())
        (finding,) = of_jobs(url)
        count = connection.execute("SELECT FROM background_jobs()").rowcount
        assert (finding.code, finding.about) == ("owner_no_login", '"the owner"')
        assert finding.sentence.startswith(f'The role "the owner" owns {count} jobs and may not log in')
        _, _, statement = finding.sentence.rpartition(", ")
        connection.execute(statement.encode())
        assert "owner_no_login" not in {found.code for found in of_jobs(url)}


@pytest.mark.parametrize(
    ("others", "says"), [(["first", "second"], "No job"), (["first"], "1000 (refresh meter_minute)")]
)
def test_workers_that_other_databases_use_are_named_with_the_setting_to_raise(
    tmp_path: Path, others: list[str], says: str
) -> None:
    with served(tmp_path) as url:
        for name in others:
            other_database(url, name)
        migrate(url, engine="timescale")
        with psycopg.connect(url, autocommit=True) as connection:
            # The schedulers of all databases start before these jobs are due.
            connection.execute(SCHEDULE, ["1 second", "20 seconds"])
            eventually(lambda: connection.execute(OTHERS_RAN).fetchall())
        assert of_jobs(url) == []
    # One is for the launcher, the other two are for schedulers.
    with served(tmp_path, **{"timescaledb.max_background_workers": "3"}) as url:
        ask_all(url, ["wattline", *others], "stop")
        ask_all(url, [*others, "wattline"], "start")
        (finding,) = eventually(lambda: of_jobs(url))
        assert finding.code == "too_few_workers"
        assert says in finding.sentence
        users = ", ".join(f"{name} (1)" for name in [*others, "wattline"][:2])
        assert f"All 2 background workers of the server are in use, by these databases: {users}. Raise" in (
            finding.sentence
        )


def ask_all(url: str, names: list[str], change: str) -> None:
    for name in names:
        with psycopg.connect(url.replace("@/wattline?", f"@/{name}?"), autocommit=True) as connection:
            connection.execute(f"SELECT _timescaledb_functions.{change}_background_workers()".encode())


def test_a_job_that_is_late_for_another_reason_points_to_the_log(tmp_path: Path) -> None:
    with served(tmp_path) as url, psycopg.connect(url, autocommit=True) as connection:
        migrate(url, engine="timescale")
        connection.execute(SCHEDULE, EVERY_SECOND)
        scheduler = (
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'TimescaleDB Background Worker Scheduler'"
        )
        ((pid,),) = eventually(lambda: connection.execute(scheduler).fetchall())
        os.kill(pid, signal.SIGSTOP)
        try:
            (finding,) = eventually(lambda: of_jobs(url))
            assert finding.code == "late_jobs"
            assert "The log of the server says" in finding.sentence
        finally:
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: not of_jobs(url))


async def test_a_refresh_whose_process_was_killed_is_told_and_run_by_maintenance(tmp_path: Path) -> None:
    with served(tmp_path) as url:
        migrate(url, engine="timescale")
        await store(url, meter_reading(datetime.now(UTC) - timedelta(minutes=5)))
        kill_refresh(url)
        crashed = eventually(lambda: [found for found in of_jobs(url) if found.code == "crashed_jobs"])
        assert "1000 (refresh meter_minute)" in crashed[0].sentence
        assert "CALL run_job(1000);" in crashed[0].sentence
        with psycopg.connect(url, autocommit=True) as connection:
            assert connection.execute(MATERIALISED).fetchone() == (None,)
            async with connected(url) as maintaining:
                assert await maintain(maintaining)
            assert connection.execute(MATERIALISED).fetchone() != (None,)
            connection.execute("CALL refresh_aggregates()")
        # A job of another kind that ran when the server went down is told of until it has run again.
        assert not any("(refresh " in found.sentence for found in of_jobs(url) if found.code == "crashed_jobs")


MATERIALISED = "SELECT cagg_materialized_through('meter_minute_cagg')"


def kill_refresh(url: str) -> None:
    """Kills the process of the first refresh while it runs, and waits until the server has recovered."""
    with suppress(psycopg.OperationalError), psycopg.connect(url) as holding, psycopg.connect(url) as looking:
        looking.autocommit = True
        holding.execute("LOCK TABLE source_chunk IN ACCESS EXCLUSIVE MODE")
        looking.execute("SELECT alter_job(1000, next_start => now())")
        ((pid,),) = eventually(lambda: looking.execute(REFRESHING).fetchall())
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: looking.execute("SELECT") is None)
    eventually(lambda: answers(url))


def answers(url: str) -> bool:
    with suppress(psycopg.OperationalError), psycopg.connect(url):
        return True
    return False


def test_a_server_is_not_stopped_in_the_middle_of_a_job(tmp_path: Path) -> None:
    with served(tmp_path) as url:
        migrate(url, engine="timescale")
    with served(tmp_path) as url, psycopg.connect(url, autocommit=True) as looking:
        # The server is told to stop while a refresh waits for this lock, which goes a second later.
        holding = psycopg.connect(url)
        holding.execute("LOCK TABLE source_chunk IN ACCESS EXCLUSIVE MODE")
        looking.execute(SCHEDULE, EVERY_SECOND)
        eventually(lambda: looking.execute(REFRESHING).fetchall())
        Timer(1, holding.close).start()
    with served(tmp_path, **{"timescaledb.max_background_workers": "0"}) as url, psycopg.connect(url) as connection:
        runs = "SELECT total_runs > 0, consecutive_crashes FROM _timescaledb_internal.bgw_job_stat WHERE job_id = 1000"
        assert connection.execute(runs).fetchone() == (True, 0)
