"""Doubtful time: another vehicle fell silent while it charged, and may take energy still. Pure."""

from collections.abc import Iterator

from app.analytics.efficiency.counter import Counter
from app.analytics.efficiency.rhythm import LONGEST_SILENCE_US
from app.analytics.efficiency.stretches import Stretch

LONGEST_DOUBT_US = 2 * LONGEST_SILENCE_US


def doubtful_after(other: Counter, meter: Counter, meter_id: int) -> Iterator[Stretch]:
    """Yields the times after another vehicle fell silent while it charged at the meter, until the meter idles."""
    points, last = other.points, len(other.covered) - 1
    for span, meter_of_span in enumerate(other.meters):
        is_silenced = span == last or not other.covered[span + 1]
        if meter_of_span == meter_id and is_silenced and other.covered[span] and other.takes_energy(span):
            since = points[span + 1]
            until = min([since + LONGEST_DOUBT_US, *points[span + 2 : span + 3]])
            yield since, next(_idle_from(meter, since, until), until)


def _idle_from(meter: Counter, since: int, until: int) -> Iterator[int]:
    for span in meter.spans(since, until):
        if meter.points[span] >= since and not (meter.covered[span] and meter.takes_energy(span)):
            yield meter.points[span]
