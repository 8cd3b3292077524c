"""The minutes that prove how much of a meter's AC energy reached a vehicle's battery: fetched, then paired."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import chain, repeat, starmap
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Integer, bindparam, cast, func, select, union
from sqlalchemy.ext.asyncio import AsyncConnection

from app.analytics.efficiency.pairing import Evidence, Mapping, MeterMinute, VehicleMinute, pair
from app.errors import InvalidTimeRange
from app.tables import meter_minute, vehicle, vehicle_meter, vehicle_minute

MAX_SHARED_MINUTES = 1_000_000
"""Of all vehicles that share a vehicle's meters; each takes 86 bytes while they are paired."""

_MINUTE = timedelta(minutes=1)
_PAIRING = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pairing")
_FAR_US = 10**18
"""Microseconds to an instant beyond any window."""


class OwnMinutes(NamedTuple):
    """A vehicle's minutes at one of the meters that its readings name (None: they name none), and sums over them."""

    vehicle_id: int
    meter_id: int | None
    minutes: list[int]
    dc_milliwh: list[int]
    readings: int
    soc_centipercent: int | None
    soc_readings: int
    battery_temp_centic: int | None
    battery_temp_readings: int


async def fetch_minutes(
    connection: AsyncConnection, vehicle_id: str, range_from: datetime, range_to: datetime
) -> list[OwnMinutes]:
    """A vehicle's minutes in [range_from, range_to); none when it has no readings in it, or is not known."""
    rows = await connection.execute(_OWN, {"external_id": vehicle_id, "range_from": range_from, "range_to": range_to})
    return [OwnMinutes(*row) for row in rows]


class Sides(NamedTuple):
    """A vehicle's minutes, those of its meters, and those of the vehicles that may share them; as arrays."""

    own: list[OwnMinutes]
    meters: Sequence[tuple[int, list[int], list[int]]]
    others: Sequence[tuple[int, int | None, list[int]]]
    mappings: list[Mapping]


async def fetch_sides(
    connection: AsyncConnection, own: list[OwnMinutes], range_from: datetime, range_to: datetime
) -> Sides:
    """`own` is what fetch_minutes() found, not empty. Raises InvalidTimeRange when too many vehicles share its meters.

    Each side is fetched by itself: as one anti-join it takes 80 times as long.
    """
    bounds = {"range_from": range_from, "range_to": range_to}
    vehicle_id = own[0].vehicle_id
    mappings = await mappings_of(connection, bounds, {vehicle_id})
    meters = {at.meter_id for at in own if at.meter_id is not None} | {mapping.meter_id for mapping in mappings}
    if not meters:
        return Sides(own, [], [], [])
    consumed = [(*row,) for row in await connection.execute(_METERS, {"meters": meters, **bounds})]
    selected = {"vehicle": vehicle_id, "meters": meters, **bounds}
    sharers = set(await connection.scalars(_SHARERS, selected))
    if len(sharers) * ((range_to - range_from) / _MINUTE) > MAX_SHARED_MINUTES:
        raise InvalidTimeRange(f"{len(sharers):,} other vehicles charge at its meters: ask for a shorter window.")
    if not sharers:
        return Sides(own, consumed, [], mappings)
    others = [(*row,) for row in await connection.execute(_OTHERS, {"vehicles": sharers, **bounds})]
    return Sides(own, consumed, others, mappings + await mappings_of(connection, bounds, sharers))


async def pair_sides(sides: Sides, *, gap_minutes: int) -> Evidence:
    """Which of the vehicle's minutes are paired. Without a connection, in a thread: 90 days take seconds.

    One at a time, since threads that compute only take turns, with those that store readings too.
    """
    return await asyncio.get_running_loop().run_in_executor(_PAIRING, _paired, sides, gap_minutes)


def _paired(sides: Sides, gap_minutes: int) -> Evidence:
    vehicle_id = sides.own[0].vehicle_id
    delivered = chain(
        chain.from_iterable(
            zip(repeat(vehicle_id), at.minutes, repeat(at.meter_id), at.dc_milliwh, strict=False) for at in sides.own
        ),
        chain.from_iterable(
            zip(repeat(other), minutes, repeat(meter_id), repeat(0), strict=False)
            for other, meter_id, minutes in sides.others
        ),
    )
    consumed = chain.from_iterable(
        zip(repeat(meter_id), minutes, energies, strict=False) for meter_id, minutes, energies in sides.meters
    )
    return pair(
        vehicle_id,
        starmap(VehicleMinute, delivered),
        starmap(MeterMinute, consumed),
        sides.mappings,
        gap_minutes=gap_minutes,
    )


