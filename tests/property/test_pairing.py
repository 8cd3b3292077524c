"""The pairing equals its brute-force twin on any small fleet, and obeys laws that need no twin."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from random import Random
from typing import TypeVar

from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.analytics.efficiency.pairing import Mapping, Pairing, pair
from app.analytics.efficiency.verdict import efficiency_ratio, judge
from app.telemetry.reading import MeterReading, VehicleReading
from tests.fixtures.minutes import MeterMinute, VehicleMinute, sides_of
from tests.property.brute_force import MINUTE_US, VehicleMeter, performance

AnyReading = TypeVar("AnyReading", MeterReading, VehicleReading)

METERS = ["m1", "m2"]
VEHICLES = ["v1", "v2", "v3"]
ID = {name: int(name[1:]) for name in [*METERS, *VEHICLES, "m9", "v9"]}
ONE_KWH = 1_000_000


@dataclass(frozen=True)
class Fleet:
    meter_readings: list[MeterReading]
    vehicle_readings: list[VehicleReading]
    mappings: list[VehicleMeter]
    from_us: int
    to_us: int
    gap_minutes: int


def some_or_many(
    readings: st.SearchStrategy[AnyReading], unique_by: Callable[[AnyReading], object]
) -> st.SearchStrategy[list[AnyReading]]:
    """Draws a few readings or many: left alone, hypothesis prefers lists so short that hardly a minute is paired."""
    few = st.lists(readings, unique_by=unique_by, max_size=6)
    return few | st.lists(readings, unique_by=unique_by, min_size=8, max_size=40)


# The minutes are 0 to 15, with instants on and beside their borders.
instants = st.builds(
    lambda minute, offset_us: minute * MINUTE_US + offset_us,
    st.integers(0, 15),
    st.sampled_from([0, 1, 30_000_000, MINUTE_US - 1]),
)
energies = st.one_of(st.just(0), st.integers(0, ONE_KWH))
meter_readings = some_or_many(
    st.builds(MeterReading, meter_id=st.sampled_from(METERS), ts_us=instants, ac_milliwh=energies),
    lambda reading: (reading.meter_id, reading.ts_us),
)
vehicle_readings = some_or_many(
    st.builds(
        VehicleReading,
        vehicle_id=st.sampled_from(VEHICLES),
        ts_us=instants,
        dc_milliwh=energies,
        meter_id=st.none() | st.sampled_from(METERS),
        soc_centipercent=st.none() | st.integers(0, 10_000),
    ),
    lambda reading: (reading.vehicle_id, reading.ts_us),
)


@st.composite
def mappings(draw: st.DrawFn) -> list[VehicleMeter]:
    """Draws each vehicle's time, cut into spans at one meter or at none."""
    spans: list[VehicleMeter] = []
    for vehicle in VEHICLES:
        cuts = [-math.inf, *sorted(draw(st.sets(instants, max_size=3))), math.inf]
        for from_us, to_us in pairwise(cuts):
            meter = draw(st.none() | st.sampled_from(METERS))
            if meter is not None:
                spans.append((vehicle, meter, from_us, to_us))
    return spans


fleets = st.builds(
    Fleet,
    meter_readings,
    vehicle_readings,
    mappings(),
    from_us=st.integers(0, 3 * MINUTE_US),
    to_us=st.integers(12 * MINUTE_US, 16 * MINUTE_US),
    gap_minutes=st.integers(1, 6),
)


def dense_fleet(seed: int) -> Fleet:
    """Returns devices that report nearly every minute for a while, then fall silent or move on, as on a real day."""
    random = Random(seed)
    meters = [
        MeterReading(meter, minute * MINUTE_US + random.randrange(MINUTE_US), random.randrange(ONE_KWH))
        for meter in METERS
        for minute in range(90)
        if random.random() < 0.6
    ]
    vehicles = []
    for vehicle in VEHICLES[: random.randint(1, 3)]:
        at, chance = random.choice([*METERS, None]), random.choice([0.9, 0.5, 0.25])
        for minute in range(random.randrange(60), 90):
            if random.random() < 0.05:
                at = random.choice([*METERS, None])
            if random.random() < chance:
                ts_us = minute * MINUTE_US + random.randrange(MINUTE_US)
                vehicles.append(VehicleReading(vehicle, ts_us, random.randrange(ONE_KWH), at))
    spans: list[VehicleMeter] = []
    for vehicle in VEHICLES:
        cut_us = random.randrange(90 * MINUTE_US)
        spans.append((vehicle, random.choice(METERS), -math.inf, cut_us))
        spans.append((vehicle, random.choice(METERS), cut_us, math.inf))
    return Fleet(meters, vehicles, spans, 0, 90 * MINUTE_US, random.randint(1, 6))


dense_fleets = st.builds(dense_fleet, st.integers(0, 2**32))


