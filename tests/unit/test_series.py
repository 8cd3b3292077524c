"""The buckets of a series, and columns as CSV."""

import csv
from datetime import UTC, datetime, timedelta, timezone
from io import StringIO
from typing import Literal, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.analytics.buckets import MAX_POINTS, Buckets, choose_bucket
from app.analytics.fleet_series import FleetColumns
from app.analytics.series import EFFICIENCY_REACH, MeterColumns, efficiency_bounds
from app.analytics.series_source import FLEET, METER, VEHICLE, Source, Width
from app.analytics.window import Window
from app.csv_rows import csv_of_columns
from app.errors import InvalidTimeRange

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
WIDTHS: dict[Width, timedelta] = {
    "1m": timedelta(minutes=1),
    "1h": timedelta(hours=1),
    "1d": timedelta(days=1),
}
SOURCES = {"meter": METER, "vehicle": VEHICLE, "fleet": FLEET}
# These aggregates hold a kind's buckets. The fleet's days are computed from its hours.
HELD = {
    "meter": {"1m": {"meter_minute"}, "1h": {"meter_hour"}, "1d": {"meter_day"}},
    "vehicle": {"1m": {"vehicle_minute"}, "1h": {"vehicle_hour"}, "1d": {"vehicle_day"}},
    "fleet": {
        "1m": {"fleet_meter_minute", "fleet_vehicle_minute"},
        "1h": {"fleet_meter_hour", "fleet_vehicle_hour"},
        "1d": {"fleet_meter_hour", "fleet_vehicle_hour"},
    },
}
NAMES = sorted({name for widths in HELD.values() for names in widths.values() for name in names})


def chosen(
    window: Window,
    wanted: Width | Literal["auto"],
    max_points: int = 1_500,
    *,
    source: Source = METER,
    kept: set[str] | None = None,
) -> Buckets:
    return choose_bucket(source, window, wanted, max_points, set(NAMES) if kept is None else kept)


windows = st.builds(
    lambda start, length: Window(start, start + length),
    st.timedeltas(timedelta(days=-25_000), timedelta(days=80_000)).map(lambda since: EPOCH + since),
    st.one_of(
        st.timedeltas(timedelta(microseconds=1), timedelta(minutes=5)),
        st.timedeltas(timedelta(microseconds=1), timedelta(days=3)),
        st.timedeltas(timedelta(microseconds=1), timedelta(days=3_000)),
    ),
)


