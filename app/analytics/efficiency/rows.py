"""The rows of a device's minutes, and the counter that they make. Pure; units as in counter.py."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby, pairwise
from operator import itemgetter
from typing import NamedTuple, TypeAlias

import numpy as np

from app.analytics.efficiency.counter import Alike, Counter
from app.analytics.efficiency.rhythm import (
    HOUR_US,
    LONGEST_SILENCE_US,
    NEAR_MINUTES,
    Minute,
    longest_gap_us,
    opening,
)

NOT_KNOWN = -1
"""An energy that nobody knows, in an array of energies."""

Kind: TypeAlias = tuple[bool, bool, int | None]
"""What spans that are alike have in common, in the order of Alike: covered, takes energy, meter."""
Rows: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.int64]]
"""The minutes in which a device has readings, in order of time: columns in the order of Minute.

No meter is 0. A minute's energy is NOT_KNOWN when that of any of its readings is. A vehicle whose readings name several
meters has a minute for each.
"""
NO_ROWS: Rows = np.empty((5, 0), np.int64)
Booleans: TypeAlias = np.ndarray[tuple[int], np.dtype[np.bool_]]

# A milliwatt for an hour is a milliwatt-hour; 0.05 kW are 50,000 milliwatts.
_CHARGING_MILLIWATT = 50_000
_US_PER_CHARGING_MILLIWH = HOUR_US // _CHARGING_MILLIWATT
_NOTHING: Kind = False, False, None


class Mapping(NamedTuple):
    """A vehicle charges at this meter from `from_us` until before `to_us`, in microseconds since 1970-01-01 UTC.

    An open end is any integer far outside the window. A vehicle is mapped to one meter at a time.
    """

    vehicle_id: int
    meter_id: int
    from_us: int
    to_us: int


def in_order(rows: Rows) -> Rows:
    """Returns the rows of one device in order of time."""
    return rows[:, np.lexsort((rows[1], rows[0]))]


def minutes_of(rows: Rows) -> list[Minute]:
    """Returns the rows as minutes."""
    return [
        (last, first, None if milliwh == NOT_KNOWN else milliwh, readings, meter or None)
        for last, first, milliwh, readings, meter in rows.T.tolist()
    ]


def counter_of(rows: Rows, mappings: Iterable[Mapping] = (), *, gap_us: int, limit_milliwatt: int) -> Counter:
    """Returns the counter of one device from its rows and mappings; for how far they must reach see REACH_US.

    Spans of up to `gap_us` are covered, and longer ones up to one and a half usual intervals of the device. A span
    with a power above the limit is not, and its energy counts as not known.
    """
    lasts, _, energies, counts, meters = rows.tolist()
    history = [*mappings]
    unusual = _unusual(rows, gap_us, limit_milliwatt)
    takes, is_new_kind = _kinds(rows)
    points, sums, readings = list[int](), list[int](), list[int]()
    kinds: list[tuple[int, Kind]] = []
    silent, assumed = set[int](), set[int]()
    total = 0
    for number, after in pairwise([*unusual, len(lasts)]):
        before = max(0, number - NEAR_MINUTES)
        minutes = minutes_of(rows[:, before : number + NEAR_MINUTES])
        last, first, energy, *_ = minutes[number - before]
        is_opening = number == 0 or first - lasts[number - 1] > LONGEST_SILENCE_US
        if is_opening:
            start, is_covered, is_assumed = opening(minutes, number - before)
            if number:
                kinds.append((len(readings), _NOTHING))
                readings.append(0)
            points.append(start)
            sums.append(total)
        else:
            start, is_assumed = lasts[number - 1], False
            is_covered = first - start <= gap_us or first - start <= longest_gap_us(minutes, number - before)
        is_lone = is_assumed and not is_covered
        if energy is None or (energy * HOUR_US > limit_milliwatt * (last - start) and not is_lone):
            energy, is_covered = 0, False
        elif is_assumed:
            assumed.add(len(readings))
        elif not (is_covered or is_opening):
            silent.add(len(readings))
        takes_energy = energy * _US_PER_CHARGING_MILLIWH >= last - start
        kinds.append((len(readings), (is_covered, takes_energy, meters[number] or _mapped(history, start))))
        for position in range(number + 1, after) if history else _firsts(is_new_kind, number + 1, after):
            at = meters[position] or _mapped(history, lasts[position - 1])
            kinds.append((len(readings) + position - number, (True, bool(takes[position]), at)))
        points += lasts[number:after]
        sums += accumulate(energies[number + 1 : after], initial=total + energy)
        total = sums[-1]
        readings += counts[number:after]
    return Counter(points, sums, readings, [*_alike(kinds, len(readings))], silent, assumed)


def _unusual(rows: Rows, gap_us: int, limit_milliwatt: int) -> list[int]:
    """Returns the numbers of the minutes whose spans must be judged one by one, and maybe of some more.

    Nearly all spans are short, with a known energy within the limit, and are taken many at a time.
    """
    last_us, first_us, milliwh, *_ = rows
    is_short = first_us[1:] - last_us[:-1] <= gap_us
    is_within = milliwh[1:] <= 0.999 * limit_milliwatt / HOUR_US * np.diff(last_us)
    unusual = np.flatnonzero(~(is_short & is_within & (milliwh[1:] != NOT_KNOWN))) + 1
    return [0, *unusual.tolist()] if len(last_us) else []


def _kinds(rows: Rows) -> tuple[Booleans, Booleans]:
    """Returns which minutes take energy, and which differ in that, or in the meter, from the one before."""
    last_us, _, milliwh, _, meter_id = rows
    takes = milliwh * _US_PER_CHARGING_MILLIWH >= np.diff(last_us, prepend=last_us[:1])
    differs = (takes[1:] != takes[:-1]) | (meter_id[1:] != meter_id[:-1])
    return takes, np.concatenate([np.ones(1, bool), differs])


def _firsts(is_new_kind: Booleans, start: int, after: int) -> list[int]:
    """Returns the first number of each kind in [start, after)."""
    found: list[int] = (np.flatnonzero(is_new_kind[start + 1 : after]) + start + 1).tolist()
    return [start, *found] if start < after else []


def _alike(kinds: list[tuple[int, Kind]], after: int) -> Iterator[Alike]:
    """Yields the spans that are alike; `kinds` are those of spans, and of the ones that follow them."""
    begun = [next(same) for _, same in groupby(kinds, key=itemgetter(1))]
    for (first, kind), (end, _) in pairwise([*begun, (after, _NOTHING)]):
        yield Alike(first, end, *kind)


def _mapped(history: Sequence[Mapping], instant: int) -> int | None:
    return next((mapping.meter_id for mapping in history if mapping.from_us <= instant < mapping.to_us), None)
