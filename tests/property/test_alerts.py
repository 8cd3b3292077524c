"""Hours add up to the pairing of each vehicle, and alerts judged piece by piece equal those judged at once."""

from datetime import UTC, datetime
from itertools import groupby

from hypothesis import given, settings
from hypothesis import strategies as st

from app.analytics.alerts.hours import FROZEN_MINUTES, Hour, judge_hours
from app.analytics.alerts.judge import Alert, Kind, judge, splice
from app.analytics.efficiency.pairing import Mapping, Minutes, Sides, pair
from tests.fixtures.minutes import MeterMinute, VehicleMinute, sides_of

FIRST_HOUR = 100
LOW = 0.85

minutes = st.integers(60 * FIRST_HOUR, 60 * (FIRST_HOUR + 2) - 1)
energies = st.integers(0, 200_000)
vehicle_minutes = st.lists(
    st.builds(VehicleMinute, st.integers(1, 3), minutes, st.none() | st.integers(1, 2), energies), max_size=60
)
meter_minutes = st.lists(st.builds(MeterMinute, st.integers(1, 2), minutes, energies), max_size=60)
mappings = st.lists(
    st.builds(Mapping, st.integers(1, 3), st.integers(1, 2), st.just(-(10**18)), st.just(10**18)),
    unique_by=lambda mapping: mapping.vehicle_id,
)


@given(vehicle_minutes, meter_minutes, mappings, st.integers(1, 6))
@settings(max_examples=200)
def test_hours_add_up_to_the_pairing_of_each_vehicle(
    of_vehicles: list[VehicleMinute], of_meters: list[MeterMinute], mapped: list[Mapping], gap_minutes: int
) -> None:
    sides = sides_of(of_vehicles, of_meters, mapped)
    judged = judge_hours({1, 2, 3}, [FIRST_HOUR, FIRST_HOUR + 1], sides, gap_minutes=gap_minutes)
    for vehicle in (1, 2, 3):
        total = pair(vehicle, sides, gap_minutes=gap_minutes).total()
        rows = [row for (of_vehicle, _, _), row in judged.items() if of_vehicle == vehicle]
        assert sum(row.ac_milliwh for row in rows) == total.paired_ac_milliwh
        assert sum(row.dc_milliwh for row in rows) == total.paired_dc_milliwh
        counts = [sum(row[column] for row in rows) for column in range(2, 6)]
        assert counts == [total.minutes, total.paired, total.shared, total.unpaired]


@given(st.lists(st.sampled_from([1, 1, 1, 1, 2, 3]), min_size=60, max_size=60), st.integers(1, 200_000), st.booleans())
@settings(max_examples=100)
def test_a_meter_is_frozen_when_its_readings_are_equal_and_not_when_its_minutes_are_multiples(
    steps: list[int], value: int, is_frozen: bool
) -> None:
    """The device has as many readings as steps, or one reading of so many steps of a coarse register."""
    at = [60 * FIRST_HOUR + n for n in range(60)]
    vehicle = Minutes(1, 1, at, [150_000 + n for n in range(60)], [1] * 60)
    meter = Minutes(1, None, at, [value * step for step in steps], steps if is_frozen else [1] * 60)
    ((_, row),) = judge_hours({1}, [FIRST_HOUR], Sides([vehicle], [meter], []), gap_minutes=3).items()
    longest = max(len([*run]) for _, run in groupby(steps))
    if is_frozen:
        assert row.frozen_meter_minutes == 60
    elif longest < FROZEN_MINUTES:
        assert row.frozen_meter_minutes == 0


def hour(ratio: float, frozen: int) -> Hour:
    return Hour(1_000_000, round(1_000_000 * ratio), 60, 60, 0, 0, frozen, 600_000 * (frozen > 0), 0, 0, 60)


days = st.dictionaries(
    st.integers(0, 80),
    st.builds(hour, st.sampled_from([0.5, 0.84, 0.86, 0.9, 1.1]), st.sampled_from([0, 0, 0, 0, 40])),
    max_size=40,
)
kinds = st.sampled_from([Kind.LOW_EFFICIENCY, Kind.IMPOSSIBLE_EFFICIENCY, Kind.FROZEN_METER])


def judged(kind: Kind, rows: dict[int, Hour]) -> list[Alert]:
    return judge(kind, [(at, 1, rows[at]) for at in sorted(rows)], 0, None, low_efficiency=LOW)


@given(kinds, days, days)
@settings(max_examples=500)
def test_judging_what_changed_ends_where_judging_all_would(
    kind: Kind, before: dict[int, Hour], changes: dict[int, Hour]
) -> None:
    stored, rows = judged(kind, before), dict(before)
    for at, row in changes.items():
        rows[at] = row
        stored = judged_again(kind, stored, rows, at)
    assert stored == judged(kind, rows)


def judged_again(kind: Kind, stored: list[Alert], rows: dict[int, Hour], changed: int) -> list[Alert]:
    """Judges as the evaluator does: up to the last window that holds the hour, and to the end only if it must."""
    since = end_of(changed)
    ended = [alert for alert in stored if alert.closed is not None and alert.closed < since]
    old = stored[len(ended) :]
    before = old[0] if old and old[0].opened < since else None
    for last in (changed + 23, None):
        seen = [(at, 1, rows[at]) for at in sorted(rows) if at > changed - 24 and (last is None or at <= last)]
        new = judge(kind, seen, changed, before, low_efficiency=LOW)
        replaced, spliced = splice(old, new, None if last is None else end_of(last))
        if spliced is not None:
            return ended + spliced + old[len(replaced) :]
    raise AssertionError


def end_of(at: int) -> datetime:
    return datetime.fromtimestamp(3600 * (at + 1), UTC)
