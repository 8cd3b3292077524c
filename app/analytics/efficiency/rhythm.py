"""A device's rhythm: how often it reports, and so, how long it may go without a reading. Pure."""

from collections.abc import Sequence
from typing import TypeAlias

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US

LONGEST_GAP_US = 90 * MINUTE_US
LONGEST_SILENCE_US = 4 * HOUR_US
"""After a longer silence nothing is known of the time before; the reading that ends it is like a device's first."""
NEAR_US = HOUR_US
"""A device's rhythm and highest power, and the ratio that a silence must fit, come from so much time on either side."""
MEAN_POWER_US = 30 * MINUTE_US
"""An edge compares the meter's power beyond it with the mean power in so much time of the stretch."""

# After more than one and a half usual intervals a reading is missing, and its energy is carried on or lost: with three
# intervals, a meter that lost two readings of ten minutes made a ratio of 1.16 from 0.89.
_GAP_HALF_INTERVALS = 3
_LONGEST_INTERVAL_US = 30 * MINUTE_US
_NEIGHBOURS = 5
_UNKNOWN_INTERVAL_US = MINUTE_US
NEAR_MINUTES = _NEIGHBOURS + 2
"""A minute's rhythm comes from fewer minutes on either side than this."""

Minute: TypeAlias = tuple[int, int, int | None, int, int | None]
"""A minute: last reading, first reading, energy, number of readings, meter."""


def longest_gap_us(minutes: Sequence[Minute], number: int) -> int:
    """Returns the longest time without a reading that may end with this minute and still be covered."""
    usual = _usual_interval_us(minutes, number, minutes[number - 1][0])
    return min(_GAP_HALF_INTERVALS * usual // 2, LONGEST_GAP_US)


def opening(minutes: Sequence[Minute], number: int) -> tuple[int, bool, bool]:
    """Returns the start of the span that a first reading ends, whether it is covered, and whether that is assumed.

    It is one usual interval. But if this would need more power than the next spans have, and a half more, the reading
    makes up for a silence: the energy came at an unknown time, here in the last hours. Of a reading that no other
    follows soon, nobody knows how long its energy flowed.
    """
    last, first, milliwh, *_ = minutes[number]
    start = first - min(_usual_interval_us(minutes, number, None), _LONGEST_INTERVAL_US)
    if not milliwh:
        return start, True, True
    following = _following(minutes, number)
    for position in following:
        end, _, energy, *_ = minutes[position]
        if energy and 2 * milliwh * (end - minutes[position - 1][0]) <= 3 * energy * (last - start):
            return start, True, True
    return (last - LONGEST_SILENCE_US, False, False) if following else (start, False, True)


def _usual_interval_us(minutes: Sequence[Minute], number: int, start: int | None) -> int:
    """Returns the median interval of the five spans before the one from `start`; those after it stand in for missing.

    `start` is None for a span that a first reading opens.
    """
    near: list[int] = []
    if start is not None:
        for position in range(number - 1, max(0, number - 1 - _NEIGHBOURS), -1):
            if minutes[position - 1][0] < start - NEAR_US:
                break
            near.append(position)
    near += _following(minutes, number)[: _NEIGHBOURS - len(near)]
    if not near:
        return _UNKNOWN_INTERVAL_US
    intervals = sorted((minutes[position][0] - minutes[position - 1][0]) // minutes[position][3] for position in near)
    return (intervals[(len(near) - 1) // 2] + intervals[len(near) // 2]) // 2


def _following(minutes: Sequence[Minute], number: int) -> list[int]:
    """Returns the minutes whose spans are the next five after a minute's."""
    until = minutes[number][0] + NEAR_US
    return [
        position
        for position in range(number + 1, min(len(minutes), number + 1 + _NEIGHBOURS))
        if minutes[position][0] <= until
    ]
