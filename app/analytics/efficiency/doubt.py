"""Doubtful time: another vehicle was not seen before or after it charged, and may take energy. Pure."""

from collections.abc import Iterator

from app.analytics.efficiency.counter import Counter
from app.analytics.efficiency.rhythm import LONGEST_SILENCE_US
from app.analytics.efficiency.stretches import Stretch, Stretches

LONGEST_DOUBT_US = 2 * LONGEST_SILENCE_US


def doubtful_beside(other: Counter, meter: Counter, meter_id: int) -> Iterator[Stretch]:
    """Yields the doubtful times beside those in which another vehicle is seen to charge at the meter.

    After it fell silent, they last until it is seen again or the meter idles; before it is seen, likewise.
    """
    points, last = other.points, len(other.covered) - 1
    for span in range(last + 1):
        if not other.is_charging(span, meter_id):
            continue
        if span == last or not other.covered[span + 1]:
            since = points[span + 1]
            until = min([since + LONGEST_DOUBT_US, *points[span + 2 : span + 3]])
            yield since, min(_idle(meter, since, until), default=(until, until))[0]
        if span == 0 or not other.covered[span - 1]:
            until = points[span]
            since = max([until - LONGEST_DOUBT_US, *points[max(0, span - 1) : span]])
            yield max(_idle(meter, since, until), default=(since, since))[1], until


def _idle(meter: Counter, since: int, until: int) -> Stretches:
    """Returns the meter's spans between two instants in which it idles or knows nothing."""
    points = meter.points
    return [
        (points[span], points[span + 1])
        for span in meter.spans(since, until)
        if since <= points[span] and points[span + 1] <= until
        if not (meter.covered[span] and meter.takes_energy(span))
    ]
