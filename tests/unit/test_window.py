"""The window of a request."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from app.analytics.window import CALENDAR_HOURS, MAX_HOURS, Window, window_of
from app.errors import InvalidTimeRange

NOW = datetime(2026, 5, 1, 12, 0, 30, tzinfo=UTC)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_the_default_is_24_hours_up_to_what_devices_may_be_ahead() -> None:
    window = window_of(None, None, None, now=NOW)
    assert (window.start, window.end) == (NOW + timedelta(minutes=5) - 24 * HOUR, NOW + timedelta(minutes=5))
    assert window.hours == 24


@pytest.mark.parametrize(
    ("start", "end", "hours", "expected"),
    [
        (None, None, 1, (NOW + timedelta(minutes=5) - HOUR, NOW + timedelta(minutes=5))),
        (None, None, MAX_HOURS, (NOW + timedelta(minutes=5) - MAX_HOURS * HOUR, NOW + timedelta(minutes=5))),
        (None, NOON, None, (NOON - 24 * HOUR, NOON)),
        (None, NOON, 2, (NOON - 2 * HOUR, NOON)),
        (NOON - HOUR, None, None, (NOON - HOUR, NOW + timedelta(minutes=5))),
        (NOON - HOUR, NOON, None, (NOON - HOUR, NOON)),
        (NOON - MAX_HOURS * HOUR, NOON, None, (NOON - MAX_HOURS * HOUR, NOON)),
        (NOON, NOON + timedelta(microseconds=1), None, (NOON, NOON + timedelta(microseconds=1))),
    ],
)
def test_what_is_given_counts(
    start: datetime | None, end: datetime | None, hours: int | None, expected: tuple[datetime, datetime]
) -> None:
    assert window_of(start, end, hours, now=NOW) == Window(*expected)


def test_other_zones_become_utc() -> None:
    india = timezone(timedelta(hours=5, minutes=30))
    window = window_of((NOON - HOUR).astimezone(india), NOON.astimezone(india), None, now=NOW)
    assert window == Window(NOON - HOUR, NOON)
    assert (window.start.tzinfo, window.end.tzinfo) == (UTC, UTC)


@pytest.mark.parametrize(
    ("start", "end", "hours"),
    [
        (NOON, None, 24),
        (NOON, NOON + HOUR, 1),
        (NOON.replace(tzinfo=None), None, None),
        (None, NOON.replace(tzinfo=None), None),
        (None, None, 0),
        (None, None, -1),
        (None, None, MAX_HOURS + 1),
        (None, None, 10**30),
        (NOON, NOON, None),
        (NOON, NOON - HOUR, None),
        (NOW + HOUR, None, None),
        (NOON - MAX_HOURS * HOUR - timedelta(microseconds=1), NOON, None),
        (None, datetime.min.replace(tzinfo=UTC), None),
        (datetime.max.replace(tzinfo=timezone(-HOUR)), None, None),
        (None, datetime.min.replace(tzinfo=timezone(HOUR)), None),
    ],
)
def test_what_is_no_window_is_refused(start: datetime | None, end: datetime | None, hours: int | None) -> None:
    with pytest.raises(InvalidTimeRange):
        window_of(start, end, hours, now=NOW)


@pytest.mark.parametrize(
    ("start", "end", "first", "after_last"),
    [
        ("12:00:00", "13:00:00", "12:00", "13:00"),
        ("12:00:00.000001", "13:00:00", "12:00", "13:00"),
        ("12:00:59.999999", "13:00:00.000001", "12:00", "13:01"),
        ("12:00:30", "12:00:31", "12:00", "12:01"),
    ],
)
def test_a_window_takes_every_minute_that_it_touches(start: str, end: str, first: str, after_last: str) -> None:
    window = Window(*(datetime.fromisoformat(f"2026-05-01T{time}+00:00") for time in (start, end)))
    assert f"{window.first_minute:%H:%M:%S.%f}" == f"{first}:00.000000"
    assert f"{window.end_minute:%H:%M:%S.%f}" == f"{after_last}:00.000000"


@pytest.mark.parametrize("year", [1, 1899, 2200, 9999])
def test_years_at_the_ends_of_the_calendar_are_refused(year: int) -> None:
    end = datetime(year, 12, 31, 23, 59, 30, tzinfo=UTC)
    with pytest.raises(InvalidTimeRange):
        window_of(None, end, None, now=NOW)


def test_the_longest_window_is_what_the_question_allows() -> None:
    century = window_of(None, NOON, 100 * 366 * 24, now=NOW, max_hours=CALENDAR_HOURS)
    assert century == Window(NOON - timedelta(days=36_600), NOON)
    whole = window_of(*CALENDAR, None, now=NOW, max_hours=CALENDAR_HOURS)
    assert whole == Window(*CALENDAR)
    for start, hours in ((None, 25), (NOON - 24 * HOUR - timedelta(microseconds=1), None)):
        with pytest.raises(InvalidTimeRange, match="24"):
            window_of(start, NOON, hours, now=NOW, max_hours=24)
    assert window_of(None, NOON, 24, now=NOW, max_hours=24).hours == 24


CALENDAR = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("start", "end", "hours"),
    [
        (None, NOON, CALENDAR_HOURS),
        (None, NOON, CALENDAR_HOURS + 1),
        (None, NOON, 10**30),
        (CALENDAR[0] - timedelta(microseconds=1), NOON, None),
        (NOON, CALENDAR[1] + timedelta(microseconds=1), None),
    ],
)
def test_no_window_leaves_the_calendar_however_long_it_may_be(
    start: datetime | None, end: datetime, hours: int | None
) -> None:
    with pytest.raises(InvalidTimeRange):
        window_of(start, end, hours, now=NOW, max_hours=CALENDAR_HOURS)
