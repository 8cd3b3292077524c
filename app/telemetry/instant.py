"""Instants as the store counts them: microseconds since 2000-01-01 UTC, PostgreSQL's own binary form of timestamptz."""

from datetime import UTC, datetime, timedelta

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
EPOCH_US = 946_684_800_000_000  # in microseconds since 1970, as readings count
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US

# The live window: readings may be this old when they arrive, and their timestamps this far ahead.
MAX_AGE = timedelta(days=7)
MAX_AHEAD = timedelta(minutes=5)
# A reading that is older when it arrives is late; any other comes in time.
LATE_US = 600_000_000


def instant(ts: int) -> datetime:
    """Returns the instant that many microseconds after 2000-01-01 UTC."""
    return EPOCH + timedelta(microseconds=ts)
