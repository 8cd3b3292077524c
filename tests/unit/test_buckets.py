"""The days and months of a time zone, over all that clocks do."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.analytics.buckets import Buckets, choose_bucket
from app.analytics.series_source import METER, Bucket
from app.analytics.window import Window
from app.errors import InvalidParameter, InvalidTimeRange

ZONES = (
    *("UTC", "Europe/Berlin", "Asia/Kathmandu", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo"),
    *("America/Havana", "America/Sao_Paulo", "Pacific/Apia"),
)


def buckets(tz: str, width: Bucket, start: datetime, end: datetime) -> Buckets:
    return choose_bucket(METER, Window(start, end), width, 1_500, set(), tz)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


def hours(found: Buckets) -> list[float]:
    """Returns the length of each bucket in hours."""
    starts = [int(bound.timestamp()) for bound in found.bounds[:-1]]
    return [(end - start) / 3600 for start, end in zip(starts, found.ends(starts), strict=True)]


def test_a_day_has_23_hours_when_the_clock_is_put_forward_and_25_when_it_is_put_back() -> None:
    spring = buckets("Europe/Berlin", "1d", utc(2026, 3, 28, 12), utc(2026, 3, 30, 12))
    assert (spring.start, spring.end) == (utc(2026, 3, 27, 23), utc(2026, 3, 30, 22))
    assert (hours(spring), spring.source) == ([24, 23, 24], "1h")
    autumn = buckets("Europe/Berlin", "1d", utc(2026, 10, 24, 12), utc(2026, 10, 26, 12))
    assert (autumn.start, autumn.end) == (utc(2026, 10, 23, 22), utc(2026, 10, 26, 23))
    assert hours(autumn) == [24, 25, 24]


@pytest.mark.parametrize(
    ("tz", "start", "end", "lengths"),
    [
        # In Cairo the clock is put forward at midnight; in Havana midnight comes twice; Apia left out a whole day.
        ("Africa/Cairo", utc(2026, 4, 23, 12), utc(2026, 4, 25, 12), [24, 23, 24]),
        ("America/Havana", utc(2026, 10, 31, 16), utc(2026, 11, 2, 16), [24, 25, 24]),
        ("Pacific/Apia", utc(2011, 12, 29, 12), utc(2011, 12, 31, 12), [24, 24, 24]),
        ("Australia/Lord_Howe", utc(2026, 4, 4, 1), utc(2026, 4, 5, 15), [24, 24.5, 24]),
    ],
)
def test_days_are_right_where_clocks_do_odd_things(
    tz: str, start: datetime, end: datetime, lengths: list[float]
) -> None:
    assert hours(buckets(tz, "1d", start, end)) == lengths


def test_months_have_the_hours_of_their_days() -> None:
    found = buckets("Europe/Berlin", "1mo", utc(2026, 1, 31, 23), utc(2026, 10, 31, 23))
    assert found.bounds[:2] == (utc(2026, 1, 31, 23), utc(2026, 2, 28, 23))
    assert hours(found) == [24 * 28, 24 * 31 - 1, 24 * 30, 24 * 31, 24 * 30, 24 * 31, 24 * 31, 24 * 30, 24 * 31 + 1]
    years = choose_bucket(METER, Window(utc(2025, 11, 30), utc(2026, 2, 1)), "1mo", 1_500, set())
    assert years.bounds == (utc(2025, 11, 1), utc(2025, 12, 1), utc(2026, 1, 1), utc(2026, 2, 1))
    assert years.source == "1d"


@pytest.mark.parametrize(
    ("tz", "source"),
    [("UTC", "1d"), ("Europe/London", "1d"), ("America/New_York", "1h"), ("Asia/Kathmandu", "1m")],
)
def test_days_are_made_from_the_widest_buckets_of_which_they_consist(tz: str, source: str) -> None:
    assert buckets(tz, "1d", utc(2026, 1, 10), utc(2026, 1, 20)).source == source


@given(
    st.sampled_from(ZONES),
    st.sampled_from(("1d", "1mo")),
    st.dates(date(1975, 1, 1), date(2100, 1, 1)),
    st.integers(1, 200 * 24),
)
def test_buckets_of_a_zone_follow_each_other_and_begin_with_a_day_or_month(
    tz: str, width: Bucket, first: date, length: int
) -> None:
    start = datetime(first.year, first.month, first.day, 7, tzinfo=UTC)
    found = buckets(tz, width, start, start + timedelta(hours=length))
    assert found.start <= start < found.bounds[1]
    assert found.bounds[-2] < start + timedelta(hours=length) <= found.end
    for bound in found.bounds:
        before, after = (at.astimezone(ZoneInfo(tz)) for at in (bound - timedelta(microseconds=1), bound))
        assert before.date() < after.date()
        assert width == "1d" or (before.month, after.day) != (after.month, before.day)
        assert width == "1d" or before.month != after.month
    days = 1 if width == "1d" else 28
    assert all(24 * days - 1 <= one <= 24 * (days + 3) + 1 for one in hours(found))


def test_what_is_no_zone_and_what_no_zone_is_for_is_refused() -> None:
    for wrong in "Berlin", "Europe", "../etc/passwd", "", "+01:00":
        with pytest.raises(InvalidParameter, match="tz: There is no time zone"):
            buckets(wrong, "1d", utc(2026, 1, 1), utc(2026, 1, 2))
    for width in "1m", "1h", "auto":
        with pytest.raises(InvalidParameter, match="tz: Give bucket=1d or bucket=1mo"):
            choose_bucket(METER, Window(utc(2026, 1, 1), utc(2026, 1, 2)), width, 1_500, set(), "Europe/Berlin")
    # Until 1920, Kathmandu was 5 hours, 41 minutes and 16 seconds ahead.
    with pytest.raises(InvalidTimeRange, match="do not begin with a minute of UTC"):
        _ = buckets("Asia/Kathmandu", "1d", utc(1910, 1, 1), utc(1910, 1, 2)).source
    with pytest.raises(InvalidTimeRange, match="an answer has at most 100,000"):
        buckets("Europe/Berlin", "1d", utc(1900, 1, 1), utc(2199, 1, 1))
