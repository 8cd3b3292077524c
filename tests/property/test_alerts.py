"""Hours add up to the evidence on each vehicle, and alerts judged piece by piece equal those judged at once."""

from datetime import UTC, datetime
from itertools import groupby, repeat

from hypothesis import given, settings
from hypothesis import strategies as st

from app.analytics.alerts.hours import FROZEN_MINUTES, Frozen, Hour, judge_hours
from app.analytics.alerts.judge import Alert, Kind, judge, splice
from app.analytics.efficiency.evidence import Sides, pair_each
from app.analytics.efficiency.pairs import Evidence, total
from app.analytics.efficiency.rhythm import HOUR_US, MINUTE_US
from app.settings import Settings
from tests.fixtures.charges import rows
from tests.property.test_counter import EPOCH, columns, fleet_of

FIRST_HOUR = EPOCH // HOUR_US
LOW = 0.85


@given(st.integers(0, 2**32))
@settings(max_examples=60)
def test_hours_add_up_to_the_evidence_on_each_vehicle(seed: int) -> None:
    fleet = fleet_of(seed)
    meters, vehicles = ({device: columns(minutes) for device, minutes in side.items()} for side in fleet[:2])
    pairs = pair_each(
        fleet.vehicles,
        Sides(vehicles, meters, fleet.mappings, {}, {}, {meter: {*fleet.vehicles} for meter in fleet.meters}),
        Settings(),
    )
    hours = range(FIRST_HOUR - 5, FIRST_HOUR + 20)
    judged = judge_hours(pairs, hours)
    for vehicle, of_vehicle in pairs.items():
        for meter, pair in of_vehicle.items():
            of_hours = [row.evidence for key, row in judged.items() if (key[0], key[2]) == (vehicle, meter or 0)]
            assert total([Evidence(), *of_hours]) == pair.between(hours.start * HOUR_US, hours.stop * HOUR_US)


@given(
    st.lists(st.sampled_from([1, 1, 1, 1, 2, 3]), min_size=60, max_size=60),
    st.integers(0, 200_000),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=100)
def test_a_device_is_frozen_when_its_readings_are_equal_and_not_when_its_minutes_are_multiples(
    steps: list[int], value: int, is_frozen: bool, is_meter: bool
) -> None:
    """The device has as many readings as steps, or one reading of so many steps of a coarse register."""
    at = [FIRST_HOUR * HOUR_US + (1 + n) * MINUTE_US - 1 for n in range(60)]
    other = [150_000 + 1_000 * n for n in range(60)], [1] * 60
    stuck = [value * step for step in steps], steps if is_frozen else [1] * 60
    vehicle, meter = (other, stuck) if is_meter else (stuck, other)
    sides = Sides(
        {1: rows(zip(at, at, *vehicle, repeat(1)))}, {1: rows(zip(at, at, *meter, repeat(None)))}, {}, {}, {}, {}
    )
    pairs = pair_each([1], sides, Settings())
    row = judge_hours(pairs, range(FIRST_HOUR, FIRST_HOUR + 1))[1, FIRST_HOUR, 1]
    frozen, sound = (row.frozen_meter, row.frozen_vehicle)[:: 1 if is_meter else -1]
    assert sound == Frozen()
    longest = max(len([*run]) for _, run in groupby(steps))
    if is_frozen or value == 0:
        assert frozen.minutes >= 59
    elif longest < FROZEN_MINUTES:
        assert frozen.minutes == 0


def hour(ratio: float, frozen: int) -> Hour:
    dc = round(1_000_000 * ratio)
    evidence = Evidence(paired_ac_milliwh=1_000_000, paired_dc_milliwh=dc, dc_milliwh=dc, paired_us=HOUR_US)
    return Hour(evidence, Frozen(frozen, 600_000) if frozen else Frozen())


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
