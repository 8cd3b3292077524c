"""One vehicle's efficiency over a window, with its evidence."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import BigInteger, ColumnElement, Integer, cast, func, select, union
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.ext.asyncio import AsyncConnection

from app.analytics.efficiency import Status, efficiency_ratio, judge
from app.analytics.freshness import as_of
from app.analytics.pairing import Mapping, MeterMinute, Pairing, VehicleMinute, pair
from app.analytics.window import Window
from app.errors import NoChargingData
from app.tables import meter_minute, vehicle, vehicle_meter, vehicle_minute

_FAR_US = 10**18
"""Microseconds to an instant beyond any window."""


class Coverage(msgspec.Struct, frozen=True):
    """The vehicle's minutes, each counted once: paired, else shared, else unpaired."""

    minutes: int
    paired: int
    shared: int
    unpaired: int


class Performance(msgspec.Struct, frozen=True, rename="camel"):
    """Energy in kWh, averages over readings in percent and °C.

    `total_dc_delivery` is all DC of the window; `total_ac_consumption`, `efficiency_ratio` and `energy_loss_kwh` are of
    the paired minutes. `data_points` counts the vehicle's readings. Readings committed before `as_of` are all in.
    """

    vehicle_id: str
    time_window_hours: float
    from_: datetime = msgspec.field(name="from")
    to: datetime
    total_ac_consumption: float
    total_dc_delivery: float
    efficiency_ratio: float | None
    avg_soc: float | None
    avg_battery_temp: float | None
    data_points: int
    energy_loss_kwh: float
    coverage: Coverage
    status: Status
    alert: str | None
    as_of: datetime | None


class _Sums(NamedTuple):
    """A vehicle's minutes at one of the meters that its readings name (None: they name none), and sums over them."""

    meter_id: int | None
    minutes: list[int]
    dc_milliwh: list[int]
    readings: int
    soc_centipercent: int | None
    soc_readings: int
    battery_temp_centic: int | None
    battery_temp_readings: int


async def fetch_performance(
    connection: AsyncConnection, vehicle_id: str, window: Window, *, gap_minutes: int, low_efficiency: float
) -> Performance:
    """Raises NoChargingData when the vehicle has no reading in the window, or is not known."""
    fresh = await as_of(connection, "vehicle_minute", "meter_minute")
    internal_id = await connection.scalar(select(vehicle.c.id).where(vehicle.c.external_id == vehicle_id))
    own = await _own_minutes(connection, internal_id, window) if internal_id is not None else []
    if internal_id is None or not own:
        raise NoChargingData(f"No charging data found in last {window.hours:g} hours", vehicleId=vehicle_id)

    pairing = await _fetch_pairing(connection, internal_id, own, window, gap_minutes)
    status, alert = judge(pairing, low_efficiency=low_efficiency)
    return Performance(
        vehicle_id=vehicle_id,
        time_window_hours=window.hours,
        from_=window.start,
        to=window.end,
        total_ac_consumption=pairing.paired_ac_milliwh / 1_000_000,
        total_dc_delivery=sum(sum(at.dc_milliwh) for at in own) / 1_000_000,
        efficiency_ratio=efficiency_ratio(pairing),
        avg_soc=_average((at.soc_centipercent, at.soc_readings) for at in own),
        avg_battery_temp=_average((at.battery_temp_centic, at.battery_temp_readings) for at in own),
        data_points=sum(at.readings for at in own),
        energy_loss_kwh=(pairing.paired_ac_milliwh - pairing.paired_dc_milliwh) / 1_000_000,
        coverage=Coverage(pairing.minutes, pairing.paired, pairing.shared, pairing.unpaired),
        status=status,
        alert=alert,
        as_of=fresh,
    )


async def _own_minutes(connection: AsyncConnection, vehicle_id: int, window: Window) -> list[_Sums]:
    minute = vehicle_minute(window.first_minute, window.end_minute)
    # A day has 1,440 minutes: as arrays they cost a tenth of what as many rows do.
    statement = (
        select(
            minute.c.meter_id,
            func.array_agg(_number_of(minute.c.bucket)),
            func.array_agg(minute.c.dc_milliwh),
            cast(func.sum(minute.c.readings), BigInteger),
            cast(func.sum(minute.c.soc_centipercent_sum), BigInteger),
            cast(func.sum(minute.c.soc_readings), BigInteger),
            cast(func.sum(minute.c.battery_temp_centic_sum), BigInteger),
            cast(func.sum(minute.c.battery_temp_readings), BigInteger),
        )
        .where(minute.c.vehicle_id == vehicle_id)
        .group_by(minute.c.meter_id)
    )
    return [_Sums(*row) for row in await connection.execute(statement)]


