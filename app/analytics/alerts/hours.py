"""A UTC hour's evidence on a vehicle at a meter: a row of efficiency_hour. Pure; hours since 1970."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from app.analytics.efficiency import counter
from app.analytics.efficiency.pairs import Evidence, Pair, Pairs, evidence_between
from app.analytics.efficiency.rhythm import HOUR_US, MINUTE_US
from app.analytics.efficiency.stretches import common

NO_METER = 0
FROZEN_MINUTES = 30
FROZEN_MILLIWH = 500_000
# A frozen device repeats a value at least so often: a reading each five minutes in the least stretch.
_REPEATED = 6


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


def judge_hours(pairs: Mapping[int, Pairs], hours: Iterable[int]) -> Hours:
    """Returns the rows of some vehicles, by whose number `pairs` are, in some hours."""
    chosen = [*hours]
    return {
        (vehicle_id, hour, meter_id or NO_METER): Hour(evidence, *_frozen(of_vehicle[meter_id], hour))
        for vehicle_id, of_vehicle in pairs.items()
        for hour in chosen
        for meter_id, evidence in evidence_between(of_vehicle, hour * HOUR_US, (hour + 1) * HOUR_US).items()
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
    values = _values(stuck, start, end)
    # Nearly all devices are sound, and this shows it in a tenth of the time.
    if _most([value for _, value in values]) < _REPEATED:
        return
    for _, run in groupby(values, key=itemgetter(1)):
        spans = [span for span, _ in run]
        first, last = stuck.points[spans[0]], stuck.points[spans[-1] + 1]
        flowed = other.flowed(first, last)
        if (
            len(spans) >= _REPEATED
            and last - first >= FROZEN_MINUTES * MINUTE_US
            and flowed >= FROZEN_MILLIWH
            and _varies([value for _, value in _values(other, first, last)])
        ):
            yield Frozen((last - first) // MINUTE_US, flowed)


def _values(device: counter.Counter, start: int, end: int) -> list[tuple[int, int | Fraction]]:
    """Returns the spans inside of a stretch, and what each of their readings said: a minute may have two or three."""
    points = device.points
    inside = [span for span in device.spans(start, end) if start <= points[span] and points[span + 1] <= end]
    return [
        (span, energy if device.readings[span] == 1 else Fraction(energy, device.readings[span]))
        for span, energy in [(span, device.energy(span)) for span in inside]
    ]


def _varies(values: Sequence[int | Fraction]) -> bool:
    """Returns True when no value makes up half of the values or more."""
    return 2 * _most(values) < len(values)


def _most(values: Sequence[int | Fraction]) -> int:
    """Returns how often the most frequent value occurs."""
    return max(Counter(values).values(), default=0)
