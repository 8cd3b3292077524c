"""Doubtful time: another vehicle was not seen, and may take energy. Pure."""

from bisect import bisect_left
from collections.abc import Iterator

from app.analytics.efficiency.counter import Counter
from app.analytics.efficiency.rhythm import LONGEST_SILENCE_US
from app.analytics.efficiency.stretches import Stretch, Stretches

LONGEST_DOUBT_US = 2 * LONGEST_SILENCE_US


def doubtful_beside(other: Counter, meter: Counter, meter_id: int) -> Iterator[Stretch]:
    """Yields the doubtful times beside those in which another vehicle takes energy at the meter, or may have.

    After it was seen to charge and fell silent, they last until it is seen again or the meter idles; before it is seen,
    likewise. Where it makes up for a silence longer than is known, they reach back to its last reading.
    """
    points = other.points
    for first, end in other.charging(meter_id):
        before, after = bisect_left(points, first) - 1, bisect_left(points, end)
        if not other.kind(after).is_covered:
            until = min([end + LONGEST_DOUBT_US, *points[after + 1 : after + 2]])
            yield end, min(_idle(meter, end, until), default=(until, until))[0]
        if not other.kind(before).is_covered:
            since = max([first - LONGEST_DOUBT_US, *points[max(before, 0) : before + 1]])
            yield max(_idle(meter, since, first), default=(since, since))[1], first
    for start, end in other.catch_ups(meter_id):
        if end - start == LONGEST_SILENCE_US:
            before = bisect_left(points, start) - 1
            yield max([end - LONGEST_DOUBT_US, *points[max(before, 0) : before + 1]]), start


def _idle(meter: Counter, since: int, until: int) -> Stretches:
    """Returns the meter's spans between two instants in which it idles or knows nothing."""
    points = meter.points
    return [
        (points[span], points[span + 1])
        for span in meter.spans(since, until)
        if since <= points[span] and points[span + 1] <= until
        if meter.kind(span)[2:4] != (True, True)
    ]
