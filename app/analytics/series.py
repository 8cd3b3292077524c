"""Readings over time: a device's or the fleet's buckets, as columns."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.analytics.buckets import Buckets
from app.analytics.efficiency.counter import Numbers
from app.analytics.efficiency.evidence import fetch_sides, near, pair_in_thread, us
from app.analytics.efficiency.pairs import Flow, Flows, Pairs
from app.analytics.efficiency.rhythm import MINUTE_US
from app.analytics.efficiency.rows import NO_ROWS, Rows
from app.analytics.freshness import fetch_instants
from app.analytics.minutes import fetch_minutes, known_where
from app.analytics.power import fetch_power_rows, power_columns, power_reach
from app.analytics.series_source import METER, VEHICLE, Bucket, Source
from app.database import fetch_all, snapshot
from app.errors import InvalidTimeRange
from app.fleet.limits import fetch_limits
from app.fleet.registry import device_id_of
from app.settings import Settings
from app.tables import meter, vehicle
from app.telemetry.instant import MAX_AHEAD
from app.telemetry.reading import Stream

# Over less time, the efficiency depends on the two clocks: ten minutes give 0.77 to 1.11 for a truth of 0.9.
_EFFICIENCY_MINUTES = 60
# A chart of a year must not pair all minutes kept. Pairing a month takes 0.1 s, and fetching it comes on top.
EFFICIENCY_REACH = timedelta(days=31)


class MeterColumns(msgspec.Struct, frozen=True, rename="camel"):
    """AC energy in kWh, voltage in V, power in kW. `t` is each bucket's start, in seconds since 1970 UTC.

    Power is a mean, with the energy of each reading spread over the time since the one before; null where it is not
    known when energy flowed, and in hours more than 31 days before the end.
    """

    t: list[int]
    ac_kwh: list[float]
    readings: list[int]
    avg_voltage: list[float | None]
    min_voltage: list[float | None]
    max_voltage: list[float | None]
    power_kw: list[float | None]


class VehicleColumns(msgspec.Struct, frozen=True, rename="camel"):
    """DC energy in kWh, state of charge in percent, temperature in °C. `t` and `power_kw` are as for a meter.

    `efficiency_ratio` is over the paired time in the bucket, `paired_minutes` counts them. In one-minute buckets
    both cover the 60 minutes that end with the bucket: a single minute compares clocks, not losses. Both are null where
    minutes are no longer kept, more than 31 days before the end, and where too many vehicles share the meter.
    """

    t: list[int]
    dc_kwh: list[float]
    readings: list[int]
    avg_soc: list[float | None]
    min_soc: list[float | None]
    max_soc: list[float | None]
    avg_battery_temp: list[float | None]
    min_battery_temp: list[float | None]
    max_battery_temp: list[float | None]
    power_kw: list[float | None]
    paired_minutes: list[int | None]
    efficiency_ratio: list[float | None]


class Series(msgspec.Struct, frozen=True, rename="camel"):
    """The members that every series has; `id` is the device's name, or `fleet`."""

    id: str
    bucket: Bucket
    from_: datetime = msgspec.field(name="from")
    to: datetime
    as_of: datetime | None
    materialized_through: datetime | None
    kept_from: datetime | None


class MeterSeries(Series, frozen=True, rename="camel"):
    """A meter's buckets that have readings, in order. All readings committed before `as_of` are included.

    Buckets before `kept_from` are no longer kept; null means that all are kept. `peak_kw` is the greatest mean power
    over 15 minutes; null in buckets wider than a minute, and where none is known.
    """

    peak_kw: float | None
    columns: MeterColumns


class VehicleSeries(Series, frozen=True, rename="camel"):
    """A vehicle's buckets that have readings, in order. All readings committed before `as_of` are included.

    Buckets before `kept_from` are no longer kept; null means that all are kept. `peak_kw` is the greatest mean power
    over 15 minutes; null in buckets wider than a minute, and where none is known.
    """

    peak_kw: float | None
    columns: VehicleColumns


async def fetch_meter_series(pool: AsyncEngine, meter_id: str, buckets: Buckets, settings: Settings) -> MeterSeries:
    """Returns a meter's series. Raises UnknownDevice."""
    async with pool.connect() as connection:
        device = await device_id_of(connection, meter, meter_id)
        instants = await fetch_instants(connection, *METER.aggregates[buckets.source])
        buckets.refuse_dropped(instants.kept_from)
        async with snapshot(connection):
            sums, rows = await _fetch_device(connection, METER, Stream.METER, device, buckets, power_reach(buckets))
            if rows is None:
                rows = await fetch_power_rows(connection, Stream.METER, device, buckets)
            limits = await fetch_limits(connection, Stream.METER, [device], max_power_kw=settings.max_power_kw)
    powers, peak = await power_columns(rows, limits[device], sums[0], sums[1], buckets)
    return MeterSeries(meter_id, *buckets[:3], *instants, peak, MeterColumns(*[*sums, powers]))


