"""A vehicle's sessions, from its pairs. Pure; units as in counter.py.

A session is a stretch in which a vehicle takes energy at one meter, with short pauses. It is a function of the stored
readings alone: also that it is over follows from an instant that it has, not from the time of asking.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

from app.analytics.efficiency.counter import Counter
from app.analytics.efficiency.pairs import Evidence, Pair, Pairs, total
from app.analytics.efficiency.rhythm import HOUR_US, LONGEST_GAP_US, MINUTE_US, NEAR_US
from app.settings import Settings

# A reading of less energy than 10 Wh that ends a silence does not say that the vehicle charged in it.
_LEAST_CATCH_UP_MILLIWH = 10_000
_RHYTHM_SPANS = 5


class Rule(NamedTuple):
    """A vehicle charges with at least this power; longer pauses divide sessions; up to `gap_us`, a span is covered."""

    least_milliwatt: int
    pause_us: int
    gap_us: int


class Session(NamedTuple):
    """A session. It is over when nothing was taken up to `over_us`; before, the vehicle may go on.

    The evidence is that of the whole session; its `dc_milliwh` is all DC energy of the session.
    """

    start_us: int
    end_us: int
    over_us: int
    meter_id: int | None
    evidence: Evidence
    peak_milliwatt: int | None
    silences: int


class _Taken(NamedTuple):
    """Time in which a vehicle charges. The energy is that of the spans in [from_us, to_us), which may be longer."""

    start_us: int
    end_us: int
    from_us: int
    to_us: int
    meter_id: int | None
    milliwatt: int
    is_silent: bool


def rule_of(settings: Settings) -> Rule:
    """Returns the rule that the settings describe."""
    return Rule(
        round(1_000_000 * settings.session_min_kw),
        settings.session_pause_minutes * MINUTE_US,
        settings.pairing_gap_minutes * MINUTE_US,
    )


def sessions_of(pairs: Pairs, rule: Rule) -> list[Session]:
    """Returns the sessions of a vehicle, in order."""
    found: list[Session] = []
    last_to = -(10**18)
    for taken in _groups(pairs, rule):
        session, last_to = _session(pairs, taken, last_to, rule)
        found.append(session)
    return found


def _groups(pairs: Pairs, rule: Rule) -> Iterator[list[_Taken]]:
    """Yields the parts of each session.

    A part at no meter belongs to the session beside it: a reading after the vehicle was unplugged names none any more.
    """
    parts = chain.from_iterable(_taken(meter_id, pair.vehicle, rule) for meter_id, pair in pairs.items())
    group: list[_Taken] = []
    meter_id = None
    for one in sorted(parts, key=attrgetter("start_us")):
        is_near = bool(group) and one.start_us - group[-1].end_us <= rule.pause_us
        if group and not (is_near and (None in (meter_id, one.meter_id) or meter_id == one.meter_id)):
            yield group
            group, meter_id = [], None
        group.append(one)
        meter_id = meter_id or one.meter_id
    if group:
        yield group


def _taken(meter_id: int | None, vehicle: Counter, rule: Rule) -> Iterator[_Taken]:
    """Yields the time at the meter in which the vehicle charges."""
    points = vehicle.points
    for alike in vehicle.alike:
        # The end of a silence at no meter says too little with so little energy.
        may_charge = alike.takes_energy or (meter_id is not None and not alike.is_covered)
        if alike.meter_id != meter_id or not may_charge:
            continue
        for span in range(alike.first, alike.after):
            start, end, milliwh = points[span], points[span + 1], vehicle.energy(span)
            at = (start, end) if alike.is_covered else _placed(vehicle, span, rule)
            if at and milliwh * HOUR_US >= rule.least_milliwatt * (at[1] - at[0]):
                milliwatt = milliwh * HOUR_US // (end - start)
                yield _Taken(*at, start, end, meter_id, milliwatt, is_silent=not alike.is_covered)


def _placed(vehicle: Counter, span: int, rule: Rule) -> tuple[int, int] | None:
    """Returns when in a span that is not covered the vehicle charged, at the power that it has beside it or near it.

    It is the beginning of a charge that follows, else it goes on with the one before. Where the energy needs nearly all
    of the span, as when one charge goes on, or where no power is known, it is all of it.
    """
    start, end, milliwh = vehicle.points[span], vehicle.points[span + 1], vehicle.energy(span)
    if milliwh < _LEAST_CATCH_UP_MILLIWH:
        return None
    before, after = (_charged(vehicle, beside, rule) for beside in (span - 1, span + 1))
    energy, duration = after or before or vehicle.highest_power(start - NEAR_US, start, end, end + NEAR_US)
    if energy * HOUR_US < rule.least_milliwatt * duration:
        return start, end
    needed = milliwh * duration // energy
    if needed + rule.pause_us >= end - start:
        return start, end
    return (start, start + needed) if before and not after else (end - needed, end)


def _charged(vehicle: Counter, span: int, rule: Rule) -> tuple[int, int] | None:
    """Returns energy and duration of a span in which the vehicle charges."""
    if not 0 <= span < len(vehicle.points) - 1:
        return None
    energy, duration = vehicle.energy(span), vehicle.points[span + 1] - vehicle.points[span]
    is_charging = duration <= LONGEST_GAP_US and energy * HOUR_US >= rule.least_milliwatt * duration
    return (energy, duration) if is_charging else None


def _session(pairs: Pairs, taken: list[_Taken], last_to: int, rule: Rule) -> tuple[Session, int]:
    """Returns the session of these parts, and the end of the time whose energy it has, which begins at `last_to`."""
    meter_id = next((one.meter_id for one in taken if one.meter_id), None)
    pair = pairs[meter_id]
    start, end = taken[0].start_us, taken[-1].end_us
    from_us, to_us = _with_begun_spans(pair.vehicle, taken[0].from_us, taken[-1].to_us)
    from_us = max(from_us, last_to)
    dc_milliwh = pair.vehicle.flowed(from_us, to_us)
    drawn_from, drawn_to = _with_edges(pair, from_us, to_us)
    drawn_from = max(drawn_from, last_to)
    # What is unsure about the end stands at the end itself.
    found = (pairs[at].between(drawn_from, drawn_to + 1) for at in {meter_id, None} & pairs.keys())
    session = Session(
        start,
        end,
        end + max(rule.pause_us, _longest_gap_us(pair.vehicle, end, rule)),
        meter_id,
        total(found)._replace(dc_milliwh=dc_milliwh),
        max((one.milliwatt for one in taken if not one.is_silent), default=None),
        sum(one.is_silent for one in taken),
    )
    return session, max(to_us, drawn_to)


def _with_begun_spans(vehicle: Counter, start: int, end: int) -> tuple[int, int]:
    """Returns the time with the covered spans on either side, if these bring energy: a charge is a part of such."""
    before, after = bisect_left(vehicle.points, start) - 1, bisect_left(vehicle.points, end)
    if vehicle.kind(before).is_covered and vehicle.energy(before):
        start = vehicle.points[before]
    if vehicle.kind(after).is_covered and vehicle.energy(after):
        end = vehicle.points[after + 1]
    return start, end


def _with_edges(pair: Pair, start: int, end: int) -> tuple[int, int]:
    """Returns the time with the edges on either side, whose AC energy is the vehicle's."""
    touching = [(a, b) for a, b in pair.edges if a <= end and start <= b]
    return min([start, *(a for a, _ in touching)]), max([end, *(b for _, b in touching)])


def _longest_gap_us(vehicle: Counter, instant: int, rule: Rule) -> int:
    """Returns how long the vehicle may go without a reading after an instant, by the spans before it."""
    last = bisect_right(vehicle.points, instant) - 1
    spans = [span for span in range(max(0, last - _RHYTHM_SPANS), last) if vehicle.kind(span).is_covered]
    intervals = sorted(
        (vehicle.points[span + 1] - vehicle.points[span]) // max(1, vehicle.readings[span]) for span in spans
    )
    usual = intervals[len(intervals) // 2] if intervals else 0
    return max(rule.gap_us, min(3 * usual // 2, LONGEST_GAP_US))
