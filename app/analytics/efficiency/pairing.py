"""The pairing of a vehicle's minutes with a meter's, which shows how much of the AC energy reached its battery.

Devices report the energy that flowed since their previous reading, on clocks of their own: a minute without a reading
may have energy. So a device covers the minutes of its readings and the short gaps between them, and a vehicle's minute
counts at a meter where both cover it and no other vehicle does.

A minute is its number since 1970-01-01 00:00 UTC; energy is in thousandths of a Wh (1 kWh = 1,000,000).
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain, pairwise
from typing import Any, NamedTuple, TypeAlias

import msgspec

MINUTE_US = 60_000_000

Energy: TypeAlias = defaultdict[int, int]
"""A device's energy by minute. It contains each minute that has a reading, even a reading of 0."""

ByMeter: TypeAlias = defaultdict[int | None, Energy]
"""A vehicle's DC energy by the meter that it came from; None when the meter is not known."""


class Minutes(NamedTuple):
    """The minutes in which a device has readings, with their energy and number of readings: arrays of equal length.

    A vehicle has one for each meter that its readings name, and one with `meter_id` None for readings that name none; a
    meter has one, with `meter_id` None. `others` are further columns that an answer asks for.
    """

    device_id: int
    meter_id: int | None
    minutes: list[int]
    milliwh: list[int]
    readings: list[int]
    others: Sequence[Any] = ()


class Mapping(NamedTuple):
    """A vehicle charges at this meter from `from_us` until before `to_us`, in microseconds since 1970-01-01 UTC.

    An open end is any integer far outside the window. A vehicle is mapped to one meter at a time.
    """

    vehicle_id: int
    meter_id: int
    from_us: int
    to_us: int


class Sides(NamedTuple):
    """The DC side and the AC side: minutes of vehicles and of meters, and the mappings of these vehicles."""

    vehicles: list[Minutes]
    meters: list[Minutes]
    mappings: list[Mapping]


class Pairing(msgspec.Struct, frozen=True):
    """A vehicle's minutes by their kind, each counted once, and the energy in the paired minutes.

    A minute at two meters is paired when it is paired at either meter, else shared, else unpaired.
    `has_meter` is False when no minute is at any meter.
    """

    paired: int
    shared: int
    unpaired: int
    paired_ac_milliwh: int
    paired_dc_milliwh: int
    has_meter: bool

    @property
    def minutes(self) -> int:
        """The number of minutes that the vehicle covers."""
        return self.paired + self.shared + self.unpaired


class Evidence(msgspec.Struct, frozen=True):
    """The minutes behind a Pairing. The keys of both energies are the paired minutes."""

    covered: set[int]
    shared: set[int]
    paired_ac_milliwh: Energy
    paired_dc_milliwh: Energy
    has_meter: bool

    def total(self) -> Pairing:
        """Returns the counts and sums over all minutes."""
        paired = len(self.paired_ac_milliwh)
        return Pairing(
            paired=paired,
            shared=len(self.shared),
            unpaired=len(self.covered) - paired - len(self.shared),
            paired_ac_milliwh=sum(self.paired_ac_milliwh.values()),
            paired_dc_milliwh=sum(self.paired_dc_milliwh.values()),
            has_meter=self.has_meter,
        )


class AtMeter(NamedTuple):
    """The minutes that a vehicle covers at a meter, those that are shared or paired, and the paired energy."""

    covered: set[int]
    shared: set[int]
    paired: set[int]
    ac_milliwh: Energy
    dc_milliwh: Energy


class Pairs(NamedTuple):
    """All the minutes that a vehicle covers, and those at each meter."""

    covered: set[int]
    at_meter: dict[int, AtMeter]


def pair(vehicle_id: int, sides: Sides, *, gap_minutes: int) -> Evidence:
    """Pairs one vehicle's minutes with those of its meters; for `sides` see pair_each()."""
    pairs = pair_each({vehicle_id}, sides, gap_minutes=gap_minutes)[vehicle_id]
    shared, ac, dc = set[int](), Energy(int), Energy(int)
    for at in pairs.at_meter.values():
        for minute in at.paired:
            ac[minute] += at.ac_milliwh.get(minute, 0)
            dc[minute] += at.dc_milliwh.get(minute, 0)
        shared |= at.shared
    return Evidence(pairs.covered, shared - ac.keys(), ac, dc, bool(pairs.at_meter))


