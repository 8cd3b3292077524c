"""One vehicle's efficiency over a window, with its evidence."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Row, select, union
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.ext.asyncio import AsyncConnection

from app.analytics.efficiency import Status, efficiency_ratio, judge
from app.analytics.freshness import as_of
from app.analytics.pairing import Mapping, MeterMinute, Pairing, VehicleMinute, pair
from app.analytics.window import Window
from app.errors import NoChargingData
from app.tables import meter_minute, vehicle, vehicle_meter, vehicle_minute

Minutes = Sequence[Row[*tuple[Any, ...]]]

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


class _Totals(NamedTuple):
    """Sums over a vehicle's minutes."""

    dc_milliwh: int
    readings: int
    soc_centipercent: int
    soc_readings: int
    battery_temp_centic: int
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
    totals = _Totals(*(sum(filter(None, column)) for column in list(zip(*own, strict=True))[2:]))
    status, alert = judge(pairing, low_efficiency=low_efficiency)
    return Performance(
        vehicle_id=vehicle_id,
        time_window_hours=window.hours,
        from_=window.start,
        to=window.end,
        total_ac_consumption=pairing.paired_ac_milliwh / 1_000_000,
        total_dc_delivery=totals.dc_milliwh / 1_000_000,
        efficiency_ratio=efficiency_ratio(pairing),
        avg_soc=_average(totals.soc_centipercent, totals.soc_readings),
        avg_battery_temp=_average(totals.battery_temp_centic, totals.battery_temp_readings),
        data_points=totals.readings,
        energy_loss_kwh=(pairing.paired_ac_milliwh - pairing.paired_dc_milliwh) / 1_000_000,
        coverage=Coverage(pairing.minutes, pairing.paired, pairing.shared, pairing.unpaired),
        status=status,
        alert=alert,
        as_of=fresh,
    )


async def _own_minutes(connection: AsyncConnection, vehicle_id: int, window: Window) -> Minutes:
    minute = vehicle_minute(window.first_minute, window.end_minute)
    statement = select(
        minute.c.bucket,
        minute.c.meter_id,
        minute.c.dc_milliwh,
        minute.c.readings,
        minute.c.soc_centipercent_sum,
        minute.c.soc_readings,
        minute.c.battery_temp_centic_sum,
        minute.c.battery_temp_readings,
    ).where(minute.c.vehicle_id == vehicle_id)
    return (await connection.execute(statement)).all()


async def _fetch_pairing(
    connection: AsyncConnection, vehicle_id: int, own: Minutes, window: Window, gap_minutes: int
) -> Pairing:
    """Pairs the vehicle's minutes, after fetching its meters' minutes and those of the vehicles that may share them.

    Each side is fetched by itself: as one anti-join it takes 80 times as long.
    """
    mappings = await _mappings(connection, vehicle_meter.c.vehicle_id == vehicle_id, window)
    meters = {row.meter_id for row in own if row.meter_id is not None} | {mapping.meter_id for mapping in mappings}
    minutes = [VehicleMinute(vehicle_id, _minute(row.bucket), row.meter_id, row.dc_milliwh) for row in own]
    if not meters:
        return pair(vehicle_id, minutes, [], [], gap_minutes=gap_minutes)

    consumed = meter_minute(window.first_minute, window.end_minute)
    ac = await connection.execute(
        select(consumed.c.meter_id, consumed.c.bucket, consumed.c.ac_milliwh).where(consumed.c.meter_id.in_(meters))
    )
    sharers = await _sharers(connection, vehicle_id, meters, window)
    if sharers:
        minutes += await _vehicle_minutes(connection, sharers, window)
        mappings += await _mappings(connection, vehicle_meter.c.vehicle_id.in_(sharers), window)
    return pair(
        vehicle_id,
        minutes,
        (MeterMinute(meter_id, _minute(bucket), milliwh) for meter_id, bucket, milliwh in ac),
        mappings,
        gap_minutes=gap_minutes,
    )


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
    rows = await connection.execute(
        select(minute.c.vehicle_id, minute.c.bucket, minute.c.meter_id, minute.c.dc_milliwh).where(
            minute.c.vehicle_id.in_(vehicles)
        )
    )
    return [VehicleMinute(vehicle, _minute(bucket), meter, milliwh) for vehicle, bucket, meter, milliwh in rows]


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


def _minute(bucket: datetime) -> int:
    return int(bucket.timestamp()) // 60


def _us(instant: datetime | None, unlimited: int) -> int:
    return unlimited if instant is None else round(instant.timestamp() * 1_000_000)


def _average(hundredths: int, readings: int) -> float | None:
    return hundredths / readings / 100 if readings else None