async def mappings_of(
    connection: AsyncConnection, bounds: dict[str, datetime], vehicles: set[int] | None
) -> list[Mapping]:
    """The mappings of some vehicles, or of all, that hold at some time between `range_from` and `range_to`."""
    if vehicles is None:
        rows = await connection.execute(_MAPPINGS, bounds)
    else:
        rows = await connection.execute(_MAPPINGS_OF, {"vehicles": vehicles, **bounds})
    return [
        Mapping(vehicle_id, meter_id, _us(valid.lower, -_FAR_US), _us(valid.upper, _FAR_US))
        for vehicle_id, meter_id, valid in rows
    ]


def _us(instant: datetime | None, unlimited: int) -> int:
    return unlimited if instant is None else round(instant.timestamp() * 1_000_000)


# The statements, all over [:range_from, :range_to). A day has 1,440 minutes: arrays cost a tenth of as many rows.


def _numbers(bucket: ColumnElement[datetime]) -> ColumnElement[Any]:
    """Minutes by their number since 1970-01-01 UTC."""
    return func.array_agg(cast(func.date_part("epoch", bucket) / 60, Integer))


def _total(column: ColumnElement[int]) -> ColumnElement[int]:
    return cast(func.sum(column), BigInteger)


_valid_in_range = vehicle_meter.c.valid.op("&&")(func.tstzrange(bindparam("range_from"), bindparam("range_to")))

# The minutes and sums of one vehicle.
_OWN = (
    select(
        vehicle_minute.c.vehicle_id,
        vehicle_minute.c.meter_id,
        _numbers(vehicle_minute.c.bucket),
        func.array_agg(vehicle_minute.c.dc_milliwh),
        _total(vehicle_minute.c.readings),
        _total(vehicle_minute.c.soc_centipercent_sum),
        _total(vehicle_minute.c.soc_readings),
        _total(vehicle_minute.c.battery_temp_centic_sum),
        _total(vehicle_minute.c.battery_temp_readings),
    )
    .where(
        vehicle_minute.c.vehicle_id
        == select(vehicle.c.id).where(vehicle.c.external_id == bindparam("external_id")).scalar_subquery()
    )
    .group_by(vehicle_minute.c.vehicle_id, vehicle_minute.c.meter_id)
)

# The AC energy of some meters.
_METERS = (
    select(meter_minute.c.meter_id, _numbers(meter_minute.c.bucket), func.array_agg(meter_minute.c.ac_milliwh))
    .where(meter_minute.c.meter_id.in_(bindparam("meters", expanding=True)))
    .group_by(meter_minute.c.meter_id)
)

# The vehicles besides one whose readings name some meters, or that are mapped to them. Those before and after it, since
# an index knows no "other than": it would read a day of the one to find that there is no other.
_SHARERS = union(
    select(vehicle_minute.c.vehicle_id).where(
        vehicle_minute.c.meter_id.in_(bindparam("meters", expanding=True)),
        vehicle_minute.c.vehicle_id < bindparam("vehicle"),
    ),
    select(vehicle_minute.c.vehicle_id).where(
        vehicle_minute.c.meter_id.in_(bindparam("meters", expanding=True)),
        vehicle_minute.c.vehicle_id > bindparam("vehicle"),
    ),
    select(vehicle_meter.c.vehicle_id).where(
        vehicle_meter.c.meter_id.in_(bindparam("meters", expanding=True)),
        vehicle_meter.c.vehicle_id != bindparam("vehicle"),
        _valid_in_range,
    ),
)

# The minutes of some vehicles, at whatever meter.
_OTHERS = (
    select(vehicle_minute.c.vehicle_id, vehicle_minute.c.meter_id, _numbers(vehicle_minute.c.bucket))
    .where(vehicle_minute.c.vehicle_id.in_(bindparam("vehicles", expanding=True)))
    .group_by(vehicle_minute.c.vehicle_id, vehicle_minute.c.meter_id)
)

# The mappings of all vehicles, and of some.
_MAPPINGS = select(vehicle_meter.c.vehicle_id, vehicle_meter.c.meter_id, vehicle_meter.c.valid).where(_valid_in_range)
_MAPPINGS_OF = _MAPPINGS.where(vehicle_meter.c.vehicle_id.in_(bindparam("vehicles", expanding=True)))
