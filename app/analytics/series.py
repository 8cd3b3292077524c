"""Readings over time: a device's or the fleet's buckets, as columns."""

from bisect import bisect_left
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Double,
    Select,
    Table,
    TableValuedAlias,
    bindparam,
    cast,
    func,
    or_,
    select,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from app.analytics.evidence import fetch_evidence, fetch_minutes
from app.analytics.freshness import fetch_instants
from app.analytics.pairing import Evidence
from app.analytics.window import MAX_HOURS, Window
from app.database import snapshot
from app.errors import InvalidTimeRange, UnknownDevice
from app.tables import (
    aggregate_retention,
    fleet_day,
    fleet_hour,
    fleet_minute,
    meter,
    meter_day,
    meter_hour,
    meter_minute,
    vehicle,
    vehicle_day,
    vehicle_hour,
    vehicle_minute,
)

Width: TypeAlias = Literal["1m", "1h", "1d"]

MAX_POINTS = 100_000
"""A series of so many buckets is a few megabytes; more are asked for in pieces, or in wider buckets."""

_SECONDS: dict[Width, int] = {"1m": 60, "1h": 3_600, "1d": 86_400}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# An efficiency over less measures the clocks of meter and vehicle: ten minutes give 0.77 to 1.11 for a truth of 0.9.
_EFFICIENCY_MINUTES = 60


class MeterColumns(msgspec.Struct, frozen=True, rename="camel"):
    """AC energy in kWh, voltage in V. `t` is each bucket's start, in seconds since 1970 UTC."""

    t: list[int]
    ac_kwh: list[float]
    readings: list[int]
    avg_voltage: list[float | None]
    min_voltage: list[float | None]
    max_voltage: list[float | None]


class VehicleColumns(msgspec.Struct, frozen=True, rename="camel"):
    """DC energy in kWh, state of charge in percent, temperature in °C. `t` is each bucket's start, as of a meter.

    `efficiency_ratio` is of the paired minutes in the bucket, `paired_minutes` counts them. In buckets of a minute both
    are of the 60 minutes that end with it: a single one compares clocks, not losses. Both are null where minutes are no
    longer kept, and more than 2160 hours before the end of the series.
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
    paired_minutes: list[int | None]
    efficiency_ratio: list[float | None]


class FleetColumns(msgspec.Struct, frozen=True, rename="camel"):
    """Energy in kWh; null where that stream was silent. `efficiency_ratio` is all DC over all AC, paired or not."""

    t: list[int]
    ac_kwh: list[float | None]
    dc_kwh: list[float | None]
    meter_readings: list[int | None]
    vehicle_readings: list[int | None]
    efficiency_ratio: list[float | None]


class _Series(msgspec.Struct, frozen=True, rename="camel"):
    id: str
    bucket: Width
    from_: datetime = msgspec.field(name="from")
    to: datetime
    as_of: datetime | None
    materialized_through: datetime | None


class MeterSeries(_Series, frozen=True, rename="camel"):
    """A meter's buckets that have readings, in order. Readings committed before `as_of` are all in."""

    columns: MeterColumns


class VehicleSeries(_Series, frozen=True, rename="camel"):
    """A vehicle's buckets that have readings, in order. Readings committed before `as_of` are all in."""

    columns: VehicleColumns


class FleetSeries(_Series, frozen=True, rename="camel"):
    """The fleet's buckets that have readings, in order. Readings committed before `as_of` are all in."""

    columns: FleetColumns


class Source(NamedTuple):
    """Where a series comes from: by width of its buckets, the aggregates that are read, and the statement."""

    aggregates: dict[Width, tuple[str, ...]]
    statements: dict[Width, Select[Any]]


class Buckets(NamedTuple):
    """The whole buckets in [start, end)."""

    width: Width
    start: datetime
    end: datetime

    @property
    def number(self) -> int:
        """How many there are."""
        return (self.end - self.start) // timedelta(seconds=_SECONDS[self.width])


async def choose_bucket(
    connection: AsyncConnection, source: Source, window: Window, wanted: Width | Literal["auto"], max_points: int
) -> Buckets:
    """The buckets that the window touches: as wide as wanted, else the narrowest that are still kept at its start and
    are at most `max_points`.

    Raises InvalidTimeRange when there are too many.
    """
    if wanted != "auto":
        buckets = _touched(window, wanted)
        if buckets.number > MAX_POINTS:
            raise InvalidTimeRange(
                f"There are {buckets.number:,} buckets of {wanted} in that range; an answer has at most {MAX_POINTS:,}."
            )
        return buckets
    kept = set(await connection.scalars(_KEPT, {"start": window.start}))
    for width in _SECONDS:
        buckets = _touched(window, width)
        if buckets.number <= max_points and kept.issuperset(source.aggregates[width]):
            return buckets
    raise InvalidTimeRange(f"There are {buckets.number:,} days in that range, but `maxPoints` is {max_points:,}.")


