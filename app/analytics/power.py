"""Power over time: energy by the time in which it flowed, so that energy that catches up makes no peak."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from sqlalchemy.ext.asyncio import AsyncConnection

from app.analytics.buckets import Buckets
from app.analytics.efficiency.counter import Counter
from app.analytics.efficiency.rhythm import HOUR_US, LONGEST_SILENCE_US, MINUTE_US
from app.analytics.efficiency.rows import NO_ROWS, Rows, counter_of
from app.analytics.efficiency.stretches import Stretches, common, union
from app.analytics.minutes import fetch_rows
from app.telemetry.instant import MAX_AHEAD
from app.telemetry.reading import Stream

DEMAND_MINUTES = 15
"""A peak is the greatest mean power over so many minutes, as demand is billed."""
SETTLED_SECONDS = 30
"""This long after a bucket ends, most of its readings have arrived."""

# A device's power at an instant depends on the readings before and after it, which may be so far away.
_MARGIN = timedelta(microseconds=LONGEST_SILENCE_US + MINUTE_US)
# A chart of hours must not read all minutes kept: a month has 44,640.
_REACH = timedelta(days=31)
# A span counts whether it is covered or a silence.
_GAP_US = 5 * MINUTE_US
_LEAST_US = 5 * MINUTE_US


def kilowatts(milliwh: int, seconds: float) -> float:
    """Returns the mean power of an energy that flows in a time."""
    return milliwh * 3_600 / seconds / 1_000_000


async def fetch_power_rows(connection: AsyncConnection, stream: Stream, device: int, buckets: Buckets) -> Rows:
    """Returns the rows behind a device's power in the buckets; none for days and months."""
    if buckets.width in ("1d", "1mo"):
        return NO_ROWS
    found = await fetch_rows(connection, stream, [device], *power_reach(buckets))
    return found.get(device, NO_ROWS)


def power_reach(buckets: Buckets) -> tuple[datetime, datetime]:
    """Returns the range of the rows behind a device's power in the last 31 days of the buckets."""
    end = min(buckets.end, datetime.now(UTC) + MAX_AHEAD)
    return max(buckets.start, end - _REACH) - _MARGIN, end + _MARGIN


async def power_columns(
    rows: Rows,
    limit_milliwatt: int,
    t: list[int],
    kwh: list[float],
    buckets: Buckets,
) -> tuple[list[float | None], float | None]:
    """Returns the power in each bucket, and the peak, which only minutes tell. Runs in a thread: a month takes 0.25 s.

    For days and months, power is energy by time: a silence is little in a day.
    """
    if buckets.width in ("1d", "1mo"):
        now, ends = datetime.now(UTC).timestamp(), buckets.ends(t)
        known = zip(t, ends, kwh, strict=True)
        return [energy / ((end - at) / 3_600) if end <= now else None for at, end, energy in known], None

    def compute() -> tuple[list[float | None], float | None]:
        counter = counter_of(rows, gap_us=_GAP_US, limit_milliwatt=limit_milliwatt)
        if buckets.width == "1h":
            return hour_powers(counter, t), None
        first, after = (int(instant.timestamp()) // 60 for instant in (buckets.start, buckets.end))
        return minute_powers(counter, t, range(first, after))

    return await asyncio.to_thread(compute)


def minute_powers(counter: Counter, starts: Sequence[int], window: range) -> tuple[list[float | None], float | None]:
    """Returns the power in some minutes of the window, and the greatest mean power over 15 of its minutes.

    The energy of a reading is spread over the time since the one before. It is not known when energy flowed that came
    after a silence of more than four hours, by a device's only reading, or faster than the device can take it. Power is
    None in minutes in which it is not known, and the peak where there are no 15 minutes in which it is.
    """
    milliwh = np.full(len(window), -1)
    most = None
    for before, after in common([(window.start * MINUTE_US, window.stop * MINUTE_US)], _known(counter)):
        first, last = -(-before // MINUTE_US), after // MINUTE_US
        sums = counter.at_each(MINUTE_US * np.arange(first, last + 1))
        milliwh[first - window.start : max(first, last) - window.start] = np.diff(sums)
        if len(sums) > DEMAND_MINUTES:
            most = max(most or 0, int((sums[DEMAND_MINUTES:] - sums[:-DEMAND_MINUTES]).max()))
    asked = milliwh[np.array(starts, np.int64) // 60 - window.start].tolist()
    powers = [kilowatts(energy, 60) if energy >= 0 else None for energy in asked]
    return powers, None if most is None else kilowatts(most, 60 * DEMAND_MINUTES)


def hour_powers(counter: Counter, starts: Sequence[int]) -> list[float | None]:
    """Returns the power in the known time of each hour, as minute_powers(); None where that is below five minutes."""
    known = _known(counter)
    powers = []
    for start in starts:
        parts = common([(1_000_000 * start, 1_000_000 * start + HOUR_US)], known)
        time_us = sum([after - before for before, after in parts])
        powers.append(kilowatts(counter.flowed_in(parts), time_us / 1_000_000) if time_us >= _LEAST_US else None)
    return powers


def _known(counter: Counter) -> Stretches:
    """Returns the time in which it is known how much flowed."""
    points = counter.points
    even = ((points[one.first], points[one.after]) for one in counter.alike if one.is_covered)
    return union([*even, *((points[span], points[span + 1]) for span in counter.silent)])
