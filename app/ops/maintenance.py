"""The maintenance loop: partitions for the coming days, and an end to what is too old."""

from typing import Any, get_args

import psycopg
import structlog

from app.database import connected
from app.loops import repeat
from app.policies.desired import Table

PERIOD_SECONDS = 60
# A bound on what a hostile client can fill the disk with: at 64 KiB each, 6 GB. Its age is bounded by policies.toml.
QUARANTINE_ROWS = 100_000

_log = structlog.get_logger()


async def maintain_forever(url: str) -> None:
    """Maintains the database each minute, whatever happens; to be cancelled."""
    await repeat(
        maintain,
        lambda: connected(url),
        period_seconds=PERIOD_SECONDS,
        survives=psycopg.Error,
        failed=lambda error: _log.warning("maintenance_failed", error=str(error)),
    )


async def maintain(connection: psycopg.AsyncConnection) -> bool:
    """One round; false when another process is at it. Each step is a transaction, so that none undoes another."""
    # As values, not as subqueries: the planner would take a third of each table for too old, and read all of it.
    stored = await connection.execute("SELECT name, drop_after FROM retention")
    retention: dict[str, Any] = dict.fromkeys(get_args(Table)) | dict(await stored.fetchall())
    for statement in _STEPS:
        if await _step(connection, statement, {**retention, "rows": QUARANTINE_ROWS}) is None:
            return False
    # This comes last, since it may not get its locks. It drops one partition a call.
    while (dropped := await _step(connection, "SELECT drop_expired()", {})) is not None:
        if await dropped.fetchone() == (False,):
            return True
    return False


async def _step(
    connection: psycopg.AsyncConnection, statement: str, parameters: dict[str, Any]
) -> psycopg.AsyncCursor | None:
    """Runs the statement; None when another process is at it."""
    async with connection.transaction():
        lock = await connection.execute("SELECT pg_try_advisory_xact_lock(hashtext('wattline maintenance'))")
        if await lock.fetchone() == (False,):
            return None
        return await connection.execute(statement.encode(), parameters)


# The retention of each table by its name: NULL, so that no row is too old, where the table is kept for good.
_STEPS = [
    # Tomorrow's partitions, before the first reading of the day has to wait for them.
    "SELECT prepare_days(now(), now() + INTERVAL '2 days')",
    """
    WITH dropped AS (
        DELETE FROM quarantine
        WHERE last_at < now() - %(quarantine)s::interval
            OR id <= (SELECT id FROM quarantine ORDER BY id DESC OFFSET %(rows)s LIMIT 1)
        RETURNING id
    )
    UPDATE installation SET quarantine_dropped = quarantine_dropped + (SELECT count(*) FROM dropped)
    WHERE EXISTS (SELECT FROM dropped)
    """,
    "DELETE FROM import_journal WHERE isempty(touched) AND updated_at < now() - %(import_journal)s::interval",
    "DELETE FROM efficiency_hour WHERE hour < now() - %(efficiency_hour)s::interval",
    "DELETE FROM alert WHERE closed < now() - %(alert)s::interval",
    """
    DELETE FROM alert_transition
    WHERE at < now() - %(alert_transition)s::interval
        AND NOT EXISTS (SELECT FROM webhook WHERE transition_id = alert_transition.id)
    """,
]