def touched(window: Window, step: timedelta) -> int:
    """Returns the number of buckets, counted by whole microseconds."""
    first, after = ((at - EPOCH) // timedelta(microseconds=1) for at in window)
    width = step // timedelta(microseconds=1)
    return -(-after // width) - first // width


@given(windows, st.sampled_from(["1m", "1h", "1d"]))
def test_the_buckets_are_the_whole_ones_that_the_window_touches(window: Window, width: Width) -> None:
    step = WIDTHS[width]
    if touched(window, step) > MAX_POINTS:
        with pytest.raises(InvalidTimeRange):
            chosen(window, width)
        return
    buckets = chosen(window, width)
    assert (buckets.start - EPOCH) % step == (buckets.end - EPOCH) % step == timedelta(0)
    assert buckets.start <= window.start < buckets.start + step
    assert buckets.end - step < window.end <= buckets.end
    assert (buckets.width, buckets.number) == (width, (buckets.end - buckets.start) // step)


@given(windows, st.integers(1, MAX_POINTS), st.sampled_from(sorted(SOURCES)), st.sets(st.sampled_from(NAMES)))
def test_auto_is_the_narrowest_width_that_is_kept_and_gives_few_enough_points(
    window: Window, max_points: int, kind: str, kept: set[str]
) -> None:
    # Days are kept for good.
    kept |= HELD[kind]["1d"]
    fitting = [
        width for width, step in WIDTHS.items() if HELD[kind][width] <= kept and touched(window, step) <= max_points
    ]
    if fitting:
        buckets = chosen(window, "auto", max_points, source=SOURCES[kind], kept=kept)
        assert (buckets.width, buckets.number) == (fitting[0], touched(window, WIDTHS[fitting[0]]))
    else:
        with pytest.raises(InvalidTimeRange, match="maxPoints"):
            chosen(window, "auto", max_points, source=SOURCES[kind], kept=kept)


@pytest.mark.parametrize("width", WIDTHS)
def test_an_answer_has_at_most_100_000_buckets(width: Width) -> None:
    start = NOON.replace(hour=0) - timedelta(days=40_000)
    longest = Window(start, start + MAX_POINTS * WIDTHS[width])
    assert chosen(longest, width).number == MAX_POINTS == 100_000
    for longer in (
        longest._replace(end=longest.end + timedelta(microseconds=1)),
        longest._replace(start=longest.start - timedelta(microseconds=1)),
    ):
        with pytest.raises(InvalidTimeRange, match=f"100,001 buckets of {width}"):
            chosen(longer, width)


def test_a_width_that_is_asked_for_is_given_whatever_is_kept_and_however_many_points() -> None:
    window = Window(NOON, NOON + timedelta(hours=2))
    for width, number in (("1m", 120), ("1h", 2), ("1d", 1)):
        assert chosen(window, cast(Width, width), 1, kept=set()).number == number


def test_buckets_are_of_utc_and_begin_with_those_before_1970_too() -> None:
    newfoundland = timezone(timedelta(hours=-3, minutes=-30))
    start = datetime(1969, 12, 31, 20, 20, tzinfo=newfoundland)
    buckets = chosen(Window(start.astimezone(UTC) - timedelta(hours=1), start.astimezone(UTC)), "1d")
    assert buckets == Buckets("1d", EPOCH - timedelta(days=1), EPOCH)


# CSV


def parsed(columns: MeterColumns | FleetColumns) -> list[list[str]]:
    return list(csv.reader(StringIO("".join(csv_of_columns(columns)), newline=""), strict=True))


def test_a_row_is_a_point_with_its_time_and_empty_cells_for_nulls() -> None:
    starts = [-60, 0, 1_790_000_000]
    columns = MeterColumns(
        starts, [0.1, 0.0, 1e-06], [1, 2, 3], [None, 230.5, 0.0], [None] * 3, [1] * 3, [6.0, None, 0.0]
    )
    assert "".join(csv_of_columns(columns)) == (
        "time,acKwh,readings,avgVoltage,minVoltage,maxVoltage,powerKw\r\n"
        "1969-12-31T23:59:00Z,0.1,1,,,1,6.0\r\n"
        "1970-01-01T00:00:00Z,0.0,2,230.5,,1,\r\n"
        "2026-09-21T14:13:20Z,1e-06,3,0.0,,1,0.0\r\n"
    )


def test_numbers_are_written_so_that_they_are_read_back_unchanged() -> None:
    values = [1 / 3, 2 / 3, 0.1 + 0.2, 5e-324, 1.7976931348623157e308, 123456.654321]
    none: list[float | None] = [None] * 6
    _, *rows = parsed(MeterColumns(list(range(6)), values, [1] * 6, none, none, none, none))
    assert [float(row[1]) for row in rows] == values


@pytest.mark.parametrize("points", [0, 1, 999, 1_000, 1_001, 2_000, 2_001])
def test_every_point_is_a_row_once_and_in_order_however_many(points: int) -> None:
    starts = [60 * n for n in range(points)]
    energy: list[float | None] = [float(n) for n in range(points)]
    none: list[float | None] = [None] * points
    counts: list[int | None] = [None] * points
    header, *rows = parsed(FleetColumns(starts, energy, none, counts, counts, none, none, none))
    assert header == ["time", "acKwh", "dcKwh", "meterReadings", "vehicleReadings", "efficiencyRatio", "acKw", "dcKw"]
    assert [datetime.fromisoformat(row[0]).timestamp() for row in rows] == starts
    assert [float(row[1]) for row in rows] == energy
    assert {tuple(row[2:]) for row in rows} <= {("",) * 6}


def test_a_long_series_comes_in_pieces() -> None:
    none: list[float | None] = [None] * 5_000
    pieces = list(csv_of_columns(MeterColumns([0] * 5_000, [0.0] * 5_000, [1] * 5_000, none, none, none, none)))
    assert len(pieces) == 6
    assert all(piece.endswith("\r\n") for piece in pieces)


def test_efficiency_reaches_an_hour_before_the_buckets_but_neither_into_the_future_nor_beyond_what_is_kept() -> None:
    hour, minute, now = timedelta(hours=1), timedelta(minutes=1), NOON + timedelta(seconds=30)
    day = Buckets("1h", NOON - 24 * hour, NOON)
    assert efficiency_bounds(day, None, now) == (NOON - 25 * hour, NOON)
    ahead = Buckets("1h", NOON - 24 * hour, NOON + 9_000 * hour)
    assert efficiency_bounds(ahead, None, now) == (NOON - 25 * hour, NOON + 6 * minute)
    kept_from = NOON - 3 * hour - timedelta(seconds=1)
    assert efficiency_bounds(day, kept_from, now) == (NOON - 3 * hour, NOON)
    year = Buckets("1d", NOON - timedelta(days=365), NOON)
    assert efficiency_bounds(year, None, now) == (NOON - EFFICIENCY_REACH, NOON)
