"""The readings of a site's devices over time, in the columns of the fleet's series."""

from datetime import timedelta
from typing import Any

from sqlalchemy import ARRAY, Column, DateTime, Integer, bindparam, func
from sqlalchemy.ext.asyncio import AsyncEngine

from app.analytics.buckets import Buckets
from app.analytics.fleet_series import FleetSeries, Spread, fetch_spread, series_of, spread_statement, wider_of
from app.analytics.freshness import fetch_instants
from app.analytics.series import fetch_columns
from app.analytics.series_source import METERS, VEHICLES
from app.database import of_driver, reading, snapshot
from app.errors import InvalidTimeRange
from app.fleet.sites import devices_at
from app.tables import fleet_spread

MAX_SITE_BUCKETS = 1_000_000
"""So many buckets of devices are summed for an answer, and so many minutes of devices are read for its power."""

# A reading is spread over so much time before it at most.
_LONGEST_SPAN = timedelta(hours=4)


async def fetch_site_series(pool: AsyncEngine, site: str, buckets: Buckets) -> FleetSeries:
    """Returns the series of the meters and vehicles that have this site today, retired or not.

    Raises InvalidTimeRange when they have too many buckets, or when buckets of a zone are not kept.
    """
    wider = wider_of(buckets)
    async with reading(pool) as connection:
        meters, vehicles = await devices_at(await of_driver(connection), site)
    number = len(meters) + len(vehicles)
    _refuse_too_many(number, buckets)
    async with pool.connect() as connection:
        instants = await fetch_instants(connection, *METERS.aggregates[wider.source])
        buckets.refuse_dropped(instants.kept_from)
        async with snapshot(connection):
            of_meters = await fetch_columns(connection, METERS, wider, meters)
            of_vehicles = await fetch_columns(connection, VEHICLES, wider, vehicles)
            spread: Spread = {}
            if number * _number("1m", buckets) <= MAX_SITE_BUCKETS or buckets.width in ("1d", "1mo"):
                read_to = wider.end + _LONGEST_SPAN
                devices = {"meters": meters, "vehicles": vehicles}
                spread = await fetch_spread(connection, wider, _SPREAD, read_to=read_to, **devices)
    return series_of(_side_by_side(of_meters, of_vehicles), spread, buckets, instants, site=site)


def _number(width: Any, buckets: Buckets) -> int:
    return Buckets(width, buckets.start, buckets.end).number


def _refuse_too_many(devices: int, buckets: Buckets) -> None:
    number = devices * _number(buckets.source, buckets)
    if number > MAX_SITE_BUCKETS:
        raise InvalidTimeRange(
            f"The {devices:,} devices of that site have {number:,} buckets of {buckets.source} in that range; an "
            f"answer sums at most {MAX_SITE_BUCKETS:,}. Ask for wider buckets or for less time."
        )


def _side_by_side(meters: list[list[Any]], vehicles: list[list[Any]]) -> list[list[Any]]:
    """Returns the fleet's columns from those of either stream; None where it was silent."""
    (_, *of_meters), (_, *of_vehicles) = meters, vehicles
    starts = sorted({*meters[0], *vehicles[0]})
    ac, meter_readings = (_at(starts, meters[0], column) for column in of_meters)
    dc, vehicle_readings = (_at(starts, vehicles[0], column) for column in of_vehicles)
    return [starts, ac, dc, meter_readings, vehicle_readings]


def _at(starts: list[int], known: list[int], column: list[int]) -> list[int | None]:
    values = dict(zip(known, column, strict=True))
    return [values.get(start) for start in starts]


# Rows like those of fleet_spread, for the readings of :meters and :vehicles until :read_to.
_SPREAD = spread_statement(
    func.spread_of(
        bindparam("range_from", type_=DateTime(timezone=True)),
        bindparam("read_to", type_=DateTime(timezone=True)),
        bindparam("meters", type_=ARRAY(Integer)),
        bindparam("vehicles", type_=ARRAY(Integer)),
    ).table_valued(*(Column(column.name, column.type) for column in fleet_spread.c), name="spread_of")
)
