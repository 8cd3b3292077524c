"""The export of a device's readings as they were sent: CSV or NDJSON that `wattline import` reads, streamed in pages.

Each page has its own snapshot and connection, so a slow client holds neither, and retention does not wait for it.
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
from app.database import reading, snapshot
from app.errors import StoreUnavailable
from app.fleet.registry import device_id_of
from app.tables import meter, meter_reading, vehicle, vehicle_reading

NDJSON = "application/x-ndjson"
# An export runs a query for each of its days, even for days without readings.
MAX_EXPORT_DAYS = 366
# The process does nothing else while it encodes a page.
PAGE_READINGS = 5_000

_log = structlog.get_logger()
_encode_lines = msgspec.json.Encoder().encode_lines


class MeterLine(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A line of a meter's export: a reading as a gateway posts it."""

    timestamp: str
    meter_id: str
    kwh_consumed_ac: float | None = None
    kwh_register_ac: float | None = None
    voltage: float | None = None


class VehicleLine(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A line of a vehicle's export: a reading as a gateway posts it."""

    timestamp: str
    vehicle_id: str
    kwh_delivered_dc: float | None = None
    kwh_register_dc: float | None = None
    meter_id: str | None = None
    soc: float | None = None
    battery_temp: float | None = None


Line = MeterLine | VehicleLine
Page = Sequence[Row[Any]]


class ExportedStream(NamedTuple):
    """A stream's table of devices, the statements of an export, and the function that makes lines of their rows.

    `page` selects readings of a device, and `at` selects the one at an instant.
    """

    device: Table
    page: Select[Any]
    at: Select[Any]
    kind: type[Line]
    line: Callable[..., Line]


async def export_readings(
    pool: AsyncEngine, stream: ExportedStream, external_id: str, window: Window, accept: Accept
) -> Stream:
    """Returns the export of a device's readings in the window, in order of time. Raises UnknownDevice.

    It holds each reading that was stored before it began, once; it may hold readings stored meanwhile. An export that
    cannot deliver all of them is broken off, so that its end is missing.
    """
    async with reading(pool) as connection:
        device = await device_id_of(connection, stream.device, external_id)
    pages = _pages(pool, stream, device, window)
    # The first page is read before the answer begins, since only then can a problem document answer a failure.
    first: Page = await anext(pages, [])
    media_type = accept.best_match([CSV, NDJSON], CSV)
    ending = "csv" if media_type == CSV else "ndjson"
    headers = {
        "Vary": "Accept",
        "Content-Disposition": f'attachment; filename="{external_id}-readings.{ending}"',
    }
    return Stream(_pieces(stream, external_id, first, pages, media_type), headers=headers, media_type=media_type)


async def _pages(pool: AsyncEngine, stream: ExportedStream, device: int, window: Window) -> AsyncIterator[Page]:
    """Yields the rows. No page has rows of two UTC days, so that each statement reads one chunk or partition."""
    start, last = window.start, None
    while start < window.end:
        end = min(datetime.combine(start.date() + timedelta(days=1), time(0), UTC), window.end)
        async with pool.connect() as connection, snapshot(connection):
            rows = (await connection.execute(stream.page, {"device": device, "start": start, "end": end})).all()
            # Retention goes from old to new: while the last exported reading is stored, none after it was dropped.
            if last and not (await connection.execute(stream.at, {"device": device, "ts": last})).all():
                raise StoreUnavailable("Readings were dropped while they were exported.")
        if rows:
            last = rows[-1].ts
            yield rows
        start = last + timedelta(microseconds=1) if last and len(rows) == PAGE_READINGS else end


async def _pieces(
    stream: ExportedStream, external_id: str, first: Page, pages: AsyncIterator[Page], media_type: str
) -> AsyncIterator[str | bytes]:
    is_csv = media_type == CSV
    if is_csv:
        yield csv_text([[field.encode_name for field in msgspec.structs.fields(stream.kind)]])
    page: Page | None = first
    while page:
        lines = [stream.line(external_id, *row) for row in page]
        yield csv_text(map(msgspec.structs.astuple, lines)) if is_csv else _encode_lines(lines)
        try:
            page = await anext(pages, None)
        except Exception as error:
            # The server breaks off the transfer: with a proper end, half an export would look complete.
            _log.warning("export_broken_off", reason=str(error))
            raise


def _meter_line(
    external_id: str, ts: datetime, ac_milliwh: int, register_milliwh: int | None, voltage_centiv: int | None
) -> MeterLine:
    return MeterLine(stamp(ts), external_id, *_energies(ac_milliwh, register_milliwh), _hundredth(voltage_centiv))


def _vehicle_line(
    external_id: str,
    ts: datetime,
    dc_milliwh: int,
    register_milliwh: int | None,
    meter_id: str | None,
    soc_centipercent: int | None,
    battery_temp_centic: int | None,
) -> VehicleLine:
    soc, temperature = _hundredth(soc_centipercent), _hundredth(battery_temp_centic)
    energies = _energies(dc_milliwh, register_milliwh)
    return VehicleLine(stamp(ts), external_id, *energies, meter_id, soc, temperature)


def _energies(difference_milliwh: int, register_milliwh: int | None) -> tuple[float | None, float | None]:
    """Returns what was sent, in kWh: a difference or a register."""
    return (difference_milliwh / 1_000_000, None) if register_milliwh is None else (None, register_milliwh / 1_000_000)


def _hundredth(value: int | None) -> float | None:
    return None if value is None else value / 100


# The statements: the readings of :device in [:start, :end), in order, and the reading at :ts.


def _statements(readings: Select[Any], table: Table, device: str) -> tuple[Select[Any], Select[Any]]:
    of_device, ts = table.c[device] == bindparam("device"), table.c.ts
    page = readings.where(of_device, ts >= bindparam("start"), ts < bindparam("end")).order_by(ts).limit(PAGE_READINGS)
    return page, select(ts).where(of_device, ts == bindparam("ts"))


_OF_METER = select(
    meter_reading.c.ts,
    meter_reading.c.ac_milliwh,
    meter_reading.c.register_milliwh,
    meter_reading.c.voltage_centiv,
)
_OF_VEHICLE = select(
    vehicle_reading.c.ts,
    vehicle_reading.c.dc_milliwh,
    vehicle_reading.c.register_milliwh,
    meter.c.external_id,
    vehicle_reading.c.soc_centipercent,
    vehicle_reading.c.battery_temp_centic,
).outerjoin_from(vehicle_reading, meter, meter.c.id == vehicle_reading.c.meter_id)

METER_READINGS = ExportedStream(meter, *_statements(_OF_METER, meter_reading, "meter_id"), MeterLine, _meter_line)
VEHICLE_READINGS = ExportedStream(
    vehicle, *_statements(_OF_VEHICLE, vehicle_reading, "vehicle_id"), VehicleLine, _vehicle_line
)
