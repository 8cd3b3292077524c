"""Readings whose energy takes more power than their device can have, and the alerts about them. Pure.

Hours count since 1970, instants are microseconds since then, energy is in thousandths of a Wh, power in milliwatt.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import median_low
from typing import Any, NamedTuple

from app.analytics.alerts.judge import TRAILING_HOURS, Alert
from app.analytics.efficiency.rhythm import HOUR_US, LONGEST_SILENCE_US, MINUTE_US, Minute
from app.csv_rows import stamp
from app.fleet.limits import MILLIWATT_PER_KW

REACH_HOURS = LONGEST_SILENCE_US // HOUR_US
"""What is said of an hour depends on the minutes of this many hours before it."""

# With fewer readings, a meter's total cannot be told from a charge that begins, nor a wrong unit from a faulty reading.
_ENOUGH_OF_REGISTER = 5
_ENOUGH_OF_WH = 3
# Charges differ by so much around a thousandfold.
_WH_FROM, _WH_TO = 1000 // 4, 1000 * 4
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Implausible(NamedTuple):
    """The implausible readings of a device in an hour, in the order of the columns of implausible_hour.

    `looks_like` is `register` (totals in place of differences), `wh` (Wh in place of kWh) or `step` (neither).
    """

    readings: int
    milliwh: int
    first_ts: datetime
    last_ts: datetime
    max_milliwatt: int
    looks_like: str


class Span(NamedTuple):
    """A minute with the time since the reading before it, which counts as a minute at least."""

    minute: Minute
    duration_us: int

    @property
    def milliwatt(self) -> int:
        """The power that the energy takes."""
        return (self.minute[2] or 0) * HOUR_US // self.duration_us

    def is_beyond(self, milliwatt: int) -> bool:
        """Returns True when the energy takes more power than this."""
        return (self.minute[2] or 0) * HOUR_US > milliwatt * self.duration_us


def spans_of(minutes: Sequence[Minute], hour: int) -> list[Span]:
    """Returns the spans that end within the hour or its REACH_HOURS, of a device's minutes in order.

    A reading that none precedes within four hours has none.
    """
    start = bisect_left(minutes, ((hour - REACH_HOURS) * HOUR_US,))
    near = minutes[start : bisect_left(minutes, ((hour + 1) * HOUR_US,))]
    return [
        Span(minute, max(minute[0] - before[0], MINUTE_US))
        for before, minute in pairwise(near)
        if minute[1] - before[0] <= LONGEST_SILENCE_US
    ]


def usual_milliwatt(spans: Iterable[Span], limit: int) -> list[int]:
    """Returns the powers of the spans that take some energy, but not more than the limit."""
    return [span.milliwatt for span in spans if span.milliwatt and not span.is_beyond(limit)]


def judge_hour(minutes: Sequence[Minute], hour: int, limit: int, other_milliwatt: Sequence[int]) -> Implausible | None:
    """Returns the hour's implausible readings, or None if there are none.

    `minutes` are those of the device, in order, for REACH_HOURS before the hour at least; `other_milliwatt` are the
    usual powers of the devices at the other end in the same time.
    """
    spans = spans_of(minutes, hour)
    beyond = [span for span in spans if span.is_beyond(limit)]
    found = [span.minute for span in beyond if span.minute[0] >= hour * HOUR_US]
    if not found:
        return None
    return Implausible(
        sum(readings for *_, readings, _ in found),
        sum(milliwh or 0 for _, _, milliwh, *_ in found),
        _instant(found[0][1]),
        _instant(found[-1][0]),
        limit,
        _looks_like(beyond, limit, usual_milliwatt(spans, limit), other_milliwatt),
    )


def _looks_like(beyond: Sequence[Span], limit: int, own: Sequence[int], other: Sequence[int]) -> str:
    if len(beyond) >= _ENOUGH_OF_REGISTER and _is_register([span.minute for span in beyond], limit):
        return "register"
    if len(beyond) >= _ENOUGH_OF_WH:
        power = median_low([span.milliwatt for span in beyond])
        if any(_WH_FROM * median_low(usual) <= power <= _WH_TO * median_low(usual) for usual in (own, other) if usual):
            return "wh"
        # Without a neighbour to compare with, most of the device's energy is wrong in the same way.
        if not other and len(beyond) > max(_ENOUGH_OF_WH, len(own)):
            return "wh"
    return "step"


def _is_register(minutes: Sequence[Minute], limit: int) -> bool:
    """Returns True when the values never fall, but grow by what the device can take in that time."""
    values = [(last, (milliwh or 0) // readings) for last, _, milliwh, readings, _ in minutes]
    return values[0][1] < values[-1][1] and all(
        0 <= (value - earlier) * HOUR_US <= limit * max(at - before, MINUTE_US)
        for (before, earlier), (at, value) in pairwise(values)
    )


def alerts_of(
    rows: Sequence[tuple[int, Implausible]], first: int, before: Alert | None, over: int, energy: str
) -> list[Alert]:
    """Returns, in order, a device's alerts that are open in or open after the hour `first`.

    `rows` are its hours with implausible readings from TRAILING_HOURS before `first` on; hours before `over` are over.
    `before` is the alert that was open before `first`. An alert opens at the end of such an hour, and closes once
    TRAILING_HOURS have gone by without one. `energy` names the energy in the evidence, which is that of the alert's
    first day.
    """
    runs: list[list[tuple[int, Implausible]]] = []
    for hour, row in rows:
        if not runs or hour - runs[-1][-1][0] > TRAILING_HOURS:
            runs.append([])
        runs[-1].append((hour, row))
    alerts: list[Alert] = []
    for run in runs:
        goes_on = None if alerts else before
        opened = goes_on.opened if goes_on else _end(run[0][0])
        opening = (opened - _EPOCH) // timedelta(hours=1) - 1
        closing = run[-1][0] + TRAILING_HOURS
        if goes_on and opening <= first - TRAILING_HOURS:
            evidence = goes_on.evidence
        else:
            evidence = _evidence([row for hour, row in run if hour < opening + TRAILING_HOURS], energy)
        alerts.append(Alert(opened, _end(closing) if closing < over else None, evidence))
    return alerts


def _evidence(rows: Sequence[Implausible], energy: str) -> Mapping[str, Any]:
    seen = {row.looks_like for row in rows}
    return {
        "readings": sum(row.readings for row in rows),
        energy: sum(row.milliwh for row in rows) / 1_000_000,
        "from": stamp(rows[0].first_ts),
        "to": stamp(rows[-1].last_ts),
        "limitKw": rows[-1].max_milliwatt / MILLIWATT_PER_KW,
        # Only a total grows like one; while it stands still, it looks like Wh.
        "looksLike": next(one for one in ("register", "wh", "step") if one in seen),
        "others": [],
    }


def _instant(us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=us)


def _end(hour: int) -> datetime:
    return _EPOCH + timedelta(hours=hour + 1)
