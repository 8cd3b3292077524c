"""The power that a device can take: its own limit, else that of the service."""

from collections.abc import Collection

from sqlalchemy import ColumnElement, Integer, Table, any_, bindparam, func, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import fetch_all
from app.tables import meter, vehicle
from app.telemetry.reading import Stream

MILLIWATT_PER_KW = 1_000_000


async def fetch_limits(
    connection: AsyncConnection, stream: Stream, devices: Collection[int], *, max_power_kw: float
) -> dict[int, int]:
    """Returns the limit of each of these devices, in milliwatt; `max_power_kw` is that of devices without their own."""
    parameters = {"devices": [*devices], "default": limit_of(max_power_kw)}
    return dict(await fetch_all(connection, _LIMITS[stream], parameters))


def limit_of(kw: float) -> int:
    """Returns a limit in kW as milliwatt."""
    return round(kw * MILLIWATT_PER_KW)


def max_milliwatt(device: Table) -> ColumnElement[int]:
    """Returns the limit of a meter or vehicle as a column: its own, else :default."""
    return func.coalesce(device.c.max_milliwatt, bindparam("default")).label("milliwatt")


_LIMITS = {
    Stream(device.name): select(device.c.id, max_milliwatt(device)).where(
        device.c.id == any_(bindparam("devices", type_=ARRAY(Integer)))
    )
    for device in (meter, vehicle)
}
