"""The minutes that prove how much of a meter's AC energy reached a vehicle's battery: fetched, then paired.

Performance, coverage, a vehicle's series and the evaluator of alerts all fetch them here, as arrays by device and
meter: a day has 1,440 minutes, and arrays need a tenth of the rows.
"""

import asyncio
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    CompoundSelect,
    Integer,
    Select,
    TableValuedAlias,
    any_,
    bindparam,
    cast,
    func,
    null,
    select,
    union,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from app.analytics.efficiency.pairing import Evidence, Mapping, Minutes, Sides, pair
from app.errors import InvalidTimeRange
from app.tables import meter_minute, vehicle_meter, vehicle_minute

MAX_SHARED_MINUTES = 1_000_000
"""The limit for all vehicles that share a vehicle's meters; each minute takes 144 bytes during pairing."""

_MINUTE = timedelta(minutes=1)
_PAIRING = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pairing")
_FAR_US = 10**18
"""An instant beyond any window, in microseconds."""


async def fetch_minutes(
    connection: AsyncConnection,
    statement: Select[Any],
    devices: Collection[int],
    range_from: datetime,
    range_to: datetime,
) -> list[Minutes]:
    """Returns the minutes of some devices in [range_from, range_to), by vehicle_minutes() or a similar statement."""
    rows = await connection.execute(statement, {"devices": [*devices], "range_from": range_from, "range_to": range_to})
    return [
        Minutes(device_id, meter_id, minutes, milliwh, readings, others)
        for device_id, meter_id, minutes, milliwh, readings, *others in rows
    ]


async def fetch_sides(
    connection: AsyncConnection,
    own: list[Minutes],
    range_from: datetime,
    range_to: datetime,
    *,
    max_shared_minutes: float = MAX_SHARED_MINUTES,
) -> Sides:
    """Returns the minutes that the pairs of some vehicles depend on; `own` are all of these vehicles in the range.

    Each side is fetched by itself: one anti-join takes 80 times as long. Raises InvalidTimeRange when too many
    vehicles share the meters.
    """
    bounds = {"range_from": range_from, "range_to": range_to}
    vehicles = {at.device_id for at in own}
    mappings = await _fetch_mappings(connection, vehicles, bounds)
    meters = {at.meter_id for at in own if at.meter_id is not None} | {mapping.meter_id for mapping in mappings}
    if not meters:
        return Sides(own, [], [])
    consumed = await fetch_minutes(connection, METER_MINUTES, meters, **bounds)
    others = await connection.execute(_OTHERS_AT, {"meters": [*meters], "known": [*vehicles], **bounds})
    sharers = {vehicle_id for vehicle_id, _ in others}
    if len(sharers) * ((range_to - range_from) / _MINUTE) > max_shared_minutes:
        raise InvalidTimeRange(f"{len(sharers):,} other vehicles charge at its meters: ask for a shorter window.")
    if sharers:
        own = own + await fetch_minutes(connection, VEHICLE_MINUTES, sharers, **bounds)
        mappings += await _fetch_mappings(connection, sharers, bounds)
    return Sides(own, consumed, mappings)


async def fetch_concerned(
    connection: AsyncConnection, vehicles: set[int], meters: set[int], range_from: datetime, range_to: datetime
) -> list[int]:
    """Returns the vehicles whose pairs may change with readings of these devices, those of a meter side by side.

    They are these vehicles, and all vehicles at their meters and at these meters.
    """
    bounds = {"range_from": range_from, "range_to": range_to}
    found = [(*row,) for row in await connection.execute(_METERS_OF, {"devices": [*vehicles], **bounds})]
    near = meters.union(meter_id for _, meter_id in found)
    others = {"meters": [*near], "known": [*vehicles], **bounds}
    found += [(*row,) for row in await connection.execute(_OTHERS_AT, others)]
    # A vehicle at several meters counts at the one with the least id.
    meter_of = dict(sorted(found, reverse=True))
    return sorted(vehicles | meter_of.keys(), key=lambda vehicle_id: (meter_of.get(vehicle_id, 0), vehicle_id))


