"""A device's energy as a counter that grows. Pure.

A reading holds what flowed since its device's previous reading. So readings are points of a counter, and between two
of them energy is taken to flow evenly. Two counters can be compared over any stretch of time, whatever the cadences.

Times are microseconds since any epoch, energy is in thousandths of a Wh (1 kWh = 1,000,000), both in whole numbers.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from operator import itemgetter
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np

from app.analytics.efficiency.rhythm import (
    LONGEST_GAP_US,
    LONGEST_SILENCE_US,
    NEAR_US,
)
from app.analytics.efficiency.stretches import Stretch, Stretches, union

REACH_US = 2 * (LONGEST_SILENCE_US + NEAR_US) + LONGEST_GAP_US
"""Rows that lie further from a window than this change nothing in it."""

# A reading of less energy than 1 Wh that ends a silence does not say that energy flowed in the silence.
_NOTHING_MILLIWH = 1_000
_HALF = 2**17

Numbers: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]


class Alike(NamedTuple):
    """Consecutive spans, from number `first` to before number `after`, that are of the same kind at the same meter.

    Spans of at least 0.05 kW take energy: with less, a vehicle only reports.
    """

    first: int
    after: int
    is_covered: bool
    takes_energy: bool
    meter_id: int | None


class Counter(msgspec.Struct, frozen=True):
    """A counter through `points`, with `sums` of energy; span i leads from point i to point i + 1.

    Each span has as many `readings` as its minute. It is covered when its energy flowed evenly for all that is known. A
    span is `silent` when it is a silence of known energy, which flowed at an unknown time. In a span that is neither,
    nothing is known. `assumed` are the spans that a first reading opened; they are covered unless it is a lone one. All
    spans are in `alike`, in order.
    """

    points: list[int]
    sums: list[int]
    readings: list[int]
    alike: list[Alike]
    silent: set[int]
    assumed: set[int]

    def at(self, instant: int) -> int:
        """Returns the energy up to an instant, rounded down, so that what flows in adjacent times adds up exactly."""
        after = bisect_left(self.points, instant)
        if after == len(self.points):
            return self.sums[-1] if self.sums else 0
        if after == 0 or self.points[after] == instant:
            return self.sums[after]
        start, before = self.points[after - 1], self.sums[after - 1]
        return before + (self.sums[after] - before) * (instant - start) // (self.points[after] - start)

    def at_each(self, instants: Numbers) -> Numbers:
        """Returns what at() does for each instant: 1,440 take 0.15 ms in place of 0.6."""
        if not self.points:
            return np.zeros_like(instants)
        points, sums = np.array(self.points), np.array(self.sums)
        after = np.clip(np.searchsorted(points, instants), 1, len(points) - 1)
        duration = points[after] - points[after - 1]
        passed = np.clip(instants - points[after - 1], 0, duration)
        per_us, rest = np.divmod(sums[after] - sums[after - 1], duration)
        # The product of rest and passed can have 68 bits for a silence: it is divided in two halves.
        high, low = np.divmod(passed, _HALF)
        high, rest_high = np.divmod(rest * high, duration)
        high, low = high * _HALF, (rest_high * _HALF + rest * low) // duration
        energies: Numbers = sums[after - 1] + per_us * passed + high + low
        return energies

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
        kinds = ((span, self.kind(span)) for span in self.assumed)
        spans = (span for span, kind in kinds if kind.meter_id == meter_id and not kind.is_covered)
        return sorted((self.points[span], self.points[span + 1]) for span in spans)

    def kind(self, span: int) -> Alike:
        """Returns the spans like this one; those before the first and after the last span are not covered."""
        if not 0 <= span < len(self.points) - 1:
            return Alike(span, span + 1, is_covered=False, takes_energy=False, meter_id=None)
        return self.alike[bisect_right(self.alike, span, key=itemgetter(0)) - 1]

    def meters(self) -> set[int | None]:
        """Returns the meters at which a vehicle has spans; None is no meter."""
        return {one.meter_id for one in self.alike}

    def cover(self) -> Stretches:
        """Returns the covered time."""
        return self._joined(one for one in self.alike if one.is_covered)

    def charging(self, meter_id: int | None) -> Stretches:
        """Returns the covered time in which a vehicle takes energy at the meter."""
        here = (one for one in self.alike if one.meter_id == meter_id)
        return self._joined(one for one in here if one.is_covered and one.takes_energy)

    def known_at(self, meter_id: int | None) -> Stretches:
        """Returns the covered time that a vehicle spent at the meter."""
        return self._joined(one for one in self.alike if one.is_covered and one.meter_id == meter_id)

    def taking(self, meter_id: int | None) -> Stretches:
        """Returns the time, covered or not, in which a vehicle takes energy at the meter."""
        return self._joined(one for one in self.alike if one.meter_id == meter_id and one.takes_energy)

    def at_meter(self, meter_id: int | None) -> Stretches:
        """Returns the time, covered or not, that a vehicle spent at the meter."""
        return self._joined(one for one in self.alike if one.meter_id == meter_id)

    def catch_ups(self, meter_id: int) -> Stretches:
        """Returns the time in which the energy of spans that are not covered may have flowed at the meter.

        It is all of the span, but where a charge begins at its end: where it brings no more energy than the vehicle
        takes at its highest power in the time of one reading, and a half more. Then it is the end, long enough for it.
        A vehicle that names no meter after a silence, but was at this one near it, may have charged here in it.
        """
        found = []
        uncovered = (one for one in self.alike if one.meter_id in (meter_id, None) and not one.is_covered)
        for span in chain.from_iterable(range(one.first, one.after) for one in uncovered):
            start, end = self.points[span], self.points[span + 1]
            if self.energy(span) <= _NOTHING_MILLIWH or not self._is_near(meter_id, span, start, end):
                continue
            if self.kind(span - 1)[2:] != (True, True, meter_id) and self.kind(span + 1).is_covered:
                energy, duration = self.highest_power(start - NEAR_US, start, end, end + NEAR_US)
                needed = 3 * self.energy(span) * duration // (2 * energy) if energy else LONGEST_SILENCE_US
                if needed <= 2 * (self.points[span + 2] - end):
                    start = max(start, end - needed)
            found.append((start, end))
        return found

    def _is_near(self, meter_id: int, span: int, start: int, end: int) -> bool:
        """Returns True when the vehicle is at the meter in a span, or within an hour of it."""
        near = (span, *self.spans(start - NEAR_US, start), *self.spans(end, end + NEAR_US))
        return any(self.kind(one).meter_id == meter_id for one in near)

    def highest_power(self, before: int, start: int, end: int, after: int) -> tuple[int, int]:
        """Returns energy and duration of the span with the highest power in [before, start] or [end, after]."""
        best = 0, 1
        for span in (*self.spans(before, start), *self.spans(end, after)):
            a, b = self.points[span], self.points[span + 1]
            if before <= a < b <= after and b - a <= LONGEST_GAP_US:
                best = max(best, (self.energy(span), b - a), key=lambda one: Fraction(*one))
        return best

    def _joined(self, chosen: Iterable[Alike]) -> Stretches:
        return union((self.points[one.first], self.points[one.after]) for one in chosen)
