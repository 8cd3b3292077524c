"""The maintenance loop, which makes partitions for the coming days, deletes old rows and makes up for jobs."""

from typing import Any, get_args

import psycopg
import structlog

from app.database import connected
from app.loops import repeat
from app.policies.desired import Table

PERIOD_SECONDS = 60
# This bounds the disk that a hostile client can fill for long: at 64 KiB each, 6 GB. policies.toml bounds their age.
QUARANTINE_ROWS = 100_000
# A batch with a reading that is being dropped waits for the end of the transaction, and would fail after seconds.
QUARANTINE_ROWS_AT_ONCE = 10_000

_log = structlog.get_logger()


async def maintain_forever(url: str) -> None:
    """Maintains the database once a minute, whatever happens, until it is cancelled."""
    await repeat(
        maintain,
        lambda: connected(url),
        period_seconds=PERIOD_SECONDS,
        survives=psycopg.Error,
        failed=lambda error: _log.warning("maintenance_failed", error=str(error)),
    )


async def maintain(connection: psycopg.AsyncConnection) -> bool:
    """Runs one round; returns False when another process is at work. Each step is a transaction of its own."""
    # Retentions are values, not subqueries, with which the planner would expect a third of each table and read it all.
    stored = await connection.execute("SELECT name, drop_after FROM retention")
    retention: dict[str, Any] = dict.fromkeys(get_args(Table)) | dict(await stored.fetchall())
    for statement in _STEPS:
        if await _step(connection, statement, retention) is None:
            return False
    found = await connection.execute(_FIND_SURPLUS, {**retention, "rows": QUARANTINE_ROWS})
    surplus = [row_id for (row_id,) in await found.fetchall()]
    for start in range(0, len(surplus), QUARANTINE_ROWS_AT_ONCE):
        ids = surplus[start : start + QUARANTINE_ROWS_AT_ONCE]
        if await _step(connection, _DROP_QUARANTINED, {"ids": ids}) is None:
            return False
    # This step comes after them, since it may not get its locks. It drops one partition per call.
    while (dropped := await _step(connection, "SELECT drop_expired()", {})) is not None:
        if await dropped.fetchone() == (False,):
            await _run_refreshes(connection)
            await connection.execute("CALL spread_fleet(now() - INTERVAL '8 days', now(), INTERVAL '20 seconds')")
            return True
    return False


async def _run_refreshes(connection: psycopg.AsyncConnection) -> None:
    """Runs each refresh that TimescaleDB leaves undone: after a crash for 5 minutes from each start of the server."""
    undone = await connection.execute("""
        SELECT job_id, target FROM background_jobs()
        WHERE work = 'refresh' AND (crashes > 0 OR due_at < now() - 2 * schedule)
            -- On a server whose settings leave no worker, no job is meant to run.
            AND EXISTS (SELECT FROM job_scheduler() WHERE workers > 0)
        ORDER BY job_id
    """)
    for job_id, target in await undone.fetchall():
        try:
            await connection.execute("CALL run_job(%s)", [job_id])
            _log.info("refresh_run", aggregate=target)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.InsufficientPrivilege) as error:
            _log.warning("refresh_not_run", aggregate=target, error=str(error))


async def _step(
    connection: psycopg.AsyncConnection, statement: str, parameters: dict[str, Any]
) -> psycopg.AsyncCursor | None:
    """Runs the statement; returns None when another process is at work."""
    async with connection.transaction():
        lock = await connection.execute("SELECT pg_try_advisory_xact_lock(hashtext('wattline maintenance'))")
        if await lock.fetchone() == (False,):
            return None
        return await connection.execute(statement.encode(), parameters)


# Old rows, and the surplus. The newest row of each device comes first, then the second of each, and so on: who floods
# the quarantine loses only what is beyond an equal share. Names are cheap to make up, so rows of devices that are not
# registered share by their reason. With 100,000 rows this takes 10 ms, with some more 0.3 s, and with 1,000,000 it took
# 2 to 5 s on two busy cores, while nothing waited for it; hashes take half the time of texts.
_FIND_SURPLUS = """
    WITH ranked AS (
        SELECT quarantine.id, row_number() OVER (
            PARTITION BY hashtextextended(source || ' ' || coalesce(known.external_id, code), 0)
            ORDER BY quarantine.id DESC) AS place
        FROM quarantine
        LEFT JOIN (SELECT external_id FROM meter UNION SELECT external_id FROM vehicle) AS known
            ON known.external_id = device
        WHERE (SELECT count(*) FROM quarantine) > %(rows)s
    )
    SELECT id FROM quarantine WHERE last_at < now() - %(quarantine)s::interval
    UNION ALL (SELECT id FROM ranked ORDER BY place, id DESC OFFSET %(rows)s)
"""
_DROP_QUARANTINED = """
    WITH dropped AS (DELETE FROM quarantine WHERE id = ANY (%(ids)s) RETURNING id)
    UPDATE installation SET quarantine_dropped = quarantine_dropped + (SELECT count(*) FROM dropped)
"""
# Each table's retention is a parameter by its name; it is NULL, so that no row is too old, for a table kept for good.
_STEPS = [
    # Tomorrow's partitions must exist before the first reading of the day, which would have to wait for them.
    "SELECT prepare_days(now(), now() + INTERVAL '2 days')",
    "DELETE FROM import_journal WHERE isempty(touched) AND updated_at < now() - %(import_journal)s::interval",
    "DELETE FROM fleet_spread WHERE read_in < now() - %(fleet_spread)s::interval",
    "DELETE FROM efficiency_hour WHERE hour < now() - %(efficiency_hour)s::interval",
    "DELETE FROM implausible_hour WHERE hour < now() - %(efficiency_hour)s::interval",
    "DELETE FROM session_hour WHERE until < now() - %(session_hour)s::interval",
    "DELETE FROM charging_session WHERE until < now() - %(charging_session)s::interval",
    "DELETE FROM alert WHERE closed < now() - %(alert)s::interval",
    """
    INSERT INTO storage_size (at, name, bytes)
    SELECT date_trunc('hour', now()), name, bytes FROM storage_sizes()
    WHERE NOT EXISTS (SELECT FROM storage_size WHERE at = date_trunc('hour', now()))
    """,
    "DELETE FROM storage_size WHERE at < now() - %(storage_size)s::interval",
    """
    DELETE FROM alert_transition
    WHERE at < now() - %(alert_transition)s::interval
        AND NOT EXISTS (SELECT FROM webhook WHERE transition_id = alert_transition.id)
    """,
]
