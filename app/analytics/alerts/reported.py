"""Judging how often devices reported in touched hours, and which of their readings are implausible.

The minutes are read in one snapshot; the tables are written under the evaluator's lock. Hours count from 1970.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.analytics.alerts import tables
from app.analytics.alerts.implausible import REACH_HOURS, Implausible, judge_hour, spans_of, usual_milliwatt
from app.analytics.alerts.implausible_hours import fetch_known, judge_alerts, replace_implausible
from app.analytics.alerts.silence import replace_reported, reported_in
from app.analytics.efficiency.rhythm import Minute
from app.analytics.efficiency.rows import minutes_of
from app.analytics.minutes import fetch_rows
from app.database import snapshot
from app.fleet.limits import fetch_limits
from app.telemetry.reading import Stream

# Five hours of so many devices are 120,000 minutes when each of them sends nonsense once a minute.
_AT_ONCE = 400
# A minute's energy counts as that of a minute at least.
_MILLIWATT_PER_MILLIWH = 60


class _Suspects(NamedTuple):
    """Some devices of a stream with their hours to judge and the devices at their other ends; minutes and limits."""

    hours: Mapping[int, Collection[int]]
    others: Mapping[int, Collection[int]]
    minutes: Mapping[int, list[Minute]]
    limits: Mapping[int, int]
    other_minutes: Mapping[int, list[Minute]]
    other_limits: Mapping[int, int]

    def judge(self) -> dict[tuple[int, int], Implausible]:
        """Returns the implausible readings by device and hour."""
        judged = {}
        for device, hours in self.hours.items():
            for hour in hours:
                usual = [
                    power
                    for other in self.others.get(device, ())
                    for power in usual_milliwatt(
                        spans_of(self.other_minutes.get(other, []), hour), self.other_limits[other]
                    )
                ]
                row = judge_hour(self.minutes.get(device, []), hour, self.limits[device], usual)
                if row:
                    judged[device, hour] = row
        return judged


async def judge_reported(
    reading: AsyncConnection, writing: tables.Connection, touched: tables.Touched, kept: range, *, max_power_kw: float
) -> None:
    """Judges these hours, and those whose implausible readings they may change, as far as they are in `kept`."""
    at = {tables.hour_of(hour) for _, _, hour, _ in touched}
    first, after = max(min(at), kept.start), min(max(at) + 1, kept.stop)
    hours = range(first, min(after + REACH_HOURS, kept.stop))
    if not hours:
        return
    devices = {stream: {device for of, device, *_ in touched if of == stream} for stream in Stream}
    judged: dict[Stream, dict[tuple[int, int], Implausible]] = {}
    suspected: dict[Stream, dict[int, set[int]]] = {}
    for stream, some in devices.items():
        suspected[stream] = await fetch_known(writing, stream, hours)
        async with snapshot(reading):
            limits = await fetch_limits(reading, stream, some, max_power_kw=max_power_kw)
            reported = {}
            for device, hour, minutes, peak in await _fetch_hours(reading, stream, some, range(first, after)):
                reported[device, hour] = reported_in(minutes)
                if _MILLIWATT_PER_MILLIWH * (peak or 0) > limits[device]:
                    suspected[stream].setdefault(device, set()).add(hour)
            for device, hour, peak in await _fetch_peaks(reading, stream, limits, range(after, hours.stop)):
                if _MILLIWATT_PER_MILLIWH * peak > limits[device]:
                    suspected[stream].setdefault(device, set()).add(hour)
            await _leave_out_untouched(reading, stream, suspected[stream], devices, hours)
            judged[stream] = await _judge_suspects(reading, stream, suspected[stream], hours, max_power_kw)
        await replace_reported(writing, stream, some, reported)
    for stream, hours_of in suspected.items():
        changed = await replace_implausible(writing, stream, hours_of, judged[stream])
        await judge_alerts(writing, stream, changed, kept.stop)


async def _leave_out_untouched(
    connection: AsyncConnection,
    stream: Stream,
    suspected: dict[int, set[int]],
    touched: Mapping[Stream, Collection[int]],
    hours: range,
) -> None:
    """Leaves out the devices that are not touched, at neither end."""
    if strangers := suspected.keys() - touched[stream]:
        others = await _fetch_others(connection, stream, strangers, hours)
        (other_stream,) = {*Stream} - {stream}
        for device in strangers:
            if not others[device].intersection(touched[other_stream]):
                del suspected[device]


async def _judge_suspects(
    connection: AsyncConnection, stream: Stream, suspected: Mapping[int, set[int]], hours: range, max_power_kw: float
) -> dict[tuple[int, int], Implausible]:
    judged: dict[tuple[int, int], Implausible] = {}
    devices = sorted(suspected)
    (other_stream,) = {*Stream} - {stream}
    for start in range(0, len(devices), _AT_ONCE):
        some = devices[start : start + _AT_ONCE]
        others = await _fetch_others(connection, stream, some, hours)
        named = {other for of_device in others.values() for other in of_device}
        suspects = _Suspects(
            {device: suspected[device] for device in some},
            others,
            await _fetch_minutes(connection, stream, some, hours),
            await fetch_limits(connection, stream, some, max_power_kw=max_power_kw),
            await _fetch_minutes(connection, other_stream, named, hours),
            await fetch_limits(connection, other_stream, named, max_power_kw=max_power_kw),
        )
        judged |= await asyncio.to_thread(suspects.judge)
    return judged


def _bounds(hours: range, devices: Iterable[int], reach: int) -> dict[str, Any]:
    start, end = tables.start_of_hour(hours.start - reach), tables.start_of_hour(hours.stop)
    return {"range_from": start, "range_to": end, "devices": [*devices]}


async def _fetch_hours(
    connection: AsyncConnection, stream: Stream, devices: Collection[int], hours: range
) -> Iterable[Any]:
    """Returns device, hour, the minutes with readings as bits, and the largest energy of a minute."""
    return await connection.execute(_HOURS[stream], _bounds(hours, devices, 0)) if devices else ()


async def _fetch_peaks(
    connection: AsyncConnection, stream: Stream, limits: Mapping[int, int], hours: range
) -> Iterable[Any]:
    """Returns device, hour and the largest energy of a minute, where it is beyond the least of the limits."""
    if not limits or not hours:
        return ()
    least = min(limits.values()) // _MILLIWATT_PER_MILLIWH
    return await connection.execute(_PEAKS[stream], {**_bounds(hours, limits, 0), "least": least})


async def _fetch_minutes(
    connection: AsyncConnection, stream: Stream, devices: Collection[int], hours: range
) -> dict[int, list[Minute]]:
    """Returns the minutes of some devices in order, for REACH_HOURS before the hours too."""
    start, end = tables.start_of_hour(hours.start - REACH_HOURS), tables.start_of_hour(hours.stop)
    found = await fetch_rows(connection, stream, devices, start, end)
    return {device: minutes_of(rows) for device, rows in found.items()}


async def _fetch_others(
    connection: AsyncConnection, stream: Stream, devices: Iterable[int], hours: range
) -> dict[int, set[int]]:
    """Returns the meters of these vehicles, or the vehicles at these meters, by their readings and mappings."""
    others = defaultdict[int, set[int]](set)
    for device, other in await connection.execute(_OTHERS[stream], _bounds(hours, devices, REACH_HOURS)):
        others[device].add(other)
    return others


_ENERGY = {Stream.METER: "ac_milliwh", Stream.VEHICLE: "dc_milliwh"}
_OF_DEVICES = "(:range_from, :range_to, CAST(:devices AS integer[]))"

# The hours of :devices.
_HOURS = {
    stream: text(f"""
        SELECT {stream}_id, minute / 60, bit_or(1::bigint << minute % 60), max({energy})
        FROM (
            SELECT {stream}_id, (date_part('epoch', bucket) / 60)::integer AS minute, {energy}
            FROM {stream}_minute{_OF_DEVICES}
        ) AS measured
        GROUP BY 1, 2
    """)  # noqa: S608 - of constants
    for stream, energy in _ENERGY.items()
}

# The hours of :devices in which a minute has more than :least.
_PEAKS = {
    stream: text(f"""
        SELECT {stream}_id, floor(date_part('epoch', bucket) / 3600)::integer, max({energy})
        FROM {stream}_minute{_OF_DEVICES}
        WHERE {energy} > :least
        GROUP BY 1, 2
    """)  # noqa: S608 - of constants
    for stream, energy in _ENERGY.items()
}

# The meters of the vehicles :devices, and the vehicles at the meters :devices.
_MAPPED = "FROM vehicle_meter WHERE valid && tstzrange(:range_from, :range_to)"
_OTHERS = {
    Stream.VEHICLE: text(f"""
        SELECT vehicle_id, meter_id FROM vehicle_minute{_OF_DEVICES} WHERE meter_id IS NOT NULL
        UNION
        SELECT vehicle_id, meter_id {_MAPPED} AND vehicle_id = ANY (:devices)
    """),  # noqa: S608 - of constants
    Stream.METER: text(f"""
        SELECT meter_id, vehicle_id FROM vehicle_minute(:range_from, :range_to) WHERE meter_id = ANY (:devices)
        UNION
        SELECT meter_id, vehicle_id {_MAPPED} AND meter_id = ANY (:devices)
    """),  # noqa: S608 - of constants
}
