"""Where series come from: the statements that make columns of buckets."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import BigInteger, ColumnElement, Double, Select, TableValuedAlias, bindparam, cast, func, select

from app.tables import (
    fleet_day,
    fleet_hour,
    fleet_minute,
    meter_day,
    meter_hour,
    meter_minute,
    vehicle_day,
    vehicle_hour,
    vehicle_minute,
)

Width: TypeAlias = Literal["1m", "1h", "1d"]
"""Of a bucket."""
WantedWidth: TypeAlias = Literal["1m", "1h", "1d", "auto"]


class Source(NamedTuple):
    """By width of the buckets, the aggregates that are read, and the statement."""

    aggregates: dict[Width, tuple[str, ...]]
    statements: dict[Width, Select[Any]]


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
    """Energies in whole units: ratios are computed from them."""
    column = source.c
    return _arrays(
        source,
        *map(_sum, (column.ac_milliwh, column.dc_milliwh, column.meter_readings, column.vehicle_readings)),
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
