"""A vehicle's sessions, from its pairs. Pure; units as in counter.py.

A session is a stretch in which a vehicle takes energy at one meter, with short pauses. It is a function of the stored
readings alone: also that it is over follows from an instant that it has, not from the time of asking.

Where a session begins, goes on and ends depends on what is near. So it can be told in parts, by the hour, and however
long it is, its parts add up to it.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise, takewhile
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from app.analytics.efficiency.counter import Alike, Counter, Numbers
from app.analytics.efficiency.pairs import Evidence, Pair, Pairs, total
from app.analytics.efficiency.rhythm import HOUR_US, LONGEST_GAP_US, MINUTE_US, NEAR_US
from app.analytics.efficiency.stretches import Stretch
from app.settings import Settings

# A reading of less energy than 10 Wh that ends a silence does not say that the vehicle charged in it.
_LEAST_CATCH_UP_MILLIWH = 10_000
_RHYTHM_SPANS = 5


class Rule(NamedTuple):
    """A vehicle charges with at least this power; longer pauses divide sessions; up to `gap_us`, a span is covered."""

    least_milliwatt: int
    pause_us: int
    gap_us: int


class Part(NamedTuple):
    """A session as far as it lies in some time: it begins there if `is_first`, else it goes on from the part before.

    The evidence of the first part has the edge before the session, that of the last one the edge after it, and its
    `dc_milliwh` is all DC energy. The session is over when nothing was taken up to the last part's `over_us`; before,
    the vehicle may go on.
    """

    start_us: int
    end_us: int
    over_us: int
    is_first: bool
    meter_id: int | None
    evidence: Evidence
    peak_milliwatt: int | None
    silences: int


class _Taken(NamedTuple):
    """Time in which a vehicle charges, within its `points`. A silence has one span and no power by span."""

    start_us: int
    end_us: int
    meter_id: int | None
    points: Numbers
    milliwatts: Numbers


class _Session(NamedTuple):
    """A session by what it took, with the time whose DC energy it has, and the time whose paired energy it has."""

    taken: list[_Taken]
    flowed: Stretch
    drawn: Stretch


def rule_of(settings: Settings) -> Rule:
    """Returns the rule that the settings describe."""
    return Rule(
        round(1_000_000 * settings.session_min_kw),
        settings.session_pause_minutes * MINUTE_US,
        settings.pairing_gap_minutes * MINUTE_US,
    )


def parts_of(pairs: Pairs, rule: Rule, bounds: Sequence[int]) -> list[Part]:
    """Returns the parts of a vehicle's sessions between each two consecutive bounds, in order."""
    parts: list[Part] = []
    last_to = -(10**18)
    for taken in _groups(pairs, rule):
        session = _session(pairs, taken, last_to)
        last_to = max(session.flowed[1], session.drawn[1])
        parts += _cut(pairs, session, bounds, rule)
    return parts


def _groups(pairs: Pairs, rule: Rule) -> Iterator[list[_Taken]]:
    """Yields what is taken in each session.

    What is taken at no meter belongs to the session before it: a reading after the vehicle was unplugged names none any
    more. For no longer than a pause, it also belongs to the session after it, unless that is at another meter.
    """
    taken = chain.from_iterable(_taken(meter_id, pair.vehicle, rule) for meter_id, pair in pairs.items())
    group: list[_Taken] = []
    for one in sorted(taken, key=attrgetter("start_us")):
        if group and not _goes_on(group, one, rule):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def _goes_on(group: list[_Taken], one: _Taken, rule: Rule) -> bool:
    if one.start_us - group[-1].end_us > rule.pause_us:
        return False
    if one.meter_id is None or group[-1].meter_id is not None:
        return one.meter_id in (None, group[-1].meter_id)
    at_none = [*takewhile(lambda each: each.meter_id is None, reversed(group))]
    if at_none[-1].start_us < one.start_us - rule.pause_us:
        return False  # Only what is near decides.
    return all(each.meter_id == one.meter_id for each in group[: -len(at_none)][-1:])


def _taken(meter_id: int | None, vehicle: Counter, rule: Rule) -> Iterator[_Taken]:
    """Yields the time at the meter in which the vehicle charges."""
    for alike in vehicle.alike:
        if alike.meter_id != meter_id:
            continue
        if alike.is_covered:
            if alike.takes_energy:
                yield from _charges(vehicle, alike, rule)
        elif alike.takes_energy or meter_id is not None:
            # The end of a silence at no meter says too little with so little energy.
            for span in range(alike.first, alike.after):
                if placed := _placed(vehicle, span, rule):
                    points = np.array(vehicle.points[span : span + 2])
                    yield _Taken(*placed, meter_id, points, np.empty(0, np.int64))


