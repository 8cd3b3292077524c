"""One vehicle's efficiency over a window, with its evidence."""

import asyncio
from collections.abc import Iterable
from datetime import datetime
from itertools import repeat, starmap
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import BigInteger, ColumnElement, Integer, bindparam, cast, func, select, union
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


class _Own(NamedTuple):
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


async def fetch_performance(
    connection: AsyncConnection, vehicle_id: str, window: Window, *, gap_minutes: int, low_efficiency: float
) -> Performance:
    """Raises NoChargingData when the vehicle has no reading in the window, or is not known."""
    bounds = {"range_from": window.first_minute, "range_to": window.end_minute}
    fresh = await as_of(connection, "vehicle_minute", "meter_minute")
    own = [_Own(*row) for row in await connection.execute(_OWN, {"external_id": vehicle_id, **bounds})]
    if not own:
        raise NoChargingData(f"No charging data found in last {window.hours:g} hours", vehicleId=vehicle_id)

    pairing = await _fetch_pairing(connection, own, bounds, gap_minutes)
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


async def _fetch_pairing(
    connection: AsyncConnection, own: list[_Own], bounds: dict[str, datetime], gap_minutes: int
) -> Pairing:
    """Pairs the vehicle's minutes, after fetching its meters' minutes and those of the vehicles that may share them.

    Each side is fetched by itself: as one anti-join it takes 80 times as long.
    """
    vehicle_id = own[0].vehicle_id
    mappings = await _mappings(connection, bounds, {vehicle_id})
    meters = {at.meter_id for at in own if at.meter_id is not None} | {mapping.meter_id for mapping in mappings}
    delivered: list[VehicleMinute] = []
    for at in own:
        delivered += starmap(
            VehicleMinute, zip(repeat(vehicle_id), at.minutes, repeat(at.meter_id), at.dc_milliwh, strict=False)
        )
    consumed: list[MeterMinute] = []
    if meters:
        for meter_id, minutes, energies in await connection.execute(_METERS, {"meters": meters, **bounds}):
            consumed += starmap(MeterMinute, zip(repeat(meter_id), minutes, energies, strict=False))
        selected = {"vehicle": vehicle_id, "meters": meters, **bounds}
        if sharers := set(await connection.scalars(_SHARERS, selected)):
            for other, meter_id, minutes, energies in await connection.execute(
                _OTHERS, {"vehicles": sharers, **bounds}
            ):
                delivered += starmap(
                    VehicleMinute, zip(repeat(other), minutes, repeat(meter_id), energies, strict=False)
                )
            mappings += await _mappings(connection, bounds, sharers)
    # Not in the event loop: 90 days of a meter that many share take seconds.
    return await asyncio.to_thread(pair, vehicle_id, delivered, consumed, mappings, gap_minutes=gap_minutes)


async def _mappings(connection: AsyncConnection, bounds: dict[str, datetime], vehicles: set[int]) -> list[Mapping]:
    rows = await connection.execute(_MAPPINGS, {"vehicles": vehicles, **bounds})
    return [
        Mapping(vehicle_id, meter_id, _us(valid.lower, -_FAR_US), _us(valid.upper, _FAR_US))
        for vehicle_id, meter_id, valid in rows
    ]


def _us(instant: datetime | None, unlimited: int) -> int:
    return unlimited if instant is None else round(instant.timestamp() * 1_000_000)


def _average(sums: Iterable[tuple[int | None, int]]) -> float | None:
    """The average of hundredths, from sums and counts; None over no readings."""
    hundredths, readings = (sum(filter(None, column)) for column in zip(*sums, strict=True))
    return hundredths / (100 * readings) if readings else None


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

# The vehicles besides one whose readings name some meters, or that are mapped to them.
_SHARERS = union(
    select(vehicle_minute.c.vehicle_id).where(
        vehicle_minute.c.meter_id.in_(bindparam("meters", expanding=True)),
        vehicle_minute.c.vehicle_id != bindparam("vehicle"),
    ),
    select(vehicle_meter.c.vehicle_id).where(
        vehicle_meter.c.meter_id.in_(bindparam("meters", expanding=True)),
        vehicle_meter.c.vehicle_id != bindparam("vehicle"),
        _valid_in_range,
    ),
)

# The DC energy of some vehicles, at whatever meter.
_OTHERS = (
    select(
        vehicle_minute.c.vehicle_id,
        vehicle_minute.c.meter_id,
        _numbers(vehicle_minute.c.bucket),
        func.array_agg(vehicle_minute.c.dc_milliwh),
    )
    .where(vehicle_minute.c.vehicle_id.in_(bindparam("vehicles", expanding=True)))
    .group_by(vehicle_minute.c.vehicle_id, vehicle_minute.c.meter_id)
)

# The mappings of some vehicles.
_MAPPINGS = select(vehicle_meter.c.vehicle_id, vehicle_meter.c.meter_id, vehicle_meter.c.valid).where(
    vehicle_meter.c.vehicle_id.in_(bindparam("vehicles", expanding=True)), _valid_in_range
)
