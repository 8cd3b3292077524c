"""Which of a vehicle's minutes show how much of a meter's AC energy reached its battery.

Devices report what flowed since their previous reading, on clocks of their own: a minute without a reading is not a
minute without energy. So a device covers the minutes of its readings and the short gaps between them, and a vehicle's
minute counts at a meter where both cover it and no other vehicle does.

A minute is its number since 1970-01-01 00:00 UTC; energy is in thousandths of a Wh (1 kWh = 1,000,000).
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from itertools import chain, pairwise
from typing import NamedTuple, TypeAlias

import msgspec

MINUTE_US = 60_000_000

Energy: TypeAlias = defaultdict[int, int]
"""A device's energy by minute. A minute is in it when it has a reading, be it of 0."""

ByMeter: TypeAlias = defaultdict[int | None, Energy]
"""A vehicle's DC energy by the meter it came from; None: not known."""


class VehicleMinute(NamedTuple):
    """The DC energy of a vehicle's readings in one minute that name the same meter, or name none."""

    vehicle_id: int
    minute: int
    meter_id: int | None
    dc_milliwh: int


class MeterMinute(NamedTuple):
    """The AC energy of a meter's readings in one minute."""

    meter_id: int
    minute: int
    ac_milliwh: int


class Mapping(NamedTuple):
    """The vehicle charges at this meter from `from_us` until before `to_us`, microseconds since 1970-01-01 UTC.

    Without a limit, an end is any integer far outside the window. A vehicle is mapped to one meter at a time.
    """

    vehicle_id: int
    meter_id: int
    from_us: int
    to_us: int


class Pairing(msgspec.Struct, frozen=True):
    """A vehicle's minutes by what they show, each counted once, and the energy that the paired ones hold.

    A minute at two meters is paired when it is paired at either of them, else shared, else unpaired.
    `has_meter` is false when no minute is at any meter.
    """

    paired: int
    shared: int
    unpaired: int
    paired_ac_milliwh: int
    paired_dc_milliwh: int
    has_meter: bool

    @property
    def minutes(self) -> int:
        """All minutes that the vehicle covers."""
        return self.paired + self.shared + self.unpaired


class Evidence(msgspec.Struct, frozen=True):
    """The minutes behind a Pairing. The keys of both energies are the paired minutes."""

    covered: set[int]
    shared: set[int]
    paired_ac_milliwh: Energy
    paired_dc_milliwh: Energy
    has_meter: bool

    def total(self) -> Pairing:
        """Counts and sums over all minutes."""
        paired = len(self.paired_ac_milliwh)
        return Pairing(
            paired=paired,
            shared=len(self.shared),
            unpaired=len(self.covered) - paired - len(self.shared),
            paired_ac_milliwh=sum(self.paired_ac_milliwh.values()),
            paired_dc_milliwh=sum(self.paired_dc_milliwh.values()),
            has_meter=self.has_meter,
        )


def pair(
    vehicle_id: int,
    vehicle_minutes: Iterable[VehicleMinute],
    meter_minutes: Iterable[MeterMinute],
    mappings: Iterable[Mapping],
    *,
    gap_minutes: int,
) -> Evidence:
    """Pair one vehicle's minutes with those of its meters.

    `vehicle_minutes` holds the window's minutes of this vehicle and of every vehicle that may share a meter with it,
    and of each of them all, at whatever meter: which minutes are consecutive depends on all. Those whose starts are at
    most `gap_minutes` apart cover the minutes between them. The order of rows does not matter.
    """
    delivered = _delivered(vehicle_minutes, mappings)
    consumed = _consumed(meter_minutes)
    own = delivered.pop(vehicle_id, ByMeter())
    covered, at_meter = _cover(own, gap_minutes)
    taken = _taken(delivered.values(), gap_minutes)

    shared, ac_milliwh, dc_milliwh = set[int](), Energy(int), Energy(int)
    for meter_id, here in at_meter.items():
        shared_here = here & taken[meter_id]
        ac = consumed[meter_id]
        paired_here = (here - shared_here) & _filled(ac.keys(), _gaps(ac, gap_minutes))
        dc = own[meter_id]
        for minute in paired_here:
            ac_milliwh[minute] += ac.get(minute, 0)
            dc_milliwh[minute] += dc.get(minute, 0)
        shared |= shared_here
    return Evidence(covered, shared - ac_milliwh.keys(), ac_milliwh, dc_milliwh, bool(at_meter))


