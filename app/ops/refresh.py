"""Refreshing the aggregates by hand."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

import psycopg

from app.errors import SetupError

ATTEMPTS = 30


def refresh_aggregates(
    url: str, start: datetime | None, end: datetime | None, *, progress: Callable[[str], None] = lambda _: None
) -> None:
    """Refreshes the buckets that [start, end) touches, times in UTC; everything without them.

    `progress` is told of each aggregate. Raises SetupError.
    """

    def tell(notice: psycopg.errors.Diagnostic) -> None:
        # TimescaleDB has notices of its own.
        if notice.message_primary and notice.message_primary.startswith("Refreshing "):
            progress(notice.message_primary)

    bounds = [None if bound is None else bound.replace(tzinfo=UTC) for bound in (start, end)]
    if (start is None) != (end is None):
        bounds = [bounds[0] or datetime(2000, 1, 1, tzinfo=UTC), bounds[1] or datetime.now(UTC)]
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.add_notice_handler(tell)
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    connection.execute("CALL refresh_aggregates(%s, %s)", bounds)
                    return
                except psycopg.errors.LockNotAvailable:
                    # A refresh policy is at the same aggregate; it takes seconds.
                    if attempt == ATTEMPTS:
                        raise
                    time.sleep(1)
    except psycopg.errors.UndefinedFunction:
        raise SetupError("The database is not migrated: run `wattline migrate`.") from None
    except psycopg.Error as error:
        raise SetupError(f"The refresh failed: {error}") from error
