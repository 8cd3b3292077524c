"""The time window of a request."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from app.errors import InvalidTimeRange
from app.telemetry.instant import MAX_AHEAD

MAX_HOURS = 2160
# This is as long as the calendar below.
CALENDAR_HOURS = 300 * 366 * 24
_MINUTE = timedelta(minutes=1)
# Both are far from the ends of the calendar, where adding a minute would fail.
_EARLIEST, _LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


class Window(NamedTuple):
    """The requested window, [start, end)."""

    start: datetime
    end: datetime

    @property
    def hours(self) -> float:
        """The window's length in hours."""
        return (self.end - self.start) / timedelta(hours=1)

    @property
    def first_minute(self) -> datetime:
        """The start of the minute that contains `start`."""
        return self.start.replace(second=0, microsecond=0)

    @property
    def end_minute(self) -> datetime:
        """The start of the first minute that the window does not touch."""
        floor = self.end.replace(second=0, microsecond=0)
        return floor if floor == self.end else floor + _MINUTE


def window_of(
    start: datetime | None, end: datetime | None, hours: int | None, *, now: datetime, max_hours: int = MAX_HOURS
) -> Window:
    """Returns the window from `start`, or `hours` (24) long, to `end`, or 5 minutes from now.

    Raises InvalidTimeRange when it is empty, longer than `max_hours`, has both `start` and `hours`, or a time without
    a zone.
    """
    if start is not None and hours is not None:
        raise InvalidTimeRange("Give either `from` or `hours`, not both.")
    if any(instant is not None and instant.tzinfo is None for instant in (start, end)):
        raise InvalidTimeRange("`from` and `to` need a time zone.")
    if hours is not None and not 1 <= hours <= max_hours:
        raise InvalidTimeRange(f"`hours` must lie between 1 and {max_hours:,}.")
    try:
        end = now + MAX_AHEAD if end is None else end.astimezone(UTC)
        start = end - timedelta(hours=hours or 24) if start is None else start.astimezone(UTC)
    except OverflowError:
        raise InvalidTimeRange("`from` or `to` lies outside the calendar.") from None
    if not (start >= _EARLIEST and end <= _LATEST):
        raise InvalidTimeRange("`from` and `to` must lie between the years 1900 and 2200.")
    if not timedelta(0) < end - start <= timedelta(hours=max_hours):
        raise InvalidTimeRange(f"`to`, or its default, must lie after `from`, by at most {max_hours:,} hours.")
    return Window(start, end)