async def fetch_vehicle_series(
    pool: AsyncEngine, vehicle_id: str, buckets: Buckets, settings: Settings
) -> VehicleSeries:
    """Returns a vehicle's series. Raises UnknownDevice."""
    sides = None
    async with pool.connect() as connection:
        device = await device_id_of(connection, vehicle, vehicle_id)
        minutes = await fetch_instants(connection, "vehicle_minute", "meter_minute")
        instants = minutes
        if buckets.width != "1m":
            instants = await fetch_instants(connection, *VEHICLE.aggregates[buckets.source])
        buckets.refuse_dropped(instants.kept_from)
        bounds = efficiency_bounds(buckets, minutes.kept_from, datetime.now(UTC))
        async with snapshot(connection):
            reach = near(*bounds, settings)
            sums, own = await _fetch_device(connection, VEHICLE, Stream.VEHICLE, device, buckets, reach)
            if sums[0] and bounds[0] < bounds[1]:
                with suppress(InvalidTimeRange):  # too many vehicles share its meters, so there is no efficiency
                    rows_of = None if own is None else {device: own}
                    sides = await fetch_sides(connection, [device], *bounds, settings, rows=rows_of)
            if sides is None:
                rows = await fetch_power_rows(connection, Stream.VEHICLE, device, buckets)
                limits = await fetch_limits(connection, Stream.VEHICLE, [device], max_power_kw=settings.max_power_kw)
            else:
                rows, limits = sides.vehicles.get(device, NO_ROWS), sides.vehicle_limits

    efficiency: tuple[list[Any], list[Any]] = [None] * len(sums[0]), [None] * len(sums[0])
    if sides is not None:
        pairs = (await pair_in_thread(sides, [device], settings))[device]
        efficiency = _efficiency(sums[0], buckets, pairs, bounds[0])
    powers, peak = await power_columns(rows, limits[device], sums[0], sums[1], buckets)
    columns = VehicleColumns(*[*sums, powers, *efficiency])
    both = [instant for instant in (instants.as_of, minutes.as_of) if instant is not None]
    as_of = min(both) if len(both) == 2 else None
    return VehicleSeries(vehicle_id, *buckets[:3], *instants._replace(as_of=as_of), peak, columns)


def efficiency_bounds(buckets: Buckets, kept_from: datetime | None, now: datetime) -> tuple[datetime, datetime]:
    """Returns the range of minutes for the efficiency: from an hour before the buckets, if minutes are kept so long."""
    end = min(buckets.end, (now + MAX_AHEAD).replace(second=0, microsecond=0) + timedelta(minutes=1))
    start = max(buckets.start - timedelta(minutes=_EFFICIENCY_MINUTES), end - EFFICIENCY_REACH)
    if kept_from is not None and kept_from > start:
        start = kept_from.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    return start, end


async def _fetch_device(
    connection: AsyncConnection,
    source: Source,
    stream: Stream,
    device: int,
    buckets: Buckets,
    reach: tuple[datetime, datetime],
) -> tuple[list[list[Any]], Rows | None]:
    """Returns a device's columns. Of minutes, the same read also gives the rows in `reach`."""
    if buckets.width != "1m":
        return await fetch_columns(connection, source, buckets, [device]), None
    start, end = min(buckets.start, reach[0]), max(buckets.end, reach[1])
    minutes = await fetch_minutes(connection, stream, device, start, end)
    return minutes.between(buckets.start, buckets.end).columns(), minutes.between(*reach).rows


async def fetch_columns(
    connection: AsyncConnection, source: Source, buckets: Buckets, devices: list[int] | None = None
) -> list[list[Any]]:
    """Fetches each column as one array: no object per point is made between the database and the encoder."""
    statements = source.statements if buckets.zone is None else source.statements_of_zone
    bounds = buckets.bounds
    parameters = {"range_from": buckets.start, "range_to": buckets.end, "devices": devices, "bounds": [*bounds]}
    (columns,) = await fetch_all(connection, statements[buckets.source], parameters, binary=True)
    starts, *values = [column or [] for column in columns]
    return [[int(bounds[number - 1].timestamp()) for number in starts] if bounds else starts, *values]


def _efficiency(
    starts: list[int], buckets: Buckets, pairs: Pairs, kept_from: datetime
) -> tuple[list[int | None], list[float | None]]:
    """Returns each bucket's paired minutes and efficiency; None where not all of its minutes are kept."""
    ends = 1_000_000 * np.array(buckets.ends(starts), np.int64)
    begins = np.minimum(1_000_000 * np.array(starts, np.int64), ends - _EFFICIENCY_MINUTES * MINUTE_US)
    # Most of the instants at which spans begin are those at which others end.
    instants, places = np.unique(np.concatenate([begins, ends]), return_inverse=True)
    flows = [pair.flows for meter_id, pair in pairs.items() if meter_id is not None]

    def flowed(of_pair: Callable[[Flows], Flow]) -> Numbers:
        until = sum((of_pair(flow).until_each(instants) for flow in flows), np.zeros_like(instants))
        before, after = np.split(until[places], 2)
        in_buckets: Numbers = after - before
        return in_buckets

    time_us, ac, dc = (flowed(attrgetter(name)) for name in ("paired_us", "paired_ac_milliwh", "paired_dc_milliwh"))
    is_whole = begins >= us(kept_from)
    paired = known_where(is_whole, np.rint(time_us / MINUTE_US).astype(np.int64))
    return paired, known_where(is_whole & (ac != 0), dc / np.where(ac, ac, 1))
