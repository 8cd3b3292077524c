"""The statements that make columns of buckets, from which series are answered."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    DateTime,
    Double,
    FromClause,
    Select,
    Subquery,
    TableValuedAlias,
    bindparam,
    cast,
    func,
    select,
)

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
"""The width of an aggregate's buckets."""
Bucket: TypeAlias = Literal["1m", "1h", "1d", "1mo"]
"""The width of a series' buckets."""
BucketOrAuto: TypeAlias = Literal["1m", "1h", "1d", "1mo", "auto"]


class Source(NamedTuple):
    """The aggregates to read, and the statement, by the width of their buckets.

    A device's minutes need no statement: minutes.py fetches them. `statements_of_zone` make days or months from these
    buckets: those between each two of :bounds, and `t` is their number, from 1 on.
    """

    aggregates: dict[Width, tuple[str, ...]]
    statements: dict[Width, Select[Any]]
    statements_of_zone: dict[Width, Select[Any]]


# The statements: arrays over the buckets in [:range_from, :range_to) of :devices, in order.


def _arrays(source: FromClause, *values: ColumnElement[Any]) -> Select[Any]:
    start = cast(func.date_part("epoch", source.c.bucket), BigInteger).label("t")
    named = (value.label(f"column_{position}") for position, value in enumerate(values))
    points = select(start, *named).order_by(source.c.bucket).subquery()
    arrays: list[ColumnElement[Any]] = [func.array_agg(column) for column in points.c]
    return select(*arrays)


def _kwh(milliwh: ColumnElement[int]) -> ColumnElement[Any]:
    return cast(milliwh, Double) / cast(1_000_000, Double)


def _hundredths(source: FromClause, quantity: str, readings: str) -> Iterator[ColumnElement[Any]]:
    """Yields the average, least and greatest value of a quantity that is stored in hundredths."""
    column = source.c
    hundred = cast(100, Double)
    yield cast(column[f"{quantity}_sum"], Double) / (hundred * func.nullif(column[readings], 0))
    yield cast(column[f"{quantity}_min"], Double) / hundred
    yield cast(column[f"{quantity}_max"], Double) / hundred


def _meter_arrays(source: FromClause) -> Select[Any]:
    voltage = _hundredths(source, "voltage_centiv", "voltage_readings")
    return _arrays(source, _kwh(source.c.ac_milliwh), source.c.readings, *voltage)


def _vehicle_arrays(source: FromClause) -> Select[Any]:
    soc = _hundredths(source, "soc_centipercent", "soc_readings")
    temperature = _hundredths(source, "battery_temp_centic", "battery_temp_readings")
    return _arrays(source, _kwh(source.c.dc_milliwh), source.c.readings, *soc, *temperature)


def _merged(source: TableValuedAlias, bucket: ColumnElement[Any] | None = None) -> Subquery:
    """Selects one row for each bucket, where a vehicle has one for each meter, or for each of the given buckets."""
    columns = {column.name: column for column in source.c if column.name.endswith(("_milliwh", "_sum", "readings"))}
    sums = (cast(func.sum(column), BigInteger).label(name) for name, column in columns.items())
    bounds = (
        kind(column).label(column.name)
        for suffix, kind in (("_min", func.min), ("_max", func.max))
        for column in source.c
        if column.name.endswith(suffix)
    )
    bucket = source.c.bucket if bucket is None else bucket
    return select(bucket.label("bucket"), *sums, *bounds).group_by(bucket).subquery()


def _of_zone(source: TableValuedAlias) -> Subquery:
    """Selects one row for each two of :bounds; the bucket is as many seconds after 1970 as its number says."""
    number = func.width_bucket(source.c.bucket, bindparam("bounds", type_=ARRAY(DateTime(timezone=True))))
    return _merged(source, func.to_timestamp(number))


def _fleet_arrays(source: FromClause) -> Select[Any]:
    """Energies stay in whole units, since ratios are computed from them."""
    column = source.c
    return _arrays(source, column.ac_milliwh, column.dc_milliwh, column.meter_readings, column.vehicle_readings)


METER = Source(
    {"1m": ("meter_minute",), "1h": ("meter_hour",), "1d": ("meter_day",)},
    {"1h": _meter_arrays(meter_hour), "1d": _meter_arrays(meter_day)},
    {
        "1m": _meter_arrays(_of_zone(meter_minute)),
        "1h": _meter_arrays(_of_zone(meter_hour)),
        "1d": _meter_arrays(_of_zone(meter_day)),
    },
)
VEHICLE = Source(
    {"1m": ("vehicle_minute",), "1h": ("vehicle_hour",), "1d": ("vehicle_day",)},
    {"1h": _vehicle_arrays(vehicle_hour), "1d": _vehicle_arrays(vehicle_day)},
    {
        "1m": _vehicle_arrays(_of_zone(vehicle_minute)),
        "1h": _vehicle_arrays(_of_zone(vehicle_hour)),
        "1d": _vehicle_arrays(_of_zone(vehicle_day)),
    },
)
# The fleet's days are computed from its hours.
FLEET = Source(
    {
        "1m": ("fleet_meter_minute", "fleet_vehicle_minute"),
        "1h": ("fleet_meter_hour", "fleet_vehicle_hour"),
        "1d": ("fleet_meter_hour", "fleet_vehicle_hour"),
    },
    {"1m": _fleet_arrays(fleet_minute), "1h": _fleet_arrays(fleet_hour), "1d": _fleet_arrays(fleet_day)},
    {
        "1m": _fleet_arrays(_of_zone(fleet_minute)),
        "1h": _fleet_arrays(_of_zone(fleet_hour)),
        "1d": _fleet_arrays(_of_zone(fleet_day)),
    },
)


def _summed(energy: str, functions: dict[Width, TableValuedAlias]) -> Source:
    """Returns the fleet's columns of one stream, summed over :devices; both streams make a site's series."""

    def arrays(source: FromClause) -> Select[Any]:
        return _arrays(source, source.c[energy], source.c.readings)

    return Source(
        {width: METER.aggregates[width] + VEHICLE.aggregates[width] for width in functions},
        {width: arrays(_merged(function)) for width, function in functions.items()},
        {width: arrays(_of_zone(function)) for width, function in functions.items()},
    )


METERS = _summed("ac_milliwh", {"1m": meter_minute, "1h": meter_hour, "1d": meter_day})
VEHICLES = _summed("dc_milliwh", {"1m": vehicle_minute, "1h": vehicle_hour, "1d": vehicle_day})
