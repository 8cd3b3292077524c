"""Counters meet as their brute-force twin says, and obey laws that need no twin."""

from itertools import pairwise
from random import Random
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.analytics.efficiency.counter import REACH_US, Counter
from app.analytics.efficiency.pairs import Evidence, Pair, evidence_between, pair_counters
from app.analytics.efficiency.rhythm import LONGEST_SILENCE_US
from app.analytics.efficiency.rows import Mapping, Rows, counter_of, minutes_of
from tests.fixtures.charges import METER, Sharing, Station, rows
from tests.property.counter_twin import HOUR, MINUTE, Device, Minute, Twin, spans_of

GAP, LIMIT = 5 * MINUTE, 100_000_000
EPOCH = 1_700_000_000 * 1_000_000 // MINUTE * MINUTE
METERS, VEHICLES = (1, 2), (11, 12, 13)


class Fleet(NamedTuple):
    """The minutes of meters and vehicles, and the mappings of vehicles."""

    meters: dict[int, list[Minute]]
    vehicles: dict[int, list[Minute]]
    mappings: dict[int, list[Mapping]]


def device(random: Random, hours: float, *, is_vehicle: bool) -> list[Minute]:
    """Returns a device's minutes: phases of any pace and power with silences between them, and now and then a fault."""
    rows: list[Minute] = []
    at, end = EPOCH + random.randrange(2 * HOUR), EPOCH + int(hours * HOUR)
    while at < end:
        every = random.choice([15, 60, 60, 60, 120, 300, 600, 900]) * 1_000_000
        kilowatt = random.choice([0, 0.02, 4, 7, 7, 11, 22]) * (0.9 if is_vehicle else 1)
        meter = random.choice([*METERS, METERS[0], METERS[0], None]) if is_vehicle else None
        until = at + random.randrange(3 * HOUR)
        carried = random.random() < 0.5
        previous = rows[-1].last if rows and carried and random.random() < 0.8 else at - every
        while at < until:
            first = at
            count = 1
            while at // MINUTE == (at + every) // MINUTE and at + every < until:
                at, count = at + every, count + 1
            milliwh = int((at - previous) * kilowatt * 1_000_000 / HOUR)
            fault = random.random()
            energy = None if fault < 0.01 else milliwh * 300 if fault < 0.02 else milliwh
            rows.append(Minute(first, at, energy, count, meter))
            previous = at
            at += every + random.randrange(-every // 20, every // 20)
            if at // MINUTE == previous // MINUTE:
                at = (previous // MINUTE + 1) * MINUTE
        at = (at // MINUTE + 1) * MINUTE + random.choice([0, 3, 7, 20, 60, 200, 300]) * random.randrange(1, MINUTE)
    return rows


def fleet_of(seed: int, hours: float = 14) -> Fleet:
    random = Random(seed)
    vehicles = {vehicle: device(random, hours, is_vehicle=True) for vehicle in VEHICLES[: random.choice([1, 2, 2, 3])]}
    mappings: dict[int, list[Mapping]] = {}
    for vehicle in vehicles:
        cut = EPOCH + random.randrange(int(hours * HOUR))
        mappings[vehicle] = [Mapping(vehicle, 1, 0, cut), Mapping(vehicle, 2, cut, 2 * EPOCH)][: random.randrange(3)]
    return Fleet({meter: device(random, hours, is_vehicle=False) for meter in METERS}, vehicles, mappings)


def columns(minutes: list[Minute], random: Random | None = None) -> Rows:
    """Returns the minutes, which may come in random order, as they are fetched."""
    some = random.sample(minutes, len(minutes)) if random else minutes
    return rows((one.last, one.first, one.milliwh, one.readings, one.meter) for one in some)


def counters(fleet: Fleet, random: Random | None = None) -> tuple[dict[int, Counter], dict[int, Counter]]:
    def of(minutes: list[Minute], mappings: list[Mapping]) -> Counter:
        return counter_of(columns(minutes, random), mappings, gap_us=GAP, limit_milliwatt=LIMIT)

    return (
        {meter: of(minutes, []) for meter, minutes in fleet.meters.items()},
        {vehicle: of(minutes, fleet.mappings[vehicle]) for vehicle, minutes in fleet.vehicles.items()},
    )


def pairs_of(fleet: Fleet, random: Random | None = None) -> dict[int | None, Pair]:
    """Returns the pairs of the first vehicle."""
    meters, (vehicle, *others) = counters(fleet, random)[0], counters(fleet, random)[1].values()
    return pair_counters(vehicle, meters, enumerate(others))


def twins_of(fleet: Fleet) -> dict[int | None, Twin]:
    first, *others = (
        Device(spans_of(minutes, fleet.mappings[vehicle], GAP, LIMIT)) for vehicle, minutes in fleet.vehicles.items()
    )
    meters = {meter: Device(spans_of(minutes, [], GAP, LIMIT)) for meter, minutes in fleet.meters.items()}
    at = {span.meter for span in first.spans} - {None}
    return {meter: Twin(first, meters[meter], meter, others) for meter in at if meter is not None}


seeds = st.integers(0, 2**32)
starts = st.floats(0, 6)


def stations(seed: int, hours: float) -> Fleet:
    """Returns some hours of a simulated station: there, energies fit, and sessions begin and end."""
    sharing: tuple[Sharing, ...] = ("alone", "in turns", "at once")
    station = Station(str(seed), EPOCH, sharing[seed % 3], slow=seed % 2 == 0)
    window = range(EPOCH, EPOCH + int(hours * HOUR))

    def minutes(*parts: Rows) -> list[Minute]:
        every = (minute for part in parts for minute in minutes_of(part))
        return [
            Minute(first, last, milliwh, readings, meter)
            for last, first, milliwh, readings, meter in every
            if first in window
        ]

    vehicles = dict(enumerate(station.vehicles))
    return Fleet(
        {METER: minutes(station.meter_rows)},
        {number: minutes(*vehicle.rows) for number, vehicle in vehicles.items()},
        {number: vehicle.mappings for number, vehicle in vehicles.items()},
    )


def check_twin(fleet: Fleet, start: int, end: int) -> None:
    pairs = pairs_of(fleet)
    for meter, twin in twins_of(fleet).items():
        assert pairs[meter].between(start, end) == twin.evidence(start, end)


def window_of(from_hours: float, hours: float) -> tuple[int, int]:
    start = EPOCH + int(from_hours * HOUR)
    return start, start + int(hours * HOUR)


@settings(max_examples=6, deadline=None)
@given(seeds, starts, st.floats(0.01, 7))
def test_the_twin_agrees_on_any_devices(seed: int, from_hours: float, hours: float) -> None:
    check_twin(fleet_of(seed, 6), *window_of(from_hours, hours))


@settings(max_examples=6, deadline=None)
@given(seeds, starts, st.floats(0.01, 7))
def test_the_twin_agrees_on_stations(seed: int, from_hours: float, hours: float) -> None:
    check_twin(stations(seed, 6), *window_of(from_hours, hours))


@pytest.mark.soak
@settings(max_examples=1_000, deadline=None)
@given(seeds, starts, st.floats(0.01, 7), st.booleans())
def test_the_twin_agrees_always(seed: int, from_hours: float, hours: float, is_station: bool) -> None:
    check_twin((stations if is_station else fleet_of)(seed, 8), *window_of(from_hours, hours))


either = st.builds(lambda seed, is_station: (stations if is_station else fleet_of)(seed, 10), seeds, st.booleans())


@settings(max_examples=20, deadline=None)
@given(either, st.lists(st.floats(-1, 14), min_size=2, max_size=12, unique=True))
def test_adjacent_windows_add_up(fleet: Fleet, cuts: list[float]) -> None:
    pairs = pairs_of(fleet)
    instants = sorted(EPOCH + int(cut * HOUR) for cut in cuts)
    for pair in pairs.values():
        parts = [pair.between(a, b) for a, b in pairwise(instants)]
        assert pair.between(instants[0], instants[-1]) == Evidence(*map(sum, zip(*parts, strict=True)))


@settings(max_examples=20, deadline=None)
@given(either, st.lists(st.floats(-1, 14), min_size=1, max_size=12))
def test_many_instants_at_once_are_those_one_by_one(fleet: Fleet, hours: list[float]) -> None:
    instants = [EPOCH + int(after * HOUR) for after in hours]
    for pair in pairs_of(fleet).values():
        instants += [*pair.vehicle.points, *pair.meter.points]
        for flow in pair.flows:
            assert flow.until_each(np.array(instants)).tolist() == [flow.until(instant) for instant in instants]


@given(st.integers(0, 2**50), st.integers(1, LONGEST_SILENCE_US), st.lists(st.integers(-9, LONGEST_SILENCE_US + 9)))
def test_many_instants_of_a_long_span_of_much_energy_are_those_one_by_one(
    milliwh: int, duration: int, after: list[int]
) -> None:
    counter = Counter([EPOCH, EPOCH + duration], [7, 7 + milliwh], [1], [], set(), set())
    instants = [EPOCH + us for us in after]
    assert counter.at_each(np.array(instants, np.int64)).tolist() == [counter.at(instant) for instant in instants]


@settings(max_examples=10, deadline=None)
@given(either, seeds)
def test_the_order_of_rows_changes_nothing(fleet: Fleet, seed: int) -> None:
    assert pairs_of(fleet, Random(seed)) == pairs_of(fleet)


@settings(max_examples=15, deadline=None)
@given(seeds, st.floats(14, 30), st.floats(0.01, 4))
def test_rows_beyond_the_reach_change_nothing(seed: int, from_hours: float, hours: float) -> None:
    fleet = fleet_of(seed, 48)
    start, end = window_of(from_hours, hours)

    def near(minutes: list[Minute]) -> list[Minute]:
        return [one for one in minutes if one.last >= start - REACH_US and one.first <= end + REACH_US]

    cut = Fleet(
        {device: near(minutes) for device, minutes in fleet.meters.items()},
        {device: near(minutes) for device, minutes in fleet.vehicles.items()},
        fleet.mappings,
    )
    assert evidence_between(pairs_of(cut), start, end) == evidence_between(pairs_of(fleet), start, end)


@settings(max_examples=10, deadline=None)
@given(either)
def test_the_evidence_is_of_time_and_energy_that_exists(fleet: Fleet) -> None:
    for pair in pairs_of(fleet).values():
        for sooner, later in pairwise(pair.runs(0, 2 * EPOCH)):
            assert sooner.to_us <= later.from_us
        evidence = pair.between(0, 2 * EPOCH)
        assert min(evidence) >= 0
        assert evidence.paired_dc_milliwh <= evidence.dc_milliwh
        assert evidence.paired_ac_milliwh <= sum(pair.meter.sums[-1:])
