"""Refreshing the aggregates by hand."""

import time
from datetime import UTC, datetime

import psycopg

from app.errors import SetupError

ATTEMPTS = 30


def refresh_aggregates(url: str, start: datetime | None, end: datetime | None) -> None:
    """Refreshes the buckets that [start, end) touches, times in UTC; everything without them. Raises SetupError."""
    bounds = [None if bound is None else bound.replace(tzinfo=UTC) for bound in (start, end)]
    if (start is None) != (end is None):
        bounds = [bounds[0] or datetime(2000, 1, 1, tzinfo=UTC), bounds[1] or datetime.now(UTC)]
    try:
        with psycopg.connect(url, autocommit=True) as connection:
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