def _touched(window: Window, width: Width) -> Buckets:
    step = timedelta(seconds=_SECONDS[width])
    first, after = (window.start - _EPOCH) // step, -((_EPOCH - window.end) // step)
    return Buckets(width, _EPOCH + first * step, _EPOCH + after * step)


async def fetch_meter_series(connection: AsyncConnection, meter_id: str, buckets: Buckets) -> MeterSeries:
    """Raises UnknownDevice."""
    device = await _id_of(connection, meter, meter_id)
    instants = await fetch_instants(connection, *METER.aggregates[buckets.width])
    async with snapshot(connection):
        columns = MeterColumns(*await _fetch(connection, METER, buckets, device=device))
    return MeterSeries(meter_id, *buckets, *instants, columns)


async def fetch_vehicle_series(
    connection: AsyncConnection, vehicle_id: str, buckets: Buckets, *, gap_minutes: int
) -> VehicleSeries:
    """Without efficiency for what lies more than 2160 hours before the end. Raises UnknownDevice."""
    device = await _id_of(connection, vehicle, vehicle_id)
    instants = await fetch_instants(connection, *VEHICLE.aggregates[buckets.width], "vehicle_minute", "meter_minute")
    bounds = await _minutes_kept(connection, buckets), buckets.end
    evidence = None
    async with snapshot(connection):
        sums = await _fetch(connection, VEHICLE, buckets, device=device)
        if own := await fetch_minutes(connection, vehicle_id, *bounds):
            evidence = await fetch_evidence(connection, own, *bounds, gap_minutes=gap_minutes)
    columns = VehicleColumns(*[*sums, *_efficiency(sums[0], _SECONDS[buckets.width], evidence, bounds[0])])
    return VehicleSeries(vehicle_id, *buckets, *instants, columns)


async def fetch_fleet_series(connection: AsyncConnection, buckets: Buckets) -> FleetSeries:
    """Of all meters and vehicles together."""
    instants = await fetch_instants(connection, *FLEET.aggregates[buckets.width])
    async with snapshot(connection):
        columns = FleetColumns(*await _fetch(connection, FLEET, buckets))
    return FleetSeries("fleet", *buckets, *instants, columns)


async def _id_of(connection: AsyncConnection, table: Table, external_id: str) -> int:
    device: int | None = await connection.scalar(select(table.c.id).where(table.c.external_id == external_id))
    if device is None:
        raise UnknownDevice(f"There is no {table.name} {external_id}.")
    return device


async def _minutes_kept(connection: AsyncConnection, buckets: Buckets) -> datetime:
    """From when on there are minutes for an efficiency: an hour before the first bucket, or where they begin."""
    kept_from: datetime | None = await connection.scalar(_MINUTES_KEPT)
    wanted = buckets.start - timedelta(minutes=_EFFICIENCY_MINUTES)
    return max(wanted, buckets.end - timedelta(hours=MAX_HOURS), kept_from or wanted)


async def _fetch(connection: AsyncConnection, source: Source, buckets: Buckets, **device: int) -> list[list[Any]]:
    """The columns, each from one array: no object per point between the database and the encoder."""
    bounds = {"range_from": buckets.start, "range_to": buckets.end}
    rows = await connection.execute(source.statements[buckets.width], {**bounds, **device})
    return [column or [] for column in rows.one()]


