"""State of charge and temperature of batteries, by minute."""

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple, TypeAlias

import numpy as np
from sqlalchemy.ext.asyncio import AsyncConnection

from app.analytics.efficiency.evidence import fetch_arrays
from app.analytics.efficiency.rhythm import MINUTE_US
from app.telemetry.instant import EPOCH_US

Batteries: TypeAlias = dict[int, np.ndarray[tuple[int, int], np.dtype[np.int64]]]
"""By vehicle: minutes in order, in microseconds since 1970-01-01 UTC, lowest and highest state of charge, temperature.

Those are in hundredths; what is not known is less than any value.
"""
_NOT_KNOWN = -(2**15)


class Battery(NamedTuple):
    """The state of charge at both ends of a time, in hundredths of a percent, and the highest temperature.

    The first minute with a state of charge counts with its lowest, the last one with its highest.
    """

    soc_start_centipercent: int | None = None
    soc_end_centipercent: int | None = None
    battery_temp_max_centic: int | None = None


async def fetch_batteries(
    connection: AsyncConnection, vehicles: Collection[int], range_from: datetime, range_to: datetime
) -> Batteries:
    """Returns the minutes of some vehicles in [range_from, range_to)."""
    parameters = {"devices": [*vehicles], "range_from": range_from, "range_to": range_to}
    batteries = await fetch_arrays(connection, _BATTERIES, parameters)
    for minutes in batteries.values():
        minutes[0] += EPOCH_US
    return batteries


def battery_between(batteries: Batteries, vehicle_id: int, start: int, end: int) -> Battery:
    """Returns what is known of a vehicle's battery from the minute of an instant to another instant."""
    if vehicle_id not in batteries:
        return Battery()
    at, lowest, highest, temperature = batteries[vehicle_id]
    first, after = np.searchsorted(at, [start // MINUTE_US * MINUTE_US, end + 1])
    if first == after:
        return Battery()
    known = first + np.flatnonzero(lowest[first:after] > _NOT_KNOWN)
    hottest = int(temperature[first:after].max())
    return Battery(
        int(lowest[known[0]]) if known.size else None,
        int(highest[known[-1]]) if known.size else None,
        hottest if hottest > _NOT_KNOWN else None,
    )


_BATTERIES = b"""
    SELECT array_agg(vehicle_id), array_agg(bucket),
           array_agg(CASE WHEN soc_readings > 0 THEN soc_centipercent_min ELSE -32768 END),
           array_agg(CASE WHEN soc_readings > 0 THEN soc_centipercent_max ELSE -32768 END),
           array_agg(coalesce(battery_temp_centic_max, -32768))
    FROM vehicle_minute(%(range_from)s, %(range_to)s, %(devices)s::integer[])
"""
