"""The maintenance loop: partitions for the coming days, and an end to what is too old."""

import psycopg
import structlog

from app.database import connected
from app.loops import repeat

PERIOD_SECONDS = 60
QUARANTINE_ROWS = 100_000
QUARANTINE_DAYS = 30

# What a file held that was imported longer ago is about to be dropped; imported again, it would be duplicates.
JOURNAL_DAYS = 30

# Hours of so long ago are not judged again, for their minutes are gone.
EFFICIENCY_DAYS = 1095
# Closed alerts go with them; of what happened to alerts, the log is shorter.
TRANSITION_DAYS = 90

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
    for statement, parameters in _STEPS:
        if await _step(connection, statement, parameters) is None:
            return False
    # Last, for it may be refused its locks. It drops one partition a call.
    while (dropped := await _step(connection, "SELECT drop_expired()", {})) is not None:
        if await dropped.fetchone() == (False,):
            return True
    return False


async def _step(
    connection: psycopg.AsyncConnection, statement: str, parameters: dict[str, int]
) -> psycopg.AsyncCursor | None:
    """Runs the statement; None when another process is at it."""
    async with connection.transaction():
        lock = await connection.execute("SELECT pg_try_advisory_xact_lock(hashtext('wattline maintenance'))")
        if await lock.fetchone() == (False,):
            return None
        return await connection.execute(statement.encode(), parameters)


_STEPS: list[tuple[str, dict[str, int]]] = [
    # Tomorrow's partitions, before the first reading of the day has to wait for them.
    ("SELECT prepare_days(now(), now() + INTERVAL '2 days')", {}),
    (
        """
        WITH dropped AS (
            DELETE FROM quarantine
            WHERE last_at < now() - make_interval(days => %(days)s)
                OR id <= (SELECT id FROM quarantine ORDER BY id DESC OFFSET %(rows)s LIMIT 1)
            RETURNING id
        )
        UPDATE installation SET quarantine_dropped = quarantine_dropped + (SELECT count(*) FROM dropped)
        WHERE EXISTS (SELECT FROM dropped)
        """,
        {"days": QUARANTINE_DAYS, "rows": QUARANTINE_ROWS},
    ),
    (
        "DELETE FROM import_journal WHERE isempty(touched) AND updated_at < now() - make_interval(days => %(days)s)",
        {"days": JOURNAL_DAYS},
    ),
    ("DELETE FROM efficiency_hour WHERE hour < now() - make_interval(days => %(days)s)", {"days": EFFICIENCY_DAYS}),
    ("DELETE FROM alert WHERE closed < now() - make_interval(days => %(days)s)", {"days": EFFICIENCY_DAYS}),
    (
        """
        DELETE FROM alert_transition
        WHERE at < now() - make_interval(days => %(days)s)
            AND NOT EXISTS (SELECT FROM webhook WHERE transition_id = alert_transition.id)
        """,
        {"days": TRANSITION_DAYS},
    ),
]
