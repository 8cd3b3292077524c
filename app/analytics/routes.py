"""Answers over HTTP."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from litestar import MediaType, Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter
from litestar.response import Stream
from sqlalchemy.ext.asyncio import AsyncEngine

from app.analytics.csv_answer import csv_of
from app.analytics.freshness import Freshness, fetch_freshness
from app.analytics.performance import Performance, fetch_performance
from app.analytics.series import (
    FLEET,
    MAX_POINTS,
    METER,
    VEHICLE,
    FleetSeries,
    MeterSeries,
    VehicleSeries,
    Width,
    choose_bucket,
    fetch_fleet_series,
    fetch_meter_series,
    fetch_vehicle_series,
)
from app.analytics.window import CALENDAR_HOURS, window_of
from app.database import translated_errors
from app.problems import AWAY, PARAMETER, problems
from app.settings import Settings

Start = Annotated[datetime | None, QueryParameter(name="from", description="Start of the window.")]
End = Annotated[datetime | None, QueryParameter(name="to", description="Its end; else 5 minutes from now.")]
Hours = Annotated[int | None, QueryParameter(description="Its length instead of `from`; else 24.")]
Wanted = Annotated[
    Width | Literal["auto"],
    QueryParameter(
        name="bucket",
        description="Width of the buckets; `auto`: the narrowest still kept that gives at most `maxPoints`.",
    ),
]
MaxPoints = Annotated[
    int, QueryParameter(name="maxPoints", ge=1, le=MAX_POINTS, description="At most so many buckets, for `auto`.")
]
Client = Request[Any, Any, Any]
_CSV = "text/csv"
_SERIES = problems({400: PARAMETER, 404: "The device is not known.", 503: AWAY})


@get(
    "/v1/analytics/performance/{vehicle_id:str}",
    tags=["analytics"],
    responses=problems({400: PARAMETER, 404: "No readings in the window, or an unknown vehicle.", 503: AWAY}),
)
async def get_performance(
    vehicle_id: FromPath[str],
    pool: NamedDependency[AsyncEngine],
    settings: NamedDependency[Settings],
    start: Start = None,
    end: End = None,
    hours: Annotated[
        int | None, QueryParameter(description="Its length instead of `from`, 1 to 2160; else 24.")
    ] = None,
) -> Performance:
    """How much of the AC energy reached the vehicle's battery, with the evidence for it."""
    window = window_of(start, end, hours, now=datetime.now(UTC))
    with translated_errors():
        async with pool.connect() as connection:
            return await fetch_performance(
                connection,
                vehicle_id,
                window,
                gap_minutes=settings.pairing_gap_minutes,
                low_efficiency=settings.low_efficiency,
            )


@get("/v1/analytics/meters/{meter_id:str}/series", tags=["analytics"], responses=_SERIES)
async def get_meter_series(
    request: Client,
    meter_id: FromPath[str],
    pool: NamedDependency[AsyncEngine],
    start: Start = None,
    end: End = None,
    hours: Hours = None,
    wanted: Wanted = "auto",
    max_points: MaxPoints = 1_500,
) -> Response[MeterSeries]:
    """A meter over time, as columns; as CSV where `Accept` prefers text/csv."""
    window = window_of(start, end, hours, now=datetime.now(UTC), max_hours=CALENDAR_HOURS)
    with translated_errors():
        async with pool.connect() as connection:
            buckets = await choose_bucket(connection, METER, window, wanted, max_points)
            return _as_accepted(request, await fetch_meter_series(connection, meter_id, buckets))


@get("/v1/analytics/vehicles/{vehicle_id:str}/series", tags=["analytics"], responses=_SERIES)
async def get_vehicle_series(
    request: Client,
    vehicle_id: FromPath[str],
    pool: NamedDependency[AsyncEngine],
    settings: NamedDependency[Settings],
    start: Start = None,
    end: End = None,
    hours: Hours = None,
    wanted: Wanted = "auto",
    max_points: MaxPoints = 1_500,
) -> Response[VehicleSeries]:
    """A vehicle over time, with its efficiency, as columns; as CSV where `Accept` prefers text/csv."""
    window = window_of(start, end, hours, now=datetime.now(UTC), max_hours=CALENDAR_HOURS)
    gap_minutes = settings.pairing_gap_minutes
    with translated_errors():
        async with pool.connect() as connection:
            buckets = await choose_bucket(connection, VEHICLE, window, wanted, max_points)
            series = await fetch_vehicle_series(connection, vehicle_id, buckets, gap_minutes=gap_minutes)
            return _as_accepted(request, series)


@get("/v1/analytics/fleet/series", tags=["analytics"], responses=problems({400: PARAMETER, 503: AWAY}))
async def get_fleet_series(
    request: Client,
    pool: NamedDependency[AsyncEngine],
    start: Start = None,
    end: End = None,
    hours: Hours = None,
    wanted: Wanted = "auto",
    max_points: MaxPoints = 1_500,
) -> Response[FleetSeries]:
    """All meters and vehicles over time, as columns; as CSV where `Accept` prefers text/csv."""
    window = window_of(start, end, hours, now=datetime.now(UTC), max_hours=CALENDAR_HOURS)
    with translated_errors():
        async with pool.connect() as connection:
            buckets = await choose_bucket(connection, FLEET, window, wanted, max_points)
            return _as_accepted(request, await fetch_fleet_series(connection, buckets))


def _as_accepted(request: Client, series: MeterSeries | VehicleSeries | FleetSeries) -> Response[Any]:
    """JSON, or CSV with what else the series says in headers."""
    if request.accept.best_match([MediaType.JSON, _CSV]) != _CSV:
        return Response(series, headers={"Vary": "Accept"})
    headers = {
        "Vary": "Accept",
        "Content-Disposition": f'attachment; filename="{series.id}-{series.bucket}.csv"',
        "Wattline-As-Of": "" if series.as_of is None else series.as_of.isoformat(),
    }
    return Stream(csv_of(series.columns), headers=headers, media_type=_CSV)


@get("/v1/analytics/freshness", tags=["analytics"], responses=problems({503: AWAY}))
async def get_freshness(pool: NamedDependency[AsyncEngine]) -> Freshness:
    """How fresh the answers are, and how many of the devices report."""
    with translated_errors():
        async with pool.connect() as connection:
            return await fetch_freshness(connection)