def _efficiency(
    starts: list[int], seconds: int, evidence: Evidence | None, kept_from: datetime
) -> tuple[list[int | None], list[float | None]]:
    """Paired minutes and efficiency of each bucket; None where its minutes are not all kept."""
    if evidence is None:
        return [None] * len(starts), [None] * len(starts)
    kept_minute = kept_from.timestamp() / 60
    minutes = sorted(evidence.paired_ac_milliwh)
    ac = [0, *accumulate(evidence.paired_ac_milliwh[minute] for minute in minutes)]
    dc = [0, *accumulate(evidence.paired_dc_milliwh[minute] for minute in minutes)]
    span = max(seconds // 60, _EFFICIENCY_MINUTES)
    paired: list[int | None] = []
    ratios: list[float | None] = []
    for start in starts:
        end = (start + seconds) // 60
        first, after = bisect_left(minutes, end - span), bisect_left(minutes, end)
        consumed = ac[after] - ac[first]
        is_kept = end - span >= kept_minute
        paired.append(after - first if is_kept else None)
        ratios.append((dc[after] - dc[first]) / consumed if consumed and is_kept else None)
    return paired, ratios


# The statements: arrays over the buckets in [:range_from, :range_to), in order. Grouped by bucket, since a vehicle has
# a row for each meter.


def _arrays(source: TableValuedAlias, *values: ColumnElement[Any], device: ColumnElement[int] | None) -> Select[Any]:
    start = cast(func.date_part("epoch", source.c.bucket), BigInteger).label("t")
    named = (value.label(f"column_{position}") for position, value in enumerate(values))
    points = select(start, *named).group_by(source.c.bucket).order_by(source.c.bucket)
    if device is not None:
        points = points.where(device == bindparam("device"))
    arrays: list[ColumnElement[Any]] = [func.array_agg(column) for column in points.subquery().c]
    return select(*arrays)


def _sum(values: ColumnElement[int]) -> ColumnElement[int]:
    return cast(func.sum(values), BigInteger)


def _kwh(milliwh: ColumnElement[int]) -> ColumnElement[Any]:
    return cast(_sum(milliwh), Double) / 1_000_000


def _hundredths(source: TableValuedAlias, quantity: str, readings: str) -> Iterator[ColumnElement[Any]]:
    """Average, least and greatest of a quantity that is stored in hundredths."""
    column = source.c
    yield cast(_sum(column[f"{quantity}_sum"]), Double) / func.nullif(100 * _sum(column[readings]), 0)
    yield cast(func.min(column[f"{quantity}_min"]), Double) / 100
    yield cast(func.max(column[f"{quantity}_max"]), Double) / 100


def _meter_arrays(source: TableValuedAlias) -> Select[Any]:
    return _arrays(
        source,
        _kwh(source.c.ac_milliwh),
        _sum(source.c.readings),
        *_hundredths(source, "voltage_centiv", "voltage_readings"),
        device=source.c.meter_id,
    )


def _vehicle_arrays(source: TableValuedAlias) -> Select[Any]:
    return _arrays(
        source,
        _kwh(source.c.dc_milliwh),
        _sum(source.c.readings),
        *_hundredths(source, "soc_centipercent", "soc_readings"),
        *_hundredths(source, "battery_temp_centic", "battery_temp_readings"),
        device=source.c.vehicle_id,
    )


def _fleet_arrays(source: TableValuedAlias) -> Select[Any]:
    ac, dc = _sum(source.c.ac_milliwh), _sum(source.c.dc_milliwh)
    return _arrays(
        source,
        _kwh(source.c.ac_milliwh),
        _kwh(source.c.dc_milliwh),
        _sum(source.c.meter_readings),
        _sum(source.c.vehicle_readings),
        cast(dc, Double) / func.nullif(cast(ac, Double), 0),
        device=None,
    )


METER = Source(
    {"1m": ("meter_minute",), "1h": ("meter_hour",), "1d": ("meter_day",)},
    {"1m": _meter_arrays(meter_minute), "1h": _meter_arrays(meter_hour), "1d": _meter_arrays(meter_day)},
)
VEHICLE = Source(
    {"1m": ("vehicle_minute",), "1h": ("vehicle_hour",), "1d": ("vehicle_day",)},
    {"1m": _vehicle_arrays(vehicle_minute), "1h": _vehicle_arrays(vehicle_hour), "1d": _vehicle_arrays(vehicle_day)},
)
# The fleet's days are computed from its hours.
FLEET = Source(
    {
        "1m": ("fleet_meter_minute", "fleet_vehicle_minute"),
        "1h": ("fleet_meter_hour", "fleet_vehicle_hour"),
        "1d": ("fleet_meter_hour", "fleet_vehicle_hour"),
    },
    {"1m": _fleet_arrays(fleet_minute), "1h": _fleet_arrays(fleet_hour), "1d": _fleet_arrays(fleet_day)},
)

# From when on minutes of meters and vehicles are kept.
_MINUTES_KEPT = select(func.max(aggregate_retention.c.kept_from)).where(
    aggregate_retention.c.name.in_(["meter_minute", "vehicle_minute"])
)

# The aggregates that still hold whole buckets from an instant on.
_KEPT = select(aggregate_retention.c.name).where(
    or_(aggregate_retention.c.kept_from.is_(None), aggregate_retention.c.kept_from <= bindparam("start"))
)