def _delivered(vehicle_minutes: Iterable[VehicleMinute], mappings: Iterable[Mapping]) -> dict[int, ByMeter]:
    """Each vehicle's DC energy at the meters that its readings name, else at the one it is mapped to."""
    delivered: defaultdict[int, ByMeter] = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    for vehicle_id, minute, meter_id, dc_milliwh in vehicle_minutes:
        delivered[vehicle_id][meter_id][minute] += dc_milliwh
    history: defaultdict[int, list[Mapping]] = defaultdict(list)
    for mapping in mappings:
        history[mapping.vehicle_id].append(mapping)
    for vehicle_id, by_meter in delivered.items():
        _attribute(by_meter, history[vehicle_id])
    return delivered


def _attribute(by_meter: ByMeter, mappings: list[Mapping]) -> None:
    """Move the energy that names no meter to the one that the vehicle is mapped to at the start of the minute."""
    unnamed = by_meter[None]
    ordered = sorted(unnamed)
    for mapping in mappings:
        first = bisect_left(ordered, mapping.from_us, key=_start_us)
        after = bisect_left(ordered, mapping.to_us, key=_start_us)
        for minute in ordered[first:after]:
            by_meter[mapping.meter_id][minute] += unnamed.pop(minute)


def _start_us(minute: int) -> int:
    return minute * MINUTE_US


def _consumed(meter_minutes: Iterable[MeterMinute]) -> defaultdict[int, Energy]:
    """Each meter's AC energy."""
    consumed: defaultdict[int, Energy] = defaultdict(lambda: defaultdict(int))
    for meter_id, minute, ac_milliwh in meter_minutes:
        consumed[meter_id][minute] += ac_milliwh
    return consumed


def _cover(by_meter: ByMeter, gap_minutes: int) -> tuple[set[int], dict[int, set[int]]]:
    """All the minutes that a vehicle covers, and those it covers at each meter.

    A minute between one at meter A and one at meter B is covered, but at no meter.
    """
    with_readings = set[int]().union(*by_meter.values())
    gaps = _gaps(with_readings, gap_minutes)
    at_meter = {meter_id: _filled(energy.keys(), gaps) for meter_id, energy in by_meter.items() if meter_id is not None}
    return _filled(with_readings, gaps), at_meter


def _taken(vehicles: Iterable[ByMeter], gap_minutes: int) -> defaultdict[int, set[int]]:
    """The minutes of each meter that any of the vehicles covers."""
    taken: defaultdict[int, set[int]] = defaultdict(set)
    for by_meter in vehicles:
        for meter_id, minutes in _cover(by_meter, gap_minutes)[1].items():
            taken[meter_id] |= minutes
    return taken


def _gaps(minutes: Iterable[int], gap_minutes: int) -> dict[int, int]:
    """The minute before each gap that is short enough to be covered, and the minute after it."""
    return {before: after for before, after in pairwise(sorted(minutes)) if 1 < after - before <= gap_minutes}


def _filled(minutes: AbstractSet[int], gaps: dict[int, int]) -> set[int]:
    """The minutes, and those in the gaps that have one of them on either side."""
    sides = ((before, gaps[before]) for before in gaps.keys() & minutes)
    between = (range(before + 1, after) for before, after in sides if after in minutes)
    return set(minutes).union(chain.from_iterable(between))
