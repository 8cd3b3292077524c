"""The minutes of devices: the rows that make counters, and the columns of a series by minute.

They come as one row of arrays in binary form, which numpy divides by device: 1.95 million minutes of 5,000 meters took
1.8 s of CPU, and 4.1 as arrays by device in text.
"""

from collections.abc import Collection
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from sqlalchemy.ext.asyncio import AsyncConnection

from app.analytics.efficiency.rhythm import MINUTE_US
from app.analytics.efficiency.rows import NO_ROWS, Rows
from app.database import binary_cursor
from app.telemetry.instant import EPOCH_US
from app.telemetry.reading import Stream

Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

NO_BATTERY = -(2**15)
"""A state of charge or temperature that nobody knows, less than any other."""

# PostgreSQL's binary form of an array has so many bytes before the first element.
_HEADER_BYTES = 20


class Totals(NamedTuple):
    """Sums over a vehicle's minutes; `readings` counts all, and each of the other two those with such a value."""

    readings: int
    dc_milliwh: int
    soc_centipercent: int
    soc_readings: int
    battery_temp_centic: int
    battery_temp_readings: int


class Minutes(NamedTuple):
    """All that a device's minutes hold, in order of time.

    `milliwh` is all known energy. `quantities` has four rows for each: sum, number of readings, least and greatest
    value, in hundredths. A meter's is voltage, and a vehicle's are state of charge and temperature.
    """

    rows: Rows
    milliwh: Integers
    quantities: Integers

    def between(self, start: datetime, end: datetime) -> "Minutes":
        """Returns the minutes whose last reading lies in [start, end)."""
        bounds = [round(instant.timestamp() * 1_000_000) for instant in (start, end)]
        first, after = np.searchsorted(self.rows[0], bounds).tolist()
        inside = slice(first, after)
        return Minutes(self.rows[:, inside], self.milliwh[inside], self.quantities[:, inside])

    def columns(self) -> list[list[Any]]:
        """Returns a series' columns: start in seconds, kWh, readings, and each quantity's average, least and greatest.

        A minute stands once, however many meters a vehicle's readings in it name.
        """
        minute, readings = self.rows[0] // MINUTE_US, self.rows[3]
        firsts = np.flatnonzero(np.diff(minute, prepend=-1))
        sums, counts, least, greatest = (self.quantities[kind::4] for kind in range(4))
        counts = np.add.reduceat(counts, firsts, axis=1)
        with np.errstate(invalid="ignore"):
            averages = np.add.reduceat(sums, firsts, axis=1) / (100.0 * counts)
        values = (
            averages,
            np.minimum.reduceat(least, firsts, axis=1) / 100.0,
            np.maximum.reduceat(greatest, firsts, axis=1) / 100.0,
        )
        return [
            (60 * minute[firsts]).tolist(),
            (np.add.reduceat(self.milliwh, firsts) / 1_000_000.0).tolist(),
            np.add.reduceat(readings, firsts).tolist(),
            *(known_where(number > 0, kind) for number, *kinds in zip(counts, *values, strict=True) for kind in kinds),
        ]


def known_where(is_known: np.ndarray[Any, np.dtype[np.bool_]], values: np.ndarray[Any, Any]) -> list[Any]:
    """Returns the values as a column, with None where they are not known."""
    column: list[Any] = values.tolist()
    for unknown in np.flatnonzero(~is_known).tolist():
        column[unknown] = None
    return column


async def fetch_rows(
    connection: AsyncConnection, stream: Stream, devices: Collection[int], range_from: datetime, range_to: datetime
) -> dict[int, Rows]:
    """Returns the rows of some devices in [range_from, range_to)."""
    parameters = {"devices": [*devices], "range_from": range_from, "range_to": range_to}
    return _by_device(await _fetch(connection, _ROWS[stream].format(more=""), parameters))


async def fetch_batteries(
    connection: AsyncConnection, vehicles: Collection[int], range_from: datetime, range_to: datetime
) -> tuple[dict[int, Rows], dict[int, Integers]]:
    """Returns the rows of some vehicles in [range_from, range_to), and for each row what is known of the battery.

    That is the lowest and the highest state of charge and the highest temperature, in hundredths, or NO_BATTERY.
    """
    parameters = {"devices": [*vehicles], "range_from": range_from, "range_to": range_to}
    found = _by_device(await _fetch(connection, _ROWS[Stream.VEHICLE].format(more=_BATTERY), parameters))
    rows = len(NO_ROWS)
    return (
        {vehicle_id: arrays[:rows] for vehicle_id, arrays in found.items()},
        {vehicle_id: arrays[rows:] for vehicle_id, arrays in found.items()},
    )


async def fetch_minutes(
    connection: AsyncConnection, stream: Stream, device: int, range_from: datetime, range_to: datetime
) -> Minutes:
    """Returns the minutes of a device in [range_from, range_to)."""
    parameters = {"devices": [device], "range_from": range_from, "range_to": range_to}
    found = _by_device(await _fetch(connection, _ROWS[stream].format(more=_MORE[stream]), parameters))
    rows = len(NO_ROWS)
    arrays = found.get(device, np.empty((rows + 1 + 4 * _QUANTITIES[stream], 0), np.int64))
    return Minutes(arrays[:rows], arrays[rows], arrays[rows + 1 :])


