"""The jobs of TimescaleDB on Wattline's own server, which is not to be stopped in the middle of one."""

import time
from contextlib import ExitStack, closing, suppress

import psycopg

WAIT_SECONDS = 5
_HAS_JOBS = "SELECT to_regclass('_timescaledb_internal.bgw_job_stat') IS NOT NULL"
# Each run is counted as a crash in this table before its process begins, until it ends.
_HOLD = "LOCK TABLE _timescaledb_internal.bgw_job_stat IN SHARE MODE"
_RUNNING = """
    SELECT FROM _timescaledb_internal.bgw_job_stat AS run
    JOIN _timescaledb_catalog.bgw_job AS job ON job.id = run.job_id
    WHERE run.consecutive_crashes > 0
        AND (run.last_start > clock_timestamp() - INTERVAL '1 second'
             OR EXISTS (SELECT FROM pg_stat_activity
                        WHERE datname = current_database() AND application_name = job.application_name))
"""


def hold_jobs(url: str) -> psycopg.Connection | None:
    """Waits for WAIT_SECONDS at most until no job runs; none begins while the connection that it returns is open.

    TimescaleDB takes a job whose process ended in the middle of a run for crashed, and does not run it for five minutes
    from each start of the server. Returns None when jobs go on running, and on a server without jobs.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    with suppress(psycopg.Error), ExitStack() as opened:
        connection = opened.enter_context(closing(psycopg.connect(url, connect_timeout=WAIT_SECONDS)))
        if connection.execute(_HAS_JOBS).fetchone() != (True,):
            return None
        while time.monotonic() < deadline:
            connection.execute(_HOLD)
            if not connection.execute(_RUNNING).rowcount:
                opened.pop_all()  # it stays open, and with it the lock
                return connection
            connection.rollback()
            time.sleep(0.05)
    return None