def _charges(vehicle: Counter, alike: Alike, rule: Rule) -> Iterator[_Taken]:
    """Yields the consecutive spans in which the vehicle charges, of covered ones that are alike."""
    points = np.array(vehicle.points[alike.first : alike.after + 1])
    energies, durations = np.diff(vehicle.sums[alike.first : alike.after + 1]), np.diff(points)
    charges = energies >= -(-rule.least_milliwatt * durations // HOUR_US)
    milliwatts = np.rint(energies / durations * HOUR_US).astype(np.int64)
    turns = (np.flatnonzero(charges[1:] != charges[:-1]) + 1).tolist()
    turns = [*([0] if charges[0] else []), *turns, *([len(charges)] if charges[-1] else [])]
    for first, after in zip(turns[::2], turns[1::2], strict=True):
        start, end = int(points[first]), int(points[after])
        yield _Taken(start, end, alike.meter_id, points[first : after + 1], milliwatts[first:after])


def _placed(vehicle: Counter, span: int, rule: Rule) -> Stretch | None:
    """Returns when in a span that is not covered the vehicle charged, at the power that it has beside it or near it.

    It is the beginning of a charge that follows, else it goes on with the one before. Where the energy needs nearly all
    of the span, as when one charge goes on, or where no power is known, it is all of it. None if it did not charge.
    """
    start, end, milliwh = vehicle.points[span], vehicle.points[span + 1], vehicle.energy(span)
    if milliwh < _LEAST_CATCH_UP_MILLIWH:
        return None
    before, after = (_charged(vehicle, beside, rule) for beside in (span - 1, span + 1))
    energy, duration = after or before or vehicle.highest_power(start - NEAR_US, start, end, end + NEAR_US)
    if energy * HOUR_US >= rule.least_milliwatt * duration:
        needed = milliwh * duration // energy
        if needed + rule.pause_us < end - start:
            start, end = (start, start + needed) if before and not after else (end - needed, end)
    return (start, end) if milliwh * HOUR_US >= rule.least_milliwatt * (end - start) else None


def _charged(vehicle: Counter, span: int, rule: Rule) -> tuple[int, int] | None:
    """Returns energy and duration of a span in which the vehicle charges."""
    if not 0 <= span < len(vehicle.points) - 1:
        return None
    energy, duration = vehicle.energy(span), vehicle.points[span + 1] - vehicle.points[span]
    is_charging = duration <= LONGEST_GAP_US and energy * HOUR_US >= rule.least_milliwatt * duration
    return (energy, duration) if is_charging else None


def _session(pairs: Pairs, taken: list[_Taken], last_to: int) -> _Session:
    """Returns the session that took this; what comes before `last_to` is of the session before."""
    pair = pairs[_meter_of(taken)]
    from_us, to_us = _with_begun_spans(pair.vehicle, int(taken[0].points[0]), int(taken[-1].points[-1]))
    from_us = max(from_us, last_to)
    drawn_from, drawn_to = _with_edges(pair, from_us, to_us)
    # What is unsure about the end stands at the end itself.
    return _Session(taken, (from_us, to_us), (max(drawn_from, last_to), drawn_to + 1))


def _cut(pairs: Pairs, session: _Session, bounds: Sequence[int], rule: Rule) -> Iterator[Part]:
    """Yields the parts of a session."""
    begun, ended = session.taken[0].start_us, session.taken[-1].end_us
    inner = [bound for bound in bounds if begun < bound < ended]
    within, flowed, drawn = (
        [*([first] if bounds[0] <= begun else []), *inner, *([last] if ended <= bounds[-1] else [])]
        for first, last in ((begun, ended), session.flowed, session.drawn)
    )
    windows = [pair.windows(drawn) for pair in pairs.values()]
    for (start, end), (a, b), *evidence in zip(pairwise(within), pairwise(flowed), *windows, strict=True):
        taken = [one for one in session.taken if one.start_us < end and start < one.end_us]
        meter_id = _meter_of(taken or session.taken)
        vehicle = pairs[meter_id].vehicle
        yield Part(
            start,
            end,
            end if end < ended else end + max(rule.pause_us, _longest_gap_us(vehicle, end, rule)),
            start == begun,
            meter_id,
            total(evidence)._replace(dc_milliwh=vehicle.flowed(a, b)),
            max((_peak(one, start, end) for one in taken if one.milliwatts.size), default=None),
            sum(not one.milliwatts.size and one.end_us <= end for one in taken),
        )


def _meter_of(taken: Iterable[_Taken]) -> int | None:
    return next((one.meter_id for one in taken if one.meter_id), None)


def _peak(taken: _Taken, start: int, end: int) -> int:
    first, after = np.searchsorted(taken.points, start, "right") - 1, np.searchsorted(taken.points, end)
    return int(taken.milliwatts[max(0, first) : after].max())


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
