"""The edges of paired stretches, where a straight line through a span says too little. Pure."""

from bisect import bisect_left

from app.analytics.efficiency.counter import Counter
from app.analytics.efficiency.rhythm import MEAN_POWER_US
from app.analytics.efficiency.stretches import Stretches, touches

# A meter idles in a span with a twentieth of the mean power that it has in the nearest part of a stretch.
_IDLE_ONE_IN = 20


def find_edges(
    vehicle: Counter, meter: Counter, here: Stretches, plain: Stretches, cuts: Stretches, taken: Stretches
) -> tuple[Stretches, list[tuple[int, int]]]:
    """Returns the time beyond the edges in which the meter's energy is the vehicle's, and the unsure energy by instant.

    Where the vehicle begins or ends to take energy, and the meter idles beyond, it did so within the meter's span.
    """
    begins, ends = {start for start, _ in here}, {end for _, end in here}
    taken_from, taken_to = {start for start, _ in taken}, {end for _, end in taken}
    edges: Stretches = []
    unsure: list[tuple[int, int]] = []

    def cut(instant: int) -> None:
        unsure.append((instant, (meter.cut_by(instant) + vehicle.cut_by(instant)) // 2))

    for start, end in plain:
        span = bisect_left(vehicle.points, start)
        is_assumed = span in vehicle.assumed and vehicle.points[span] == start
        if is_assumed and not meter.has_point(start):
            unsure.append((start, vehicle.energy(span) // 4))
        if start not in taken_to:
            begun = start in begins and (is_assumed or vehicle.kind(span - 1).is_covered)
            before = _own_before(meter, start, end) if begun else None
            if before is not None and not touches(cuts, before, start):
                edges.append((before, start))
            else:
                cut(start)
        if end not in taken_from:
            after = _own_after(meter, start, end) if end in ends else None
            if after is not None and not touches(cuts, end, after):
                edges.append((end, after))
                if not vehicle.kind(bisect_left(vehicle.points, end)).is_covered:
                    unsure.append((end, meter.flowed(end, after) // 2))
            else:
                cut(end)
    return edges, unsure


def _own_before(meter: Counter, start: int, end: int) -> int | None:
    """Returns the start of the meter's span that the stretch's start cuts, if the meter idles in the span before it."""
    span = bisect_left(meter.points, start) - 1
    until = min(end, start + MEAN_POWER_US)
    if meter.points[span + 1] > start and span > 0 and _idles(meter, span - 1, start, until):
        return meter.points[span]
    return None


def _own_after(meter: Counter, start: int, end: int) -> int | None:
    """Returns the end of the meter's span that the stretch's end cuts, if the meter idles in the span after it."""
    span = bisect_left(meter.points, end) - 1
    if meter.points[span + 1] > end and span + 1 < len(meter.points) - 1:
        since = max(start, end - MEAN_POWER_US)
        return meter.points[span + 1] if _idles(meter, span + 1, since, end) else None
    return None


def _idles(meter: Counter, span: int, start: int, end: int) -> bool:
    duration = meter.points[span + 1] - meter.points[span]
    return (
        meter.kind(span).is_covered
        and _IDLE_ONE_IN * meter.energy(span) * (end - start) < meter.flowed(start, end) * duration
    )
