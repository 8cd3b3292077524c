"""A UTC hour's evidence on a vehicle at a meter: a row of efficiency_hour. Pure; hours and minutes since 1970."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from app.analytics.efficiency.pairing import AtMeter, Energy, Minutes, Pairs, Sides, pair_each

NO_METER = 0
FROZEN_MINUTES = 30
FROZEN_MILLIWH = 500_000
# A frozen device repeats a value at least this often, while at least this many of the other's values differ.
_REPEATED = 3


class Frozen(NamedTuple):
    """The longest frozen stretch of a device that ends in an hour, and the energy that the other device measured."""

    minutes: int = 0
    other_milliwh: int = 0


class Hour(NamedTuple):
    """A row of efficiency_hour, in the order of its columns from `ac_milliwh` on; each minute counts once."""

    ac_milliwh: int
    dc_milliwh: int
    minutes: int
    paired: int
    shared: int
    unpaired: int
    frozen_meter_minutes: int = 0
    frozen_meter_dc_milliwh: int = 0
    frozen_vehicle_minutes: int = 0
    frozen_vehicle_ac_milliwh: int = 0
    charging: int = 0


Hours = dict[tuple[int, int, int], Hour]
"""The rows by vehicle, hour and meter."""


def judge_hours(vehicles: set[int], hours: Collection[int], sides: Sides, *, gap_minutes: int) -> Hours:
    """Returns the rows of some vehicles in some hours; for `sides` see pair_each().

    The sides must hold each hour's minutes and its margins(); further minutes change nothing.
    """
    pairs = pair_each(vehicles, sides, gap_minutes=gap_minutes)
    vehicle_counts, meter_counts = _counts(sides.vehicles), _counts(sides.meters)
    chosen = frozenset(hours)
    return {
        (vehicle_id, hour, meter_id): row
        for vehicle_id, of_vehicle in pairs.items()
        for hour, meter_id, row in _rows(of_vehicle, chosen, vehicle_counts[vehicle_id], meter_counts)
    }


Counts = defaultdict[int, dict[int, int]]
"""The number of readings by device and minute, where it is not one."""


def _counts(devices: Iterable[Minutes]) -> Counts:
    counts = Counts(dict)
    for at in devices:
        # Most devices have one reading in each minute.
        if sum(at.readings) > len(at.readings):
            counts[at.device_id].update(pair for pair in zip(at.minutes, at.readings, strict=True) if pair[1] > 1)
    return counts


def margins(gap_minutes: int) -> tuple[int, int]:
    """Returns how many minutes before and after an hour its row depends on."""
    return FROZEN_MINUTES + gap_minutes, gap_minutes


def _rows(
    pairs: Pairs, hours: frozenset[int], counts_of_vehicle: Mapping[int, int], meter_counts: Counts
) -> Iterator[tuple[int, int, Hour]]:
    paired, shared, unpaired = _counted_once(pairs, hours)
    for meter_id in sorted({*pairs.at_meter, NO_METER}):
        at = pairs.at_meter.get(meter_id)
        ac, dc, charging, frozen = Counter[int](), Counter[int](), Counter[int](), {}
        if at is not None and at.paired:
            for minute in at.paired:
                drawn, delivered = at.ac_milliwh.get(minute, 0), at.dc_milliwh.get(minute, 0)
                if drawn or delivered:
                    hour = minute // 60
                    ac[hour] += drawn
                    dc[hour] += delivered
                    charging[hour] += 1
            frozen = _frozen(at, hours, counts_of_vehicle, meter_counts[meter_id])
        for hour in sorted(hours):
            counts = paired[meter_id, hour], shared[meter_id, hour], unpaired[meter_id, hour]
            energies = ac[hour], dc[hour]
            if any(counts) or any(energies):
                meter, vehicle = frozen.get(hour, (Frozen(), Frozen()))
                yield hour, meter_id, Hour(*energies, sum(counts), *counts, *meter, *vehicle, charging[hour])


_Counts = Counter[tuple[int, int]]
"""The number of minutes by meter and hour."""


def _counted_once(pairs: Pairs, hours: frozenset[int]) -> tuple[_Counts, _Counts, _Counts]:
    """Counts the hours' minutes as paired, shared or unpaired: each as the first of these that it is anywhere."""
    left = {minute for minute in pairs.covered if minute // 60 in hours}
    counts = _Counts(), _Counts(), _Counts()
    for number, count in enumerate(counts):
        for meter_id, at in sorted(pairs.at_meter.items()):
            fitting = left & (at.paired, at.shared, at.covered)[number]
            left -= fitting
            for hour, minutes in Counter([minute // 60 for minute in fitting]).items():
                count[meter_id, hour] += minutes
    for minute in left:
        counts[2][NO_METER, minute // 60] += 1
    return counts


def _frozen(
    at: AtMeter, hours: frozenset[int], counts_of_vehicle: Mapping[int, int], counts_of_meter: Mapping[int, int]
) -> dict[int, tuple[Frozen, Frozen]]:
    """Returns, by hour, the longest frozen stretch of the meter and that of the vehicle."""
    found = {}
    minutes = sorted(at.paired)
    for hour in hours:
        seen = [minute for minute in minutes if -FROZEN_MINUTES <= minute - 60 * hour < 60]
        meter = _longest(seen, at.ac_milliwh, counts_of_meter, at.dc_milliwh, 60 * hour)
        vehicle = _longest(seen, at.dc_milliwh, counts_of_vehicle, at.ac_milliwh, 60 * hour)
        if meter.minutes or vehicle.minutes:
            found[hour] = meter, vehicle
    return found


def _longest(minutes: Sequence[int], stuck: Energy, counts: Mapping[int, int], other: Energy, ends_from: int) -> Frozen:
    if len(minutes) < FROZEN_MINUTES:
        return Frozen()
    values = [stuck[minute] for minute in minutes if minute in stuck]
    others = [other[minute] for minute in minutes if minute in other]
    # Nearly all devices are sound, and this shows it in a tenth of the time.
    if sum(others) < FROZEN_MILLIWH or _most(values) < _REPEATED or len(others) - _most(others) < _REPEATED:
        return Frozen()
    stretches = (stretch for stretch in _stretches(minutes, stuck, counts) if stretch[-1] >= ends_from)
    frozen = (
        Frozen(len(stretch), sum([other.get(minute, 0) for minute in stretch]))
        for stretch in stretches
        if len(stretch) >= FROZEN_MINUTES and _varies([other[minute] for minute in stretch if minute in other])
    )
    return max((one for one in frozen if one.other_milliwh >= FROZEN_MILLIWH), default=Frozen())


def _stretches(minutes: Sequence[int], stuck: Energy, counts: Mapping[int, int]) -> Iterator[Sequence[int]]:
    """Yields the longest runs of consecutive minutes in which a device's readings were 0, or one value repeated.

    Because a clock jitters, a minute has now and then no reading, or two or three.
    """
    start, value = 0, None
    for position, minute in enumerate(minutes):
        measured = Fraction(stuck[minute], counts.get(minute, 1)) if minute in stuck else None
        follows = position > 0 and minute == minutes[position - 1] + 1
        if not follows or (measured is not None and value is not None and measured != value):
            if position > start:
                yield minutes[start:position]
            start, value = position, None
        if measured is not None:
            value = measured
    if minutes:
        yield minutes[start:]


def _varies(values: Sequence[int]) -> bool:
    """Returns True when no value makes up half of the values or more."""
    return 2 * _most(values) < len(values)


def _most(values: Sequence[int]) -> int:
    """Returns how often the most frequent value occurs."""
    return max(Counter(values).values(), default=0)
