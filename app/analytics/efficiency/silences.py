"""The silences in which nothing was lost: their energy is taken whole. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import pairwise

from app.analytics.efficiency.counter import Counter
from app.analytics.efficiency.rhythm import LONGEST_SILENCE_US, NEAR_US
from app.analytics.efficiency.stretches import Stretch, Stretches, common

# A silence fits when its ratio is within so many percent of the one around it, and there is energy to tell.
_FITS_PERCENT = 12
_ENOUGH_TO_FIT_MILLIWH = 10_000


def silences(vehicle: Counter, meter: Counter, meter_id: int) -> Iterator[Stretch]:
    """Yields the times in which one of them is silent, overlapping ones as one, when both counters know both ends."""
    found = [(vehicle.points, span) for span in vehicle.silent if vehicle.kind(span).meter_id == meter_id]
    found += [(meter.points, span) for span in meter.silent]
    silent = sorted((points[span], points[span + 1]) for points, span in found)
    joined: Stretches = []
    for start, end in silent:
        if joined and start < joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    for start, end in joined:
        if end - start <= LONGEST_SILENCE_US and _knows(meter, start, end) and _knows(vehicle, start, end):
            spans = vehicle.spans(start, end)
            if all(vehicle.kind(span).meter_id == meter_id or not vehicle.energy(span) for span in spans):
                yield start, end


def _knows(counter: Counter, start: int, end: int) -> bool:
    """Returns True when the counter knows the energy between two instants, and no silence reaches beyond them."""
    points = counter.points
    return (
        bool(points)
        and points[0] <= start
        and end <= points[-1]
        and all(
            counter.kind(span).is_covered
            or (span in counter.silent and start <= points[span] and points[span + 1] <= end)
            for span in counter.spans(start, end)
        )
    )


def fits(vehicle: Counter, meter: Counter, plain: Stretches, start: int, end: int) -> bool:
    """Returns True when nothing was lost in a silence: its ratio fits that of the paired stretches around it."""
    ac, dc = meter.flowed(start, end), vehicle.flowed(start, end)
    near = common(plain, [(start - NEAR_US, end + NEAR_US)])
    near_ac, near_dc = meter.flowed_in(near), vehicle.flowed_in(near)
    if ac <= _ENOUGH_TO_FIT_MILLIWH or not near_ac or not near_dc:
        return False
    return 100 * abs(dc * near_ac - near_dc * ac) <= _FITS_PERCENT * near_dc * ac


def spread(counter: Counter, other: Counter, taken: Stretches) -> Counter:
    """Returns the counter with the energy of its silences in taken ones flowing as the other counter's does.

    So a window that cuts a silence has the right part of both.
    """
    silent = {span for start, end in taken for span in counter.spans(start, end)} & counter.silent
    if not silent:
        return counter
    points, sums, readings, moved = list[int](), list[int](), list[int](), [0]
    for span, (start, end) in enumerate(pairwise(counter.points)):
        inner = other.points[bisect_right(other.points, start) : bisect_left(other.points, end)]
        whole = other.flowed(start, end) if span in silent else 0
        points.append(start)
        sums.append(counter.sums[span])
        if whole:
            points += inner
            sums += [counter.sums[span] + counter.energy(span) * other.flowed(start, at) // whole for at in inner]
        moved.append(len(points))
        readings += [0] * (moved[-1] - moved[-2] - 1) + [counter.readings[span]]
    return Counter(
        [*points, *counter.points[-1:]],
        [*sums, *counter.sums[-1:]],
        readings,
        [one._replace(first=moved[one.first], after=moved[one.after]) for one in counter.alike],
        {piece for span in counter.silent for piece in range(moved[span], moved[span + 1])},
        {moved[span] for span in counter.assumed},
    )
