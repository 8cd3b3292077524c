"""The refresh of the aggregates by hand."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import cast

import psycopg

from app.database import command_connection
from app.errors import SetupError

ATTEMPTS = 30


def refresh_aggregates(
    url: str, start: datetime | None, end: datetime | None, *, progress: Callable[[str], None] = lambda _: None
) -> None:
    """Refreshes the buckets that [start, end) touches, or all without bounds; a bound without a zone is in UTC.

    `progress` is called with a line about each aggregate. Raises SetupError.
    """

    def forward(notice: psycopg.errors.Diagnostic) -> None:
        # TimescaleDB has notices of its own.
        if notice.message_primary and notice.message_primary.startswith("Refreshing "):
            progress(notice.message_primary)

    bounds: list[datetime | None] = [None, None]
    if start is not None or end is not None:
        first, last = start or datetime(2000, 1, 1, tzinfo=UTC), end or datetime.now(UTC)
        first, last = first.replace(tzinfo=first.tzinfo or UTC), last.replace(tzinfo=last.tzinfo or UTC)
        if first >= last:
            raise SetupError("--to must lie after --from.")
        bounds = [first, last]
    try:
        with command_connection(url) as pooled:
            connection = cast("psycopg.Connection", pooled.connection.driver_connection)
            connection.autocommit = True
            connection.add_notice_handler(forward)
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    connection.execute("CALL refresh_aggregates(%s, %s)", bounds)
                    connection.execute("CALL spread_fleet(%s, coalesce(%s, now()))", bounds)
                    return
                except psycopg.errors.LockNotAvailable:
                    # A refresh policy is at work on the same aggregate; it takes seconds.
                    if attempt == ATTEMPTS:
                        raise
                    time.sleep(1)
    except psycopg.errors.UndefinedFunction:
        raise SetupError("The database is not migrated: run `wattline migrate`.") from None
    except psycopg.Error as error:
        raise SetupError(f"The refresh failed: {error}") from error
