"""A UTC hour's evidence on a vehicle at a meter: a row of efficiency_hour. Pure; hours since 1970."""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import groupby
from operator import sub
from typing import NamedTuple

from app.analytics.efficiency import counter
from app.analytics.efficiency.pairs import Evidence, Pair, Pairs
from app.analytics.efficiency.rhythm import HOUR_US, MINUTE_US
from app.analytics.efficiency.stretches import common

NO_METER = 0
FROZEN_MINUTES = 30
FROZEN_MILLIWH = 500_000
# A frozen device repeats a value at least so often: a reading each five minutes in the least stretch.
_REPEATED = 6
# The middle half of the other's powers differ by a twentieth: beside a steadier charge, a sound device may well repeat
# a coarse value, such as 0.2 kWh a minute.
_UNEVEN_ONE_IN = 20


class Frozen(NamedTuple):
    """The longest frozen stretch of a device that ends in an hour, and the energy that the other device measured."""

    minutes: int = 0
    other_milliwh: int = 0


class Hour(NamedTuple):
    """A row of efficiency_hour."""

    evidence: Evidence
    frozen_meter: Frozen = Frozen()
    frozen_vehicle: Frozen = Frozen()


COLUMNS = (
    *Evidence._fields,
    *("frozen_meter_minutes", "frozen_meter_dc_milliwh", "frozen_vehicle_minutes", "frozen_vehicle_ac_milliwh"),
)
"""The columns of efficiency_hour from the evidence on."""

Hours = dict[tuple[int, int, int], Hour]
"""The rows by vehicle, hour and meter."""


def values_of(hour: Hour) -> tuple[int, ...]:
    """Returns the values of COLUMNS."""
    return *hour.evidence, *hour.frozen_meter, *hour.frozen_vehicle


def row_of(values: Sequence[int]) -> Hour:
    """Returns the row that has these values of COLUMNS."""
    return Hour(Evidence(*values[:-4]), Frozen(*values[-4:-2]), Frozen(*values[-2:]))


def judge_hours(pairs: Mapping[int, Pairs], hours: range) -> Hours:
    """Returns the rows of some vehicles, by whose number `pairs` are, in some hours."""
    bounds = [hour * HOUR_US for hour in (*hours, hours.stop)]
    return {
        (vehicle_id, hour, meter_id or NO_METER): Hour(evidence, *_frozen(pair, hour))
        for vehicle_id, of_vehicle in pairs.items()
        for meter_id, pair in of_vehicle.items()
        for hour, evidence in zip(hours, pair.windows(bounds), strict=True)
        if any(evidence) or pair.has_been(hour * HOUR_US, (hour + 1) * HOUR_US)
    }


def _frozen(pair: Pair, hour: int) -> tuple[Frozen, Frozen]:
    """Returns the longest frozen stretch of the meter and that of the vehicle."""
    window = [(hour * HOUR_US - FROZEN_MINUTES * MINUTE_US, (hour + 1) * HOUR_US)]
    stretches = [
        (start, end)
        for start, end in common(pair.alone, window)
        if end - start >= FROZEN_MINUTES * MINUTE_US and end > hour * HOUR_US
    ]
    meter = (frozen for stretch in stretches for frozen in _runs(pair.meter, pair.vehicle, *stretch))
    vehicle = (frozen for stretch in stretches for frozen in _runs(pair.vehicle, pair.meter, *stretch))
    return max(meter, default=Frozen()), max(vehicle, default=Frozen())


def _runs(stuck: counter.Counter, other: counter.Counter, start: int, end: int) -> Iterator[Frozen]:
    """Yields the runs of spans in which a device's readings were 0, or one value repeated, while the other's varied."""
    if other.flowed(start, end) < FROZEN_MILLIWH:
        return
    spans, values = _values(stuck, start, end)
    # Nearly all devices are sound, and the number of different values shows it soonest.
    if len(values) - len({*values}) < _REPEATED - 1 or _most(values) < _REPEATED:
        return
    first = spans.start
    for _, run in groupby(values):
        after = first + len([*run])
        begun, ended = stuck.points[first], stuck.points[after]
        if after - first >= _REPEATED and ended - begun >= FROZEN_MINUTES * MINUTE_US:
            flowed = other.flowed(begun, ended)
            is_dead = values[first - spans.start] == 0
            if flowed >= FROZEN_MILLIWH and _varies(other, begun, ended, may_be_even=is_dead):
                yield Frozen((ended - begun) // MINUTE_US, flowed)
        first = after


def _values(device: counter.Counter, start: int, end: int) -> tuple[range, Sequence[int | Fraction]]:
    """Returns the spans inside of a stretch, and what each of their readings said: a minute may have two or three."""
    spans = range(bisect_left(device.points, start), bisect_right(device.points, end) - 1)
    if not spans:
        return spans, []
    sums, readings = device.sums[spans.start : spans.stop + 1], device.readings[spans.start : spans.stop]
    energies = [*map(sub, sums[1:], sums)]
    if max(readings) == 1:
        return spans, energies
    return spans, [Fraction(energy, max(1, number)) for energy, number in zip(energies, readings, strict=True)]


def _varies(device: counter.Counter, start: int, end: int, *, may_be_even: bool) -> bool:
    """Returns True when no value makes up half of the readings or more, and the power is uneven or may be even."""
    spans, values = _values(device, start, end)
    if 2 * _most(values) >= len(values):
        return False
    durations = map(sub, device.points[spans.start + 1 : spans.stop + 1], device.points[spans.start : spans.stop])
    powers = sorted(device.energy(span) * HOUR_US // lasted for span, lasted in zip(spans, durations, strict=True))
    quarter = len(powers) // 4
    return may_be_even or _UNEVEN_ONE_IN * (powers[-1 - quarter] - powers[quarter]) > powers[len(powers) // 2]


def _most(values: Sequence[int | Fraction]) -> int:
    """Returns how often the most frequent value occurs."""
    return max(Counter(values).values(), default=0)
