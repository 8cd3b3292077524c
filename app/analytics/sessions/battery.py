"""A vehicle's battery in a session. Pure."""

from typing import NamedTuple

import numpy as np

from app.analytics.efficiency.rhythm import MINUTE_US
from app.analytics.efficiency.rows import Rows
from app.analytics.minutes import NO_BATTERY, Integers


class Battery(NamedTuple):
    """The state of charge at both ends of a time, in hundredths of a percent, and the highest temperature.

    The first minute with a state of charge counts with its lowest, the last one with its highest.
    """

    soc_start_centipercent: int | None = None
    soc_end_centipercent: int | None = None
    battery_temp_max_centic: int | None = None


def battery_between(rows: Rows, batteries: Integers, start: int, end: int) -> Battery:
    """Returns what the rows' minutes know, from the minute of `start` to that of `end`."""
    until = (end // MINUTE_US + 1) * MINUTE_US
    first, after = np.searchsorted(rows[0], [start // MINUTE_US * MINUTE_US, until]).tolist()
    if first == after:
        return Battery()
    lowest, highest, temperatures = batteries[:, first:after]
    known = np.flatnonzero(lowest > NO_BATTERY)
    hottest = int(temperatures.max())
    return Battery(
        int(lowest[known[0]]) if known.size else None,
        int(highest[known[-1]]) if known.size else None,
        hottest if hottest > NO_BATTERY else None,
    )
