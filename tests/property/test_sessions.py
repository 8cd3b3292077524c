"""Sessions obey laws: their parts add up to them, and what is far away changes nothing in them."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from app.analytics.efficiency.counter import REACH_US
from app.analytics.efficiency.evidence import Sides, instant_of, pair_each, settled, settled_margin
from app.analytics.efficiency.pairs import total
from app.analytics.efficiency.rhythm import HOUR_US, MINUTE_US
from app.analytics.sessions.session import Part, parts_of, rule_of
from app.settings import Settings
from tests.property.counter_twin import Minute
from tests.property.test_counter import EPOCH, METERS, VEHICLES, Fleet, columns, fleet_of, pairs_of, seeds, stations

RULE = rule_of(Settings())
EVER = [-(10**17), 10**17]
US = timedelta(microseconds=1)


def joined(parts: Iterable[Part]) -> Iterator[Part]:
    """Yields the sessions that the parts add up to."""
    group: list[Part] = []
    for part in [*parts, None]:
        if group and (part is None or part.is_first):
            yield group[-1]._replace(
                start_us=group[0].start_us,
                is_first=group[0].is_first,
                meter_id=next((one.meter_id for one in group if one.meter_id), None),
                evidence=total(one.evidence for one in group),
                peak_milliwatt=max((one.peak_milliwatt for one in group if one.peak_milliwatt), default=None),
                silences=sum(one.silences for one in group),
            )
            group = []
        if part:
            assert part.is_first or part.start_us == group[-1].end_us
            group.append(part)


@settings(max_examples=20, deadline=None)
@given(seeds, st.booleans(), st.lists(st.floats(-1, 14), max_size=12, unique=True))
def test_the_parts_of_a_session_add_up_to_it(seed: int, is_station: bool, cuts: list[float]) -> None:
    pairs = pairs_of((stations if is_station else fleet_of)(seed, 10))
    bounds = [EVER[0], *sorted(EPOCH + int(cut * HOUR_US) for cut in cuts), EVER[1]]
    assert [*joined(parts_of(pairs, RULE, bounds))] == parts_of(pairs, RULE, EVER)


@settings(max_examples=20, deadline=None)
@given(seeds, st.booleans())
def test_sessions_follow_each_other_and_share_no_energy(seed: int, is_station: bool) -> None:
    pairs = pairs_of((stations if is_station else fleet_of)(seed, 10))
    sessions = parts_of(pairs, RULE, EVER)
    for one in sessions:
        assert one.is_first
        assert one.start_us < one.end_us < one.over_us
        assert min(one.evidence) >= 0
    for sooner, later in pairwise(sessions):
        assert sooner.end_us <= later.start_us
    whole = total(pair.between(*EVER) for pair in pairs.values())
    taken = total(one.evidence for one in sessions) if sessions else whole
    assert taken.paired_ac_milliwh <= whole.paired_ac_milliwh
    assert taken.paired_dc_milliwh <= whole.paired_dc_milliwh
    assert taken.dc_milliwh <= max((pair.vehicle.sums[-1] for pair in pairs.values()), default=0)


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(14, 30), st.integers(1, 4))
def test_rows_beyond_the_reach_change_no_part(seed: int, from_hours: int, hours: int) -> None:
    fleet = fleet_of(seed, 48)
    bounds = [EPOCH // HOUR_US * HOUR_US + hour * HOUR_US for hour in range(from_hours, from_hours + hours + 1)]
    assert parts_of(pairs_of(near(fleet, bounds, REACH_US)), RULE, bounds) == parts_of(pairs_of(fleet), RULE, bounds)


@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(1, 3), st.sampled_from([5, 10]))
def test_of_settled_vehicles_rows_beyond_the_margin_change_no_part(seed: int, hours: int, gap_minutes: int) -> None:
    options = Settings(pairing_gap_minutes=gap_minutes)
    rule, margin = rule_of(options), settled_margin(options) // US
    fleet = calm_fleet(Random(seed), 10)
    every = pair_each(fleet.vehicles, sides_of(fleet), options)
    for from_hour in range(1, 9):
        bounds = [EPOCH // HOUR_US * HOUR_US + (from_hour + hour) * HOUR_US for hour in range(hours + 1)]
        few = sides_of(near(fleet, bounds, margin))
        around = instant_of(bounds[0] - margin), instant_of(bounds[-1] + margin)
        calm = settled(few, fleet.vehicles, *around, options)
        for vehicle_id, pairs in pair_each(calm, few, options).items():
            assert parts_of(pairs, rule, bounds) == parts_of(every[vehicle_id], rule, bounds)


def calm_fleet(random: Random, hours: int) -> Fleet:
    """Returns devices that report always; vehicles begin, pause, and change or lose their meter often."""
    vehicles = {vehicle: calm_device(random, hours, METERS) for vehicle in VEHICLES[: random.choice([1, 1, 2])]}
    return Fleet(
        {meter: calm_device(random, hours) for meter in METERS}, vehicles, {vehicle: [] for vehicle in vehicles}
    )


def calm_device(random: Random, hours: int, meters: tuple[int, ...] = ()) -> list[Minute]:
    every = random.choice([20, 60, 60, 120, 240]) * 1_000_000
    found: list[Minute] = []
    at, end = EPOCH - HOUR_US, EPOCH + hours * HOUR_US
    while at < end:
        until = at + random.choice([3, 8, 14, 17, 40, 90, 200]) * MINUTE_US
        kilowatt, meter = random.choice([0, 0.1, 0.3, 7, 7, 11]), random.choice([*meters, *meters, None])
        while at < until:
            previous, at = at, at + every + random.randrange(-every // 20, every // 20)
            milliwh = int((at - previous) * kilowatt * 1_000_000 / HOUR_US)
            last = found[-1] if found else None
            if last and last.last // MINUTE_US == at // MINUTE_US and last.meter == meter:
                found[-1] = replace(last, last=at, milliwh=(last.milliwh or 0) + milliwh, readings=last.readings + 1)
            else:
                found.append(Minute(at, at, milliwh, 1, meter))
    return found


def near(fleet: Fleet, bounds: list[int], reach: int) -> Fleet:
    """Returns the minutes that lie within the reach of the bounds, as they are fetched."""
    start, end = (at // MINUTE_US * MINUTE_US for at in (bounds[0] - reach, bounds[-1] + reach))
    meters, vehicles = (
        {device: [one for one in minutes if start <= one.first < end] for device, minutes in devices.items()}
        for devices in (fleet.meters, fleet.vehicles)
    )
    return Fleet(meters, vehicles, fleet.mappings)


def sides_of(fleet: Fleet) -> Sides:
    vehicles = {vehicle: columns(minutes) for vehicle, minutes in fleet.vehicles.items() if minutes}
    meters = {meter: columns(minutes) for meter, minutes in fleet.meters.items() if minutes}
    return Sides(vehicles, meters, fleet.mappings, {}, {}, {meter: {*fleet.vehicles} for meter in fleet.meters})
