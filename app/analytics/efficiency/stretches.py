"""Stretches of time: lists of (from, to) in microseconds, in order and without overlap. Pure."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

Stretch: TypeAlias = tuple[int, int]
Stretches: TypeAlias = list[Stretch]


def union(stretches: Iterable[Stretch]) -> Stretches:
    """Returns the time that any of the stretches holds; those that touch become one."""
    joined: Stretches = []
    for start, end in sorted(stretches):
        if joined and start <= joined[-1][1]:
            if end > joined[-1][1]:
                joined[-1] = joined[-1][0], end
        elif end > start:
            joined.append((start, end))
    return joined


def common(left: Sequence[Stretch], right: Sequence[Stretch]) -> Stretches:
    """Returns the time that both hold."""
    found: Stretches = []
    at = 0
    for start, end in left:
        while at < len(right) and right[at][1] <= start:
            at += 1
        position = at
        while position < len(right) and right[position][0] < end:
            found.append((max(start, right[position][0]), min(end, right[position][1])))
            position += 1
    return found


def without(stretches: Sequence[Stretch], cuts: Sequence[Stretch]) -> Stretches:
    """Returns the time of the stretches that no cut holds."""
    if not cuts:
        return [*stretches]
    found: Stretches = []
    at = 0
    for start, end in stretches:
        while at < len(cuts) and cuts[at][1] <= start:
            at += 1
        position = at
        while position < len(cuts) and cuts[position][0] < end:
            if cuts[position][0] > start:
                found.append((start, cuts[position][0]))
            start = cuts[position][1]
            position += 1
        if start < end:
            found.append((start, end))
    return found


def touches(stretches: Sequence[Stretch], start: int, end: int) -> bool:
    """Returns True when one of the stretches has time in (start, end)."""
    return any(a < end and b > start for a, b in stretches)