async def fetch_totals(
    connection: AsyncConnection, vehicle: int, near: tuple[datetime, datetime], within: tuple[datetime, datetime]
) -> tuple[Rows, Totals]:
    """Returns a vehicle's rows near a range, and its totals within it, which are sums of whole minutes."""
    names = "range_from", "range_to", "within_from", "within_to"
    parameters = {"devices": [vehicle], **dict(zip(names, (*near, *within), strict=True))}
    found = await _fetch(connection, _ROWS[Stream.VEHICLE].format(more=_TOTALS), parameters)
    arrays = 1 + len(NO_ROWS)
    return _by_device(found[:arrays]).get(vehicle, NO_ROWS), Totals(*found[arrays:])


async def _fetch(connection: AsyncConnection, statement: str, parameters: dict[str, Any]) -> list[Any]:
    async with binary_cursor(connection) as cursor:
        for element in "int4", "int8", "timestamptz":
            cursor.adapters.register_loader(cursor.adapters.types[element].array_oid, _Numbers)
        (row,) = await (await cursor.execute(statement.encode(), parameters)).fetchall()
    return [*row]


def _by_device(arrays: list[Any]) -> dict[int, Integers]:
    device, *columns = arrays
    if device is None:
        return {}
    last, first, *_ = columns
    order = np.lexsort((first, last, device))
    minutes, device = np.stack(columns)[:, order], device[order]
    minutes[:2] += EPOCH_US
    bounds = [0, *(np.flatnonzero(np.diff(device)) + 1).tolist(), len(device)]
    return {int(device[start]): minutes[:, start:end] for start, end in pairwise(bounds)}


class _Numbers(Loader):
    """Loads a one-dimensional array of numbers without NULL: each is preceded by its length, all by a header."""

    format = Format.BINARY

    def load(self, data: Buffer) -> Integers:
        size = int.from_bytes(data[_HEADER_BYTES : _HEADER_BYTES + 4])
        elements = np.frombuffer(data, [("length", ">i4"), ("number", f">i{size}")], offset=_HEADER_BYTES)
        return elements["number"].astype(np.int64)


# The rows of :devices in [:range_from, :range_to). An energy of -1 is NOT_KNOWN.
_ROWS = {
    Stream.VEHICLE: """
        SELECT array_agg(vehicle_id), array_agg(last_ts), array_agg(first_ts),
               array_agg(CASE WHEN unknown_readings > 0 THEN -1 ELSE dc_milliwh END), array_agg(readings),
               array_agg(coalesce(meter_id, 0)){more}
        FROM vehicle_minute(%(range_from)s, %(range_to)s, %(devices)s::integer[])
    """,
    Stream.METER: """
        SELECT array_agg(meter_id), array_agg(last_ts), array_agg(first_ts),
               array_agg(CASE WHEN unknown_readings > 0 THEN -1 ELSE ac_milliwh END), array_agg(readings),
               array_agg(0){more}
        FROM meter_minute(%(range_from)s, %(range_to)s, %(devices)s::integer[])
    """,
}
# What else the minutes hold. A quantity without a reading changes no extreme of the other rows of its minute.
_MORE = {
    Stream.VEHICLE: """,
               array_agg(dc_milliwh),
               array_agg(coalesce(soc_centipercent_sum, 0)), array_agg(soc_readings),
               array_agg(coalesce(soc_centipercent_min, 32767)), array_agg(coalesce(soc_centipercent_max, -32768)),
               array_agg(coalesce(battery_temp_centic_sum, 0)), array_agg(battery_temp_readings),
               array_agg(coalesce(battery_temp_centic_min, 32767)), array_agg(coalesce(battery_temp_centic_max, -32768))
    """,
    Stream.METER: """,
               array_agg(ac_milliwh),
               array_agg(coalesce(voltage_centiv_sum, 0)), array_agg(voltage_readings),
               array_agg(coalesce(voltage_centiv_min, 2147483647)), array_agg(coalesce(voltage_centiv_max, -2147483647))
    """,
}
_BATTERY = f""",
               array_agg(coalesce(soc_centipercent_min, {NO_BATTERY})),
               array_agg(coalesce(soc_centipercent_max, {NO_BATTERY})),
               array_agg(coalesce(battery_temp_centic_max, {NO_BATTERY}))
"""
# The totals of the minutes in [:within_from, :within_to).
_TOTALS = "".join(
    f", coalesce(sum({column}) FILTER (WHERE bucket >= %(within_from)s AND bucket < %(within_to)s), 0)::bigint"
    for column in (
        *("readings", "dc_milliwh", "soc_centipercent_sum", "soc_readings"),
        *("battery_temp_centic_sum", "battery_temp_readings"),
    )
)
_QUANTITIES = {Stream.VEHICLE: 2, Stream.METER: 1}
