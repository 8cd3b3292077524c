"""The fleet's readings over time, as columns."""

from bisect import bisect_left
from datetime import timedelta

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from app.analytics.freshness import fetch_instants
from app.analytics.series import EFFICIENCY_MINUTES, Buckets, Series, fetch_columns, trailing
from app.analytics.series_source import FLEET
from app.database import snapshot


class FleetColumns(msgspec.Struct, frozen=True, rename="camel"):
    """Energy in kWh; null where that stream was silent.

    `efficiency_ratio` is all DC over all AC, paired or not, over the bucket or the 60 minutes that end with it,
    whichever is longer.
    """

    t: list[int]
    ac_kwh: list[float | None]
    dc_kwh: list[float | None]
    meter_readings: list[int | None]
    vehicle_readings: list[int | None]
    efficiency_ratio: list[float | None]


class FleetSeries(Series, frozen=True, rename="camel"):
    """The fleet's buckets that have readings, in order. All readings committed before `as_of` are included.

    Buckets before `kept_from` are no longer kept; null means that all are kept.
    """

    columns: FleetColumns


async def fetch_fleet_series(pool: AsyncEngine, buckets: Buckets) -> FleetSeries:
    """Returns the series of all meters and vehicles together."""
    # The first minutes' efficiency is over the hour before them too.
    earlier = timedelta(minutes=EFFICIENCY_MINUTES) if buckets.width == "1m" else timedelta(0)
    async with pool.connect() as connection:
        instants = await fetch_instants(connection, *FLEET.aggregates[buckets.width])
        async with snapshot(connection):
            sums = await fetch_columns(connection, FLEET, buckets._replace(start=buckets.start - earlier))
    first = bisect_left(sums[0], buckets.start.timestamp())
    flowed = [(t // 60, ac, dc) for t, ac, dc, *_ in zip(*sums, strict=True) if ac is not None and dc is not None]
    t, ac, dc, meter_readings, vehicle_readings = (column[first:] for column in sums)
    ratios = trailing(t, buckets, flowed)[1]
    columns = FleetColumns(t, _kwh(ac), _kwh(dc), meter_readings, vehicle_readings, ratios)
    return FleetSeries("fleet", *buckets, *instants, columns)


def _kwh(milliwh: list[int | None]) -> list[float | None]:
    return [None if energy is None else energy / 1_000_000 for energy in milliwh]