async def _fetch_pairing(
    connection: AsyncConnection, vehicle_id: int, own: list[_Sums], window: Window, gap_minutes: int
) -> Pairing:
    """Pairs the vehicle's minutes, after fetching its meters' minutes and those of the vehicles that may share them.

    Each side is fetched by itself: as one anti-join it takes 80 times as long.
    """
    mappings = await _mappings(connection, vehicle_meter.c.vehicle_id == vehicle_id, window)
    meters = {at.meter_id for at in own if at.meter_id is not None} | {mapping.meter_id for mapping in mappings}
    delivered = [
        VehicleMinute(vehicle_id, minute, at.meter_id, milliwh)
        for at in own
        for minute, milliwh in zip(at.minutes, at.dc_milliwh, strict=True)
    ]
    if not meters:
        return pair(vehicle_id, delivered, [], [], gap_minutes=gap_minutes)

    consumed = await _meter_minutes(connection, meters, window)
    if sharers := await _sharers(connection, vehicle_id, meters, window):
        delivered += await _vehicle_minutes(connection, sharers, window)
        mappings += await _mappings(connection, vehicle_meter.c.vehicle_id.in_(sharers), window)
    return pair(vehicle_id, delivered, consumed, mappings, gap_minutes=gap_minutes)


async def _meter_minutes(connection: AsyncConnection, meters: set[int], window: Window) -> list[MeterMinute]:
    minute = meter_minute(window.first_minute, window.end_minute)
    statement = (
        select(
            minute.c.meter_id,
            func.array_agg(_number_of(minute.c.bucket)),
            func.array_agg(minute.c.ac_milliwh),
        )
        .where(minute.c.meter_id.in_(meters))
        .group_by(minute.c.meter_id)
    )
    return [
        MeterMinute(meter_id, number, milliwh)
        for meter_id, numbers, energies in await connection.execute(statement)
        for number, milliwh in zip(numbers, energies, strict=True)
    ]


async def _sharers(connection: AsyncConnection, vehicle_id: int, meters: set[int], window: Window) -> set[int]:
    """The other vehicles whose readings name one of the meters, or that are mapped to one."""
    minute = vehicle_minute(window.first_minute, window.end_minute)
    named = select(minute.c.vehicle_id).where(minute.c.meter_id.in_(meters), minute.c.vehicle_id != vehicle_id)
    mapped = select(vehicle_meter.c.vehicle_id).where(
        vehicle_meter.c.meter_id.in_(meters), vehicle_meter.c.vehicle_id != vehicle_id, _valid_in(window)
    )
    return set(await connection.scalars(union(named, mapped)))


async def _vehicle_minutes(connection: AsyncConnection, vehicles: set[int], window: Window) -> list[VehicleMinute]:
    minute = vehicle_minute(window.first_minute, window.end_minute)
    statement = (
        select(
            minute.c.vehicle_id,
            minute.c.meter_id,
            func.array_agg(_number_of(minute.c.bucket)),
            func.array_agg(minute.c.dc_milliwh),
        )
        .where(minute.c.vehicle_id.in_(vehicles))
        .group_by(minute.c.vehicle_id, minute.c.meter_id)
    )
    return [
        VehicleMinute(vehicle_id, number, meter_id, milliwh)
        for vehicle_id, meter_id, numbers, energies in await connection.execute(statement)
        for number, milliwh in zip(numbers, energies, strict=True)
    ]


async def _mappings(connection: AsyncConnection, of: ColumnElement[bool], window: Window) -> list[Mapping]:
    rows = await connection.execute(
        select(vehicle_meter.c.vehicle_id, vehicle_meter.c.meter_id, vehicle_meter.c.valid).where(of, _valid_in(window))
    )
    return [
        Mapping(vehicle, meter, _us(valid.lower, -_FAR_US), _us(valid.upper, _FAR_US)) for vehicle, meter, valid in rows
    ]


def _valid_in(window: Window) -> ColumnElement[bool]:
    overlap: ColumnElement[bool] = vehicle_meter.c.valid.overlaps(Range(window.first_minute, window.end_minute))
    return overlap


def _number_of(bucket: ColumnElement[Any]) -> ColumnElement[int]:
    """The minute's number since 1970-01-01 UTC."""
    return cast(func.date_part("epoch", bucket) / 60, Integer)


def _us(instant: datetime | None, unlimited: int) -> int:
    return unlimited if instant is None else round(instant.timestamp() * 1_000_000)


def _average(sums: Iterable[tuple[int | None, int]]) -> float | None:
    """The average of hundredths, from sums and counts; None over no readings."""
    hundredths, readings = (sum(filter(None, column)) for column in zip(*sums, strict=True))
    return hundredths / (100 * readings) if readings else None