def rows_of(fleet: Fleet) -> tuple[list[VehicleMinute], list[MeterMinute], list[Mapping]]:
    """Returns the fleet as the fetch does: energy summed by minute, numbers for names, integers for infinities."""
    window = range(fleet.from_us // MINUTE_US, -(-fleet.to_us // MINUTE_US))
    dc: Counter[tuple[int, int, int | None]] = Counter()
    for vehicle in fleet.vehicle_readings:
        meter = ID[vehicle.meter_id] if vehicle.meter_id else None
        dc[ID[vehicle.vehicle_id], vehicle.ts_us // MINUTE_US, meter] += vehicle.dc_milliwh
    ac: Counter[tuple[int, int]] = Counter()
    for reading in fleet.meter_readings:
        ac[ID[reading.meter_id], reading.ts_us // MINUTE_US] += reading.ac_milliwh
    return (
        [VehicleMinute(*key, energy) for key, energy in dc.items() if key[1] in window],
        [MeterMinute(*key, energy) for key, energy in ac.items() if key[1] in window],
        [
            Mapping(ID[vehicle], ID[meter], int(max(from_us, -1e15)), int(min(to_us, 1e15)))
            for vehicle, meter, from_us, to_us in fleet.mappings
        ],
    )


def pairing_of(fleet: Fleet, vehicle: str = "v1") -> Pairing:
    return pair(ID[vehicle], sides_of(*rows_of(fleet)), gap_minutes=fleet.gap_minutes).total()


def check_against_twin(fleet: Fleet) -> None:
    for vehicle in VEHICLES:
        got = pairing_of(fleet, vehicle)
        want = performance(
            vehicle,
            fleet.meter_readings,
            fleet.vehicle_readings,
            fleet.mappings,
            from_us=fleet.from_us,
            to_us=fleet.to_us,
            gap_minutes=fleet.gap_minutes,
        )
        assert got == Pairing(
            paired=want.paired,
            shared=want.shared,
            unpaired=want.unpaired,
            paired_ac_milliwh=want.paired_ac_milliwh,
            paired_dc_milliwh=want.paired_dc_milliwh,
            has_meter=want.has_meter,
        )
        assert got.minutes == want.minutes
        assert efficiency_ratio(got) == (None if want.efficiency_ratio is None else float(want.efficiency_ratio))
        assert judge(got, low_efficiency=0.85)[0] == want.status


@settings(max_examples=300)
@given(fleets)
def test_a_pairing_equals_its_twin(fleet: Fleet) -> None:
    check_against_twin(fleet)


@settings(max_examples=500)
@given(dense_fleets)
def test_a_pairing_of_longer_histories_equals_its_twin(fleet: Fleet) -> None:
    check_against_twin(fleet)


@settings(max_examples=100)
@given(fleets | dense_fleets, st.integers(0, 2**32))
def test_the_order_of_rows_changes_nothing(fleet: Fleet, seed: int) -> None:
    shuffled = rows_of(fleet)
    for rows in shuffled:
        Random(seed).shuffle(rows)
    assert pair(1, sides_of(*shuffled), gap_minutes=fleet.gap_minutes).total() == pairing_of(fleet)


@settings(max_examples=100)
@given(fleets | dense_fleets, st.sets(st.integers(0, 15)))
def test_a_vehicle_and_a_meter_elsewhere_change_nothing(fleet: Fleet, minutes: set[int]) -> None:
    there = replace(
        fleet,
        meter_readings=[*fleet.meter_readings, *(MeterReading("m9", m * MINUTE_US, 7) for m in minutes)],
        vehicle_readings=[
            *fleet.vehicle_readings,
            *(VehicleReading("v9", m * MINUTE_US, 7, "m9" if m % 2 else None) for m in minutes),
        ],
        mappings=[*fleet.mappings, ("v9", "m9", -math.inf, math.inf)],
    )
    assert pairing_of(there) == pairing_of(fleet)


@settings(max_examples=100)
@given(fleets | dense_fleets)
def test_the_sums_never_exceed_what_was_measured(fleet: Fleet) -> None:
    vehicle_rows, meter_rows, _ = rows_of(fleet)
    pairings = [pairing_of(fleet, vehicle) for vehicle in VEHICLES]
    # A meter's minute is paired with one vehicle at most, so no AC energy is counted twice in a fleet.
    assert sum(pairing.paired_ac_milliwh for pairing in pairings) <= sum(row.ac_milliwh for row in meter_rows)
    assert sum(pairing.paired_dc_milliwh for pairing in pairings) <= sum(row.dc_milliwh for row in vehicle_rows)
    for pairing in pairings:
        assert min(pairing.paired, pairing.shared, pairing.unpaired) >= 0


@settings(max_examples=100)
@given(fleets | dense_fleets)
def test_without_the_other_vehicles_nothing_is_shared(fleet: Fleet) -> None:
    alone = replace(fleet, vehicle_readings=[r for r in fleet.vehicle_readings if r.vehicle_id == "v1"])
    before, after = pairing_of(fleet), pairing_of(alone)
    assert after.shared == 0
    assert after.minutes == before.minutes
    assert after.paired >= before.paired


@settings(max_examples=300)
@given(
    ac=st.integers(0, 10**11),
    dc=st.integers(0, 10**11),
    limit=st.integers(1, 9_999).map(lambda n: Fraction(n, 10_000)),
)
@example(ac=10**11, dc=85 * 10**9, limit=Fraction(85, 100))
@example(ac=10**11, dc=85 * 10**9 - 1, limit=Fraction(85, 100))
@example(ac=10**11, dc=102 * 10**9, limit=Fraction(85, 100))
@example(ac=10**11, dc=102 * 10**9 + 1, limit=Fraction(85, 100))
def test_the_verdict_is_exact_at_its_limits(ac: int, dc: int, limit: Fraction) -> None:
    pairing = Pairing(1, 0, 0, ac, dc, has_meter=True)
    status, alert = judge(pairing, low_efficiency=float(limit))
    if ac < 500_000:
        assert status == "insufficient_data"
    elif Fraction(dc, ac) > Fraction(102, 100):
        assert status == "impossible"
    else:
        assert status == ("low_efficiency" if Fraction(dc, ac) < limit else "ok")
    assert (alert is not None) == (status in ("impossible", "low_efficiency"))
