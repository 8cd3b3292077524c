"""The latest state of every device."""

from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Select, Table, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.tables import meter, meter_state, vehicle, vehicle_state

# A device is silent after ten intervals of about a minute without a reading.
REPORTING_MINUTES = 10

# It counts meters and vehicles alike.
DEVICES_IN_SERVICE = f"""
    SELECT count(*) AS expected,
           count(*) FILTER (WHERE ts > now() - INTERVAL '{REPORTING_MINUTES} minutes') AS reporting,
           count(*) FILTER (WHERE ts > now() - INTERVAL '1 day') AS reported_today
    FROM device
    WHERE in_service
"""  # noqa: S608 - of constants


class MeterState(msgspec.Struct, frozen=True, rename="camel"):
    """A meter's latest reading as it was sent: in kWh, its energy since the reading before or its register; V."""

    meter_id: str
    kwh_consumed_ac: float | None
    kwh_register_ac: float | None
    voltage: float | None
    last_updated: datetime
    site: str | None


class VehicleState(msgspec.Struct, frozen=True, rename="camel"):
    """A vehicle's latest reading as it was sent: charge in percent, energy or register in kWh, temperature in °C."""

    vehicle_id: str
    soc: float | None
    kwh_delivered_dc: float | None
    kwh_register_dc: float | None
    battery_temp: float | None
    last_updated: datetime
    site: str | None


async def meter_states(
    connection: AsyncConnection, *, limit: int | None, after: str | None, site: str | None = None
) -> list[MeterState]:
    """Returns meters in service that have reported, by id: all, or at most `limit` that follow `after`."""
    statement = (
        select(
            meter.c.external_id,
            meter_state.c.ac_milliwh,
            meter_state.c.register_milliwh,
            meter_state.c.voltage_centiv,
            meter_state.c.ts,
            meter.c.site,
        )
        .join_from(meter_state, meter)
        .where(func.in_service(meter.c.retired_at, meter_state.c.ts))
    )
    rows = await connection.execute(_page(statement, meter, limit, after, site))
    return [
        MeterState(name, _kwh(energy), _kwh(register), _hundredth(voltage), ts, where)
        for name, energy, register, voltage, ts, where in rows
    ]


async def vehicle_states(
    connection: AsyncConnection, *, limit: int | None, after: str | None, site: str | None = None
) -> list[VehicleState]:
    """Returns vehicles in service that have reported, by id: all, or at most `limit` that follow `after`."""
    statement = (
        select(
            vehicle.c.external_id,
            vehicle_state.c.soc_centipercent,
            vehicle_state.c.dc_milliwh,
            vehicle_state.c.register_milliwh,
            vehicle_state.c.battery_temp_centic,
            vehicle_state.c.ts,
            vehicle.c.site,
        )
        .join_from(vehicle_state, vehicle)
        .where(func.in_service(vehicle.c.retired_at, vehicle_state.c.ts))
    )
    rows = await connection.execute(_page(statement, vehicle, limit, after, site))
    return [
        VehicleState(name, _hundredth(soc), _kwh(energy), _kwh(register), _hundredth(temperature), ts, where)
        for name, soc, energy, register, temperature, ts, where in rows
    ]


def _page(statement: Select[Any], device: Table, limit: int | None, after: str | None, site: str | None) -> Select[Any]:
    if after is not None:
        statement = statement.where(device.c.external_id > after)
    if site is not None:
        statement = statement.where(device.c.site == site)
    return statement.order_by(device.c.external_id).limit(limit)


def _kwh(milliwh: int | None) -> float | None:
    return None if milliwh is None else milliwh / 1_000_000


def _hundredth(value: int | None) -> float | None:
    return None if value is None else value / 100