def pair_each(vehicles: AbstractSet[int], sides: Sides, *, gap_minutes: int) -> dict[int, Pairs]:
    """Pairs the minutes of some vehicles with those of their meters. The order of rows and of minutes does not matter.

    `sides` holds the window's minutes of these vehicles and of every vehicle that may share a meter with them, at
    whatever meter, because all of them decide which minutes are consecutive. Minutes that start at most `gap_minutes`
    apart cover the minutes between them. Energy that names no meter is moved to where the mappings say.
    """
    delivered: defaultdict[int, ByMeter] = defaultdict(_by_meter)
    for vehicle in sides.vehicles:
        delivered[vehicle.device_id][vehicle.meter_id] = Energy(int, zip(vehicle.minutes, vehicle.milliwh, strict=True))
    consumed: defaultdict[int, Energy] = defaultdict(_energy)
    for meter in sides.meters:
        consumed[meter.device_id] = Energy(int, zip(meter.minutes, meter.milliwh, strict=True))
    _attribute_all(delivered, sides.mappings)
    covers: dict[int, tuple[set[int], dict[int, set[int]]]] = {}
    once: defaultdict[int, set[int]] = defaultdict(set)
    shared: defaultdict[int, set[int]] = defaultdict(set)
    for vehicle_id, by_meter in delivered.items():
        cover = _cover(by_meter, gap_minutes)
        for meter_id, minutes in cover[1].items():
            shared[meter_id] |= once[meter_id] & minutes
            once[meter_id] |= minutes
        if vehicle_id in vehicles:
            covers[vehicle_id] = cover
    metered = {meter_id: _filled(ac.keys(), _gaps(ac, gap_minutes)) for meter_id, ac in consumed.items()}

    def at(vehicle_id: int, meter_id: int, here: set[int]) -> AtMeter:
        shared_here = here & shared[meter_id]
        paired = (here - shared_here) & metered.get(meter_id, set())
        return AtMeter(here, shared_here, paired, consumed[meter_id], delivered[vehicle_id][meter_id])

    return {
        vehicle_id: Pairs(covered, {meter_id: at(vehicle_id, meter_id, here) for meter_id, here in at_meter.items()})
        for vehicle_id in vehicles
        for covered, at_meter in [covers.get(vehicle_id) or (set[int](), {})]
    }


def _energy() -> Energy:
    return Energy(int)


def _by_meter() -> ByMeter:
    return ByMeter(_energy)


def _attribute_all(delivered: dict[int, ByMeter], mappings: Iterable[Mapping]) -> None:
    """Attributes each vehicle's energy to the meters that its readings name, else to the one that it is mapped to."""
    history: defaultdict[int, list[Mapping]] = defaultdict(list)
    for mapping in mappings:
        history[mapping.vehicle_id].append(mapping)
    for vehicle_id in history.keys() & delivered.keys():
        _attribute(delivered[vehicle_id], history[vehicle_id])


def _attribute(by_meter: ByMeter, mappings: list[Mapping]) -> None:
    """Moves energy that names no meter to the one that the vehicle is mapped to at the start of the minute."""
    unnamed = by_meter[None]
    ordered = sorted(unnamed)
    for mapping in mappings:
        first = bisect_left(ordered, mapping.from_us, key=_start_us)
        after = bisect_left(ordered, mapping.to_us, key=_start_us)
        for minute in ordered[first:after]:
            by_meter[mapping.meter_id][minute] += unnamed.pop(minute)


def _start_us(minute: int) -> int:
    return minute * MINUTE_US


def _cover(by_meter: ByMeter, gap_minutes: int) -> tuple[set[int], dict[int, set[int]]]:
    """Returns all the minutes that a vehicle covers, and those that it covers at each meter.

    A minute between one at meter A and one at meter B is covered, but at no meter.
    """
    with_readings = set[int]().union(*by_meter.values())
    gaps = _gaps(with_readings, gap_minutes)
    at_meter = {meter_id: _filled(energy.keys(), gaps) for meter_id, energy in by_meter.items() if meter_id is not None}
    return _filled(with_readings, gaps), at_meter


def _gaps(minutes: Iterable[int], gap_minutes: int) -> dict[int, int]:
    """Returns the minute before each gap that is short enough to be covered, and the minute after it."""
    return {before: after for before, after in pairwise(sorted(minutes)) if 1 < after - before <= gap_minutes}


def _filled(minutes: AbstractSet[int], gaps: dict[int, int]) -> set[int]:
    """Returns the minutes, and those in the gaps that have a minute on either side."""
    sides = ((before, gaps[before]) for before in gaps.keys() & minutes)
    between = (range(before + 1, after) for before, after in sides if after in minutes)
    return set(minutes).union(chain.from_iterable(between))
