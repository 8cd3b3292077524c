"""A device's energy as a counter that grows. Pure.

A reading holds what flowed since its device's previous reading. So readings are points of a counter, and between two
of them energy is taken to flow evenly. Two counters can be compared over any stretch of time, whatever the cadences.

Times are microseconds since any epoch, energy is in thousandths of a Wh (1 kWh = 1,000,000), both in whole numbers.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import repeat
from operator import itemgetter
from typing import NamedTuple

import msgspec

from app.analytics.efficiency.pairing import Mapping
from app.analytics.efficiency.rhythm import (
    HOUR_US,
    LONGEST_GAP_US,
    LONGEST_SILENCE_US,
    NEAR_US,
    longest_gap_us,
    opening,
)
from app.analytics.efficiency.stretches import Stretch, Stretches

REACH_US = 2 * (LONGEST_SILENCE_US + NEAR_US) + LONGEST_GAP_US
"""Rows that lie further from a window than this change nothing in it."""

# A milliwatt for an hour is a milliwatt-hour; 0.05 kW are 50,000 milliwatts.
_CHARGING_MILLIWATT = 50_000
_US_PER_CHARGING_MILLIWH = HOUR_US // _CHARGING_MILLIWATT
# A reading of less energy than 1 Wh that ends a silence does not say that energy flowed in the silence.
_NOTHING_MILLIWH = 1_000


class Rows(NamedTuple):
    """The minutes in which a device has readings: arrays of equal length, in any order.

    A minute has the instants of its first and last reading, their energy and their number. Its energy is None when that
    of any of its readings is not known. A vehicle has one for each meter that its readings name, and one with
    `meter_id` None for readings that name none; a meter has one, with `meter_id` None.
    """

    meter_id: int | None
    first_us: Sequence[int]
    last_us: Sequence[int]
    milliwh: Sequence[int | None]
    readings: Sequence[int]


class Counter(msgspec.Struct, frozen=True):
    """A counter through `points`, with `sums` of energy; span i leads from point i to point i + 1.

    A span is `covered` when its energy flowed evenly for all that is known. A span is `silent` when it is a silence of
    known energy, which flowed at an unknown time. In a span that is neither, nothing is known. `assumed` are the spans
    that a first reading opened; they are covered unless it is a lone one. `meters` is where a vehicle's spans are; None
    is no meter.
    """

    points: list[int]
    sums: list[int]
    covered: list[bool]
    silent: list[bool]
    assumed: set[int]
    meters: list[int | None]

    def at(self, instant: int) -> int:
        """Returns the energy up to an instant, rounded down, so that what flows in adjacent times adds up exactly."""
        after = bisect_left(self.points, instant)
        if after == len(self.points):
            return self.sums[-1] if self.sums else 0
        if after == 0 or self.points[after] == instant:
            return self.sums[after]
        start, before = self.points[after - 1], self.sums[after - 1]
        return before + (self.sums[after] - before) * (instant - start) // (self.points[after] - start)

    def flowed(self, start: int, end: int) -> int:
        """Returns the energy between two instants."""
        return self.at(end) - self.at(start)

    def flowed_in(self, stretches: Iterable[Stretch]) -> int:
        """Returns the energy of some stretches."""
        return sum([self.flowed(start, end) for start, end in stretches])

    def energy(self, span: int) -> int:
        """Returns the energy of a span."""
        return self.sums[span + 1] - self.sums[span]

    def cut_by(self, instant: int) -> int:
        """Returns the energy of the span that an instant cuts; 0 at a point."""
        after = bisect_left(self.points, instant)
        if after in (0, len(self.points)) or self.points[after] == instant:
            return 0
        return self.energy(after - 1)

    def spans(self, start: int, end: int) -> range:
        """Returns the numbers of the spans that have time in (start, end)."""
        points = self.points
        first = bisect_left(points, start)
        if first == len(points) or points[first] > start:
            first -= 1
        return range(max(0, first), min(bisect_left(points, end), len(points) - 1))

    def has_point(self, instant: int) -> bool:
        """Returns True when a span begins or ends at the instant."""
        after = bisect_left(self.points, instant)
        return after < len(self.points) and self.points[after] == instant

    def lone(self, meter_id: int | None) -> Stretches:
        """Returns the spans at the meter that a lone reading opened."""
        spans = (span for span in self.assumed if not self.covered[span] and self.meters[span] == meter_id)
        return sorted((self.points[span], self.points[span + 1]) for span in spans)

    def is_covered_after(self, point: int) -> bool:
        """Returns True when the span that begins at a point is covered."""
        span = bisect_left(self.points, point)
        return span < len(self.covered) and self.covered[span]

    def takes_energy(self, span: int) -> bool:
        """Returns True for a span of at least 0.05 kW: with less, a vehicle only reports."""
        return self.energy(span) * _US_PER_CHARGING_MILLIWH >= self.points[span + 1] - self.points[span]

    def cover(self) -> Stretches:
        """Returns the covered time."""
        return self._joined(enumerate(self.covered))

    def charging(self, meter_id: int | None) -> Stretches:
        """Returns the covered time in which a vehicle takes energy at the meter."""
        where = zip(self.covered, self.meters, strict=True)
        return self._joined(
            (span, covered and meter == meter_id and self.takes_energy(span))
            for span, (covered, meter) in enumerate(where)
        )

    def taking(self, meter_id: int | None) -> Stretches:
        """Returns the time, covered or not, in which a vehicle takes energy at the meter."""
        return self._joined(
            (span, meter == meter_id and self.takes_energy(span)) for span, meter in enumerate(self.meters)
        )

    def at_meter(self, meter_id: int | None) -> Stretches:
        """Returns the time, covered or not, that a vehicle spent at the meter."""
        return self._joined((span, meter == meter_id) for span, meter in enumerate(self.meters))

    def catch_ups(self, meter_id: int) -> Stretches:
        """Returns the time in which the energy of spans that are not covered may have flowed at the meter.

        It is all of the span when the vehicle took energy there before, as it may have gone on; else it is the end,
        long enough for the energy at the vehicle's highest power, and a half more.
        """
        found = []
        for span, (covered, meter) in enumerate(zip(self.covered, self.meters, strict=True)):
            if covered or meter != meter_id or self.energy(span) <= _NOTHING_MILLIWH:
                continue
            start, end = self.points[span], self.points[span + 1]
            if not self.is_charging(span - 1, meter_id):
                energy, duration = self._highest_power(start - NEAR_US, start, end, end + NEAR_US)
                needed = 3 * self.energy(span) * duration // (2 * energy) if energy else LONGEST_SILENCE_US
                start = max(start, end - needed)
            found.append((start, end))
        return found

    def is_charging(self, span: int, meter_id: int) -> bool:
        """Returns True when a vehicle takes energy at the meter in a covered span; there may be no such span."""
        exists = 0 <= span < len(self.covered)
        return exists and self.covered[span] and self.meters[span] == meter_id and self.takes_energy(span)

    def _highest_power(self, before: int, start: int, end: int, after: int) -> tuple[int, int]:
        """Returns energy and duration of the span with the highest power in [before, start] or [end, after]."""
        best = 0, 1
        for span in (*self.spans(before, start), *self.spans(end, after)):
            a, b = self.points[span], self.points[span + 1]
            if before <= a < b <= after and b - a <= LONGEST_GAP_US:
                best = max(best, (self.energy(span), b - a), key=lambda one: Fraction(*one))
        return best

    def _joined(self, chosen: Iterable[tuple[int, bool]]) -> Stretches:
        found: Stretches = []
        points, follows = self.points, False
        for span, is_chosen in chosen:
            if is_chosen:
                if follows:
                    found[-1] = found[-1][0], points[span + 1]
                else:
                    found.append((points[span], points[span + 1]))
            follows = is_chosen
        return found


def counter_of(rows: Iterable[Rows], mappings: Iterable[Mapping] = (), *, gap_us: int, limit_milliwatt: int) -> Counter:
    """Returns the counter of one device from its rows and mappings; for how far they must reach see REACH_US.

    Spans of up to `gap_us` are covered, and longer ones up to three usual intervals of the device. A span with a power
    above the limit is not, and its energy counts as not known.
    """
    minutes = sorted(
        (minute for at in rows for minute in zip(*at[2:0:-1], *at[3:], repeat(at.meter_id), strict=False)),
        key=itemgetter(0, 1),
    )
    history = [*mappings]
    points, sums, covered, silent = list[int](), list[int](), list[bool](), list[bool]()
    assumed, meters = set[int](), list[int | None]()
    previous, total = None, 0
    for number, (last, first, milliwh, _, meter) in enumerate(minutes):
        if previous is None or first - previous > LONGEST_SILENCE_US:
            start, is_covered, is_assumed = opening(minutes, number)
            is_silent = False
            if previous is not None:
                covered.append(False)
                silent.append(False)
                meters.append(None)
            points.append(start)
            sums.append(total)
        else:
            start, is_assumed = previous, False
            is_covered = first - start <= gap_us or first - start <= longest_gap_us(minutes, number)
            is_silent = not is_covered
        is_lone = is_assumed and not is_covered
        if milliwh is None or (milliwh * HOUR_US > limit_milliwatt * (last - start) and not is_lone):
            is_covered = is_silent = is_assumed = False
        else:
            total += milliwh
        if is_assumed:
            assumed.add(len(covered))
        points.append(last)
        sums.append(total)
        covered.append(is_covered)
        silent.append(is_silent)
        meters.append(_mapped(history, start) if meter is None and history else meter)
        previous = last
    return Counter(points, sums, covered, silent, assumed, meters)


def _mapped(history: Sequence[Mapping], instant: int) -> int | None:
    return next((mapping.meter_id for mapping in history if mapping.from_us <= instant < mapping.to_us), None)