async def pair_sides(sides: Sides, vehicle_id: int, *, gap_minutes: int) -> Evidence:
    """Pairs the vehicle's minutes. This needs no connection and runs in a thread: 90 days take seconds.

    Only one runs at a time: threads that compute take turns with each other, and with those that store readings.
    """
    pairing = partial(pair, vehicle_id, sides, gap_minutes=gap_minutes)
    return await asyncio.get_running_loop().run_in_executor(_PAIRING, pairing)


async def _fetch_mappings(
    connection: AsyncConnection, vehicles: Collection[int], bounds: dict[str, datetime]
) -> list[Mapping]:
    rows = await connection.execute(_MAPPINGS, {"devices": [*vehicles], **bounds})
    return [
        Mapping(vehicle_id, meter_id, _us(valid.lower, -_FAR_US), _us(valid.upper, _FAR_US))
        for vehicle_id, meter_id, valid in rows
    ]


def _us(instant: datetime | None, unlimited: int) -> int:
    return unlimited if instant is None else round(instant.timestamp() * 1_000_000)


# The statements, all over [:range_from, :range_to) and of :devices where these are given.


def _arrays(source: TableValuedAlias, milliwh: ColumnElement[int]) -> Iterator[ColumnElement[Any]]:
    """Yields the minutes by their number since 1970-01-01 UTC, their energy, and their number of readings."""
    yield func.array_agg(cast(func.date_part("epoch", source.c.bucket) / 60, Integer))
    yield func.array_agg(milliwh)
    yield func.array_agg(source.c.readings)


def vehicle_minutes(*others: ColumnElement[Any]) -> Select[Any]:
    """Selects the minutes of vehicles; `others` are aggregates over a vehicle's minutes at a meter."""
    key = vehicle_minute.c.vehicle_id, vehicle_minute.c.meter_id
    return select(*key, *_arrays(vehicle_minute, vehicle_minute.c.dc_milliwh), *others).group_by(*key)


VEHICLE_MINUTES = vehicle_minutes()

# The minutes of meters.
METER_MINUTES = select(meter_minute.c.meter_id, null(), *_arrays(meter_minute, meter_minute.c.ac_milliwh)).group_by(
    meter_minute.c.meter_id
)


def _one_of(column: ColumnElement[int], ids: str) -> ColumnElement[bool]:
    return column == any_(bindparam(ids, type_=ARRAY(Integer)))


_VALID = vehicle_meter.c.valid.op("&&")(func.tstzrange(bindparam("range_from"), bindparam("range_to")))


def _charging(named: ColumnElement[bool], mapped: ColumnElement[bool]) -> CompoundSelect[Any]:
    """Selects vehicles, with the meters that their readings name or that they are mapped to."""
    return union(
        select(vehicle_minute.c.vehicle_id, vehicle_minute.c.meter_id).where(named),
        select(vehicle_meter.c.vehicle_id, vehicle_meter.c.meter_id).where(mapped, _VALID),
    )


# The vehicles :devices with their meters, and the vehicles at :meters other than :known.
_METERS_OF = _charging(vehicle_minute.c.meter_id.is_not(None), _one_of(vehicle_meter.c.vehicle_id, "devices"))
_OTHERS_AT = _charging(
    *(
        _one_of(table.c.meter_id, "meters") & ~_one_of(table.c.vehicle_id, "known")
        for table in (vehicle_minute, vehicle_meter)
    )
)

# The mappings of :devices.
_MAPPINGS = select(vehicle_meter.c.vehicle_id, vehicle_meter.c.meter_id, vehicle_meter.c.valid).where(
    _one_of(vehicle_meter.c.vehicle_id, "devices"), _VALID
)
