"""The statements that make columns of buckets, from which series are answered."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import chain, compress, groupby
from operator import itemgetter
from typing import Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import BigInteger, ColumnElement, Double, Select, TableValuedAlias, cast, func, select

from app.analytics.efficiency.evidence import vehicle_minutes
from app.analytics.efficiency.pairing import Minutes
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
"""The width of a bucket."""
WidthOrAuto: TypeAlias = Literal["1m", "1h", "1d", "auto"]


class Source(NamedTuple):
    """The aggregates to read, and the statement, by the width of the buckets."""

    aggregates: dict[Width, tuple[str, ...]]
    statements: dict[Width, Select[Any]]


# The statements: arrays over the buckets in [:range_from, :range_to) of :devices, in order. A device has one row in a
# bucket, but for a vehicle's minutes.


def _arrays(source: TableValuedAlias, *values: ColumnElement[Any]) -> Select[Any]:
    start = cast(func.date_part("epoch", source.c.bucket), BigInteger).label("t")
    named = (value.label(f"column_{position}") for position, value in enumerate(values))
    points = select(start, *named).order_by(source.c.bucket).subquery()
    arrays: list[ColumnElement[Any]] = [func.array_agg(column) for column in points.c]
    return select(*arrays)


def _kwh(milliwh: ColumnElement[int]) -> ColumnElement[Any]:
    return cast(milliwh, Double) / 1_000_000


def _hundredths(source: TableValuedAlias, quantity: str, readings: str) -> Iterator[ColumnElement[Any]]:
    """Yields the average, least and greatest value of a quantity that is stored in hundredths."""
    column = source.c
    yield cast(column[f"{quantity}_sum"], Double) / func.nullif(100 * column[readings], 0)
    yield cast(column[f"{quantity}_min"], Double) / 100
    yield cast(column[f"{quantity}_max"], Double) / 100


def _meter_arrays(source: TableValuedAlias) -> Select[Any]:
    voltage = _hundredths(source, "voltage_centiv", "voltage_readings")
    return _arrays(source, _kwh(source.c.ac_milliwh), source.c.readings, *voltage)


def _vehicle_arrays(source: TableValuedAlias) -> Select[Any]:
    soc = _hundredths(source, "soc_centipercent", "soc_readings")
    temperature = _hundredths(source, "battery_temp_centic", "battery_temp_readings")
    return _arrays(source, _kwh(source.c.dc_milliwh), source.c.readings, *soc, *temperature)


def _fleet_arrays(source: TableValuedAlias) -> Select[Any]:
    """Energies stay in whole units, since ratios are computed from them."""
    column = source.c
    return _arrays(source, column.ac_milliwh, column.dc_milliwh, column.meter_readings, column.vehicle_readings)


METER = Source(
    {"1m": ("meter_minute",), "1h": ("meter_hour",), "1d": ("meter_day",)},
    {"1m": _meter_arrays(meter_minute), "1h": _meter_arrays(meter_hour), "1d": _meter_arrays(meter_day)},
)
VEHICLE = Source(
    {"1m": ("vehicle_minute",), "1h": ("vehicle_hour",), "1d": ("vehicle_day",)},
    {"1h": _vehicle_arrays(vehicle_hour), "1d": _vehicle_arrays(vehicle_day)},
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


# A vehicle's minutes with everything that it measured are read once, for the columns and for the efficiency.
MEASURED_MINUTES = vehicle_minutes(
    *(
        func.array_agg(vehicle_minute.c[name])
        for name in (
            *("soc_centipercent_sum", "soc_readings", "soc_centipercent_min", "soc_centipercent_max"),
            *("battery_temp_centic_sum", "battery_temp_readings", "battery_temp_centic_min", "battery_temp_centic_max"),
        )
    )
)


def minute_columns(own: list[Minutes], start: datetime) -> list[list[Any]]:
    """Returns the columns of a vehicle's MEASURED_MINUTES from `start` on, equal to those of VEHICLE's statements."""
    first = start.timestamp() / 60
    rows = chain.from_iterable(zip(at.minutes, at.milliwh, at.readings, *at.others, strict=True) for at in own)
    ordered = sorted((row for row in rows if row[0] >= first), key=itemgetter(0))
    minutes = [_merged([*same]) for _, same in groupby(ordered, key=itemgetter(0))]
    t, milliwh, readings, *measured = [list(column) for column in zip(*minutes, strict=True)] or [[] for _ in range(11)]
    columns: list[list[Any]] = [[60 * minute for minute in t], [energy / 1_000_000 for energy in milliwh], readings]
    for sums, counts, *bounds in (measured[:4], measured[4:]):
        columns.append([total / (100 * count) if count else None for total, count in zip(sums, counts, strict=True)])
        columns += ([None if value is None else value / 100 for value in column] for column in bounds)
    return columns


def _merged(rows: list[tuple[Any, ...]]) -> Sequence[Any]:
    """Merges the rows that a vehicle has in a minute, one for each meter, into one."""
    if len(rows) == 1:
        return rows[0]
    columns = ([value for value in column if value is not None] for column in zip(*rows, strict=True))
    kinds: tuple[Callable[[list[int]], int], ...] = (max, sum, sum, *(sum, sum, min, max) * 2)
    return [kind(values) if values else None for kind, values in zip(kinds, columns, strict=True)]


def minutes_between(own: list[Minutes], start: datetime, end: datetime) -> list[Minutes]:
    """Returns a vehicle's minutes in [start, end), from which its efficiency is computed."""
    first, after = start.timestamp() / 60, end.timestamp() / 60
    found = []
    for at in own:
        inside = [first <= minute < after for minute in at.minutes]
        columns = ([*compress(column, inside)] for column in (at.minutes, at.milliwh, at.readings))
        if any(inside):
            found.append(Minutes(at.device_id, at.meter_id, *columns))
    return found
