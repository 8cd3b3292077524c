"""A device's readings as they were sent, as CSV or NDJSON that `wattline import` takes back; streamed in pages.

Each page has a snapshot and a connection of its own: a slow client holds neither, nor does it keep retention waiting.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any, NamedTuple

import msgspec
import structlog
from litestar.datastructures import Accept
from litestar.response import Stream
from sqlalchemy import Row, Select, Table, bindparam, select
from sqlalchemy.ext.asyncio import AsyncEngine

from app.analytics.window import Window
from app.csv_rows import CSV, csv_text, stamp
from app.database import snapshot
from app.errors import StoreUnavailable
from app.fleet.registry import device_id_of
from app.tables import meter, meter_reading, vehicle, vehicle_reading

NDJSON = "application/x-ndjson"
# Each of its days is asked for, whether it has readings or not.
MAX_EXPORT_DAYS = 366
# While they are encoded, the process does nothing else.
PAGE_READINGS = 5_000

_log = structlog.get_logger()
_encode_lines = msgspec.json.Encoder().encode_lines


class MeterLine(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A meter's reading, as over HTTP."""

    timestamp: str
    meter_id: str
    kwh_consumed_ac: float
    voltage: float | None = None


class VehicleLine(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A vehicle's reading, as over HTTP."""

    timestamp: str
    vehicle_id: str
    kwh_delivered_dc: float
    meter_id: str | None = None
    soc: float | None = None
    battery_temp: float | None = None


Line = MeterLine | VehicleLine
Page = Sequence[Row[Any]]


class Exported(NamedTuple):
    """A stream: its devices, a page of a device's readings, its reading at an instant, and the line of a reading."""

    device: Table
    page: Select[Any]
    at: Select[Any]
    kind: type[Line]
    line: Callable[..., Line]


async def export_readings(
    pool: AsyncEngine, exported: Exported, external_id: str, window: Window, accept: Accept
) -> Stream:
    """The device's readings in the window, in order of time. Raises UnknownDevice.

    What was stored before the transfer began is in it, once; what is stored meanwhile may be. A transfer that cannot
    deliver all is broken off, so that its end is missing.
    """
    async with pool.connect() as connection:
        device = await device_id_of(connection, exported.device, external_id)
    pages = _pages(pool, exported, device, window)
    # Asked for before the answer begins: what fails here can still be told by a problem document.
    first: Page = await anext(pages, [])
    media_type = accept.best_match([CSV, NDJSON], CSV)
    ending = "csv" if media_type == CSV else "ndjson"
    headers = {
        "Vary": "Accept",
        "Content-Disposition": f'attachment; filename="{external_id}-readings.{ending}"',
    }
    return Stream(_pieces(exported, external_id, first, pages, media_type), headers=headers, media_type=media_type)


async def _pages(pool: AsyncEngine, exported: Exported, device: int, window: Window) -> AsyncIterator[Page]:
    """The rows; never of two UTC days at once, so that a statement reads one chunk or partition."""
    start, last = window.start, None
    while start < window.end:
        end = min(datetime.combine(start.date() + timedelta(days=1), time(0), UTC), window.end)
        async with pool.connect() as connection, snapshot(connection):
            rows = (await connection.execute(exported.page, {"device": device, "start": start, "end": end})).all()
            # Retention goes from old to new: while the last reading delivered is there, it has taken none after it.
            if last and not (await connection.execute(exported.at, {"device": device, "ts": last})).all():
                raise StoreUnavailable("Readings were dropped while they were exported.")
        if rows:
            last = rows[-1].ts
            yield rows
        start = last + timedelta(microseconds=1) if last and len(rows) == PAGE_READINGS else end


async def _pieces(
    exported: Exported, external_id: str, first: Page, pages: AsyncIterator[Page], media_type: str
) -> AsyncIterator[str | bytes]:
    is_csv = media_type == CSV
    if is_csv:
        yield csv_text([[field.encode_name for field in msgspec.structs.fields(exported.kind)]])
    page: Page | None = first
    while page:
        lines = [exported.line(external_id, *row) for row in page]
        yield csv_text(map(msgspec.structs.astuple, lines)) if is_csv else _encode_lines(lines)
        try:
            page = await anext(pages, None)
        except Exception as error:
            # The server breaks the transfer off; with a proper end, a part would look like the whole.
            _log.warning("export_broken_off", reason=str(error))
            raise


def _meter_line(external_id: str, ts: datetime, ac_milliwh: int, voltage_centiv: int | None) -> MeterLine:
    return MeterLine(stamp(ts), external_id, ac_milliwh / 1_000_000, _hundredth(voltage_centiv))


def _vehicle_line(
    external_id: str,
    ts: datetime,
    dc_milliwh: int,
    meter_id: str | None,
    soc_centipercent: int | None,
    battery_temp_centic: int | None,
) -> VehicleLine:
    soc, temperature = _hundredth(soc_centipercent), _hundredth(battery_temp_centic)
    return VehicleLine(stamp(ts), external_id, dc_milliwh / 1_000_000, meter_id, soc, temperature)


def _hundredth(value: int | None) -> float | None:
    return None if value is None else value / 100


# The readings of :device in [:start, :end), in order; and the one at :ts.


def _page(readings: Select[Any], table: Table, device: str) -> tuple[Select[Any], Select[Any]]:
    of_device, ts = table.c[device] == bindparam("device"), table.c.ts
    page = readings.where(of_device, ts >= bindparam("start"), ts < bindparam("end")).order_by(ts).limit(PAGE_READINGS)
    return page, select(ts).where(of_device, ts == bindparam("ts"))


_OF_METER = select(meter_reading.c.ts, meter_reading.c.ac_milliwh, meter_reading.c.voltage_centiv)
_OF_VEHICLE = select(
    vehicle_reading.c.ts,
    vehicle_reading.c.dc_milliwh,
    meter.c.external_id,
    vehicle_reading.c.soc_centipercent,
    vehicle_reading.c.battery_temp_centic,
).outerjoin_from(vehicle_reading, meter, meter.c.id == vehicle_reading.c.meter_id)

METERS = Exported(meter, *_page(_OF_METER, meter_reading, "meter_id"), MeterLine, _meter_line)
VEHICLES = Exported(vehicle, *_page(_OF_VEHICLE, vehicle_reading, "vehicle_id"), VehicleLine, _vehicle_line)
