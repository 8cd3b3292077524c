"""The analytics calls over HTTP."""

from datetime import UTC, datetime
from typing import Annotated, Any

from litestar import Request, Response, get
from litestar.di import NamedDependency, Provide
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, QueryParameter
from litestar.response import Stream
from sqlalchemy.ext.asyncio import AsyncEngine

from app.analytics.buckets import MAX_POINTS, choose_bucket, fetch_retained
from app.analytics.efficiency.coverage import VehicleCoverage, fetch_coverage
from app.analytics.efficiency.performance import Performance, fetch_performance
from app.analytics.efficiency.visits import DeviceVisits, fetch_meter_vehicles, fetch_vehicle_meters
from app.analytics.export import MAX_EXPORT_DAYS, METER_READINGS, VEHICLE_READINGS, export_readings
from app.analytics.fleet_series import FleetSeries, fetch_fleet_series
from app.analytics.freshness import Freshness, fetch_freshness
from app.analytics.series import MeterSeries, VehicleSeries, fetch_meter_series, fetch_vehicle_series
from app.analytics.series_source import FLEET, METER, METERS, VEHICLE, BucketOrAuto
from app.analytics.site_series import fetch_site_series
from app.analytics.window import CALENDAR_HOURS, Window, window_of
from app.csv_rows import CSV, csv_of_columns, prefers_csv, stamp
from app.database import reading
from app.problem_answers import AWAY, PARAMETER, problems
from app.settings import Settings

Start = Annotated[datetime | None, QueryParameter(name="from", description="Start of the window.")]
End = Annotated[datetime | None, QueryParameter(name="to", description="End of the window; default: in 5 minutes.")]
Hours = Annotated[int | None, QueryParameter(description="Length of the window instead of `from`; default: 24.")]
BucketParameter = Annotated[
    BucketOrAuto,
    QueryParameter(
        name="bucket",
        description="Width of the buckets; `auto`: the narrowest width still kept that gives at most `maxPoints`.",
    ),
]
MaxPoints = Annotated[
    int, QueryParameter(name="maxPoints", ge=1, le=MAX_POINTS, description="The most buckets that `auto` may choose.")
]
Zone = Annotated[
    str | None, QueryParameter(description="The time zone of days and months, such as Europe/Berlin; default: UTC.")
]
Incoming = Request[Any, Any, Any]
_SERIES = problems({400: PARAMETER, 404: "The device is not known.", 503: AWAY})


def get_window(
    start: Start = None,
    end: End = None,
    hours: Annotated[
        int | None, QueryParameter(description="Length of the window, 1 to 2160, instead of `from`; default: 24.")
    ] = None,
) -> Window:
    """Returns the window of an answer that is made from minutes."""
    return window_of(start, end, hours, now=datetime.now(UTC))


_WINDOW = {"window": Provide(get_window, sync_to_thread=False)}


@get(
    "/v1/analytics/performance/{vehicle_id:str}",
    tags=["analytics"],
    dependencies=_WINDOW,
    responses=problems({400: PARAMETER, 404: "No readings in the window, or the vehicle is unknown.", 503: AWAY}),
)
async def get_performance(
    vehicle_id: FromPath[str],
    pool: NamedDependency[AsyncEngine],
    settings: NamedDependency[Settings],
    window: NamedDependency[Window],
) -> Performance:
    """Returns how much of the AC energy reached the vehicle's battery, with the evidence for it."""
    return await fetch_performance(pool, vehicle_id, window, settings)


@get(
    "/v1/analytics/vehicles/{vehicle_id:str}/coverage",
    tags=["analytics"],
    dependencies=_WINDOW,
    responses=problems({400: PARAMETER, 503: AWAY}),
)
async def get_vehicle_coverage(
    vehicle_id: FromPath[str],
    pool: NamedDependency[AsyncEngine],
    settings: NamedDependency[Settings],
    window: NamedDependency[Window],
) -> VehicleCoverage:
    """Returns the stretches of a vehicle's paired, shared and unpaired time."""
    return await fetch_coverage(pool, vehicle_id, window, settings)


@get("/v1/analytics/meters/{meter_id:str}/vehicles", tags=["analytics"], dependencies=_WINDOW, responses=_SERIES)
async def get_meter_vehicles(
    meter_id: FromPath[str],
    pool: NamedDependency[AsyncEngine],
    settings: NamedDependency[Settings],
    window: NamedDependency[Window],
) -> DeviceVisits:
    """Returns the vehicles that took energy at a meter, and with whom they shared it."""
    return await fetch_meter_vehicles(pool, meter_id, window, settings)


@get("/v1/analytics/vehicles/{vehicle_id:str}/meters", tags=["analytics"], dependencies=_WINDOW, responses=_SERIES)
async def get_vehicle_meters(
    vehicle_id: FromPath[str],
    pool: NamedDependency[AsyncEngine],
    settings: NamedDependency[Settings],
    window: NamedDependency[Window],
) -> DeviceVisits:
    """Returns the meters at which a vehicle took energy, and with whom it shared them."""
    return await fetch_vehicle_meters(pool, vehicle_id, window, settings)


def get_series_window(start: Start = None, end: End = None, hours: Hours = None) -> Window:
    """Returns the window of a series, which may be as long as the calendar."""
    return window_of(start, end, hours, now=datetime.now(UTC), max_hours=CALENDAR_HOURS)


_SERIES_WINDOW = {"window": Provide(get_series_window, sync_to_thread=False)}


@get("/v1/analytics/meters/{meter_id:str}/series", tags=["analytics"], dependencies=_SERIES_WINDOW, responses=_SERIES)
async def get_meter_series(
    request: Incoming,
    meter_id: FromPath[str],
    pool: NamedDependency[AsyncEngine],
    settings: NamedDependency[Settings],
    window: NamedDependency[Window],
    bucket: BucketParameter = "auto",
    max_points: MaxPoints = 1_500,
    tz: Zone = None,
) -> Response[MeterSeries]:
    """Returns a meter over time, as columns; as CSV where `Accept` prefers text/csv."""
    buckets = choose_bucket(METER, window, bucket, max_points, await fetch_retained(pool, window, bucket), tz)
    return _as_accepted(request, await fetch_meter_series(pool, meter_id, buckets, settings))


@get(
    "/v1/analytics/vehicles/{vehicle_id:str}/series", tags=["analytics"], dependencies=_SERIES_WINDOW, responses=_SERIES
)
async def get_vehicle_series(
    request: Incoming,
    vehicle_id: FromPath[str],
    pool: NamedDependency[AsyncEngine],
    settings: NamedDependency[Settings],
    window: NamedDependency[Window],
    bucket: BucketParameter = "auto",
    max_points: MaxPoints = 1_500,
    tz: Zone = None,
) -> Response[VehicleSeries]:
    """Returns a vehicle over time, with its efficiency, as columns; as CSV where `Accept` prefers text/csv."""
    buckets = choose_bucket(VEHICLE, window, bucket, max_points, await fetch_retained(pool, window, bucket), tz)
    return _as_accepted(request, await fetch_vehicle_series(pool, vehicle_id, buckets, settings))


@get(
    "/v1/analytics/fleet/series",
    tags=["analytics"],
    dependencies=_SERIES_WINDOW,
    responses=problems({400: PARAMETER, 503: AWAY}),
)
async def get_fleet_series(
    request: Incoming,
    pool: NamedDependency[AsyncEngine],
    window: NamedDependency[Window],
    bucket: BucketParameter = "auto",
    max_points: MaxPoints = 1_500,
    tz: Zone = None,
    site: Annotated[str | None, QueryParameter(description="Only the meters and vehicles of this site.")] = None,
) -> Response[FleetSeries]:
    """Returns all meters and vehicles over time, as columns; as CSV where `Accept` prefers text/csv."""
    retained = await fetch_retained(pool, window, bucket)
    if site is not None:
        return _as_accepted(
            request,
            await fetch_site_series(pool, site, choose_bucket(METERS, window, bucket, max_points, retained, tz)),
        )
    buckets = choose_bucket(FLEET, window, bucket, max_points, retained, tz)
    return _as_accepted(request, await fetch_fleet_series(pool, buckets))


def _as_accepted(request: Incoming, series: MeterSeries | VehicleSeries | FleetSeries) -> Response[Any]:
    """Returns JSON, or CSV with the rest of the series in headers."""
    if not prefers_csv(request):
        return Response(series, headers={"Vary": "Accept"})
    headers = {
        "Vary": "Accept",
        "Content-Disposition": f'attachment; filename="{series.id}-{series.bucket}.csv"',
        "Wattline-Bucket": series.bucket,
        "Wattline-As-Of": _header(series.as_of),
        "Wattline-Materialized-Through": _header(series.materialized_through),
        "Wattline-Kept-From": _header(series.kept_from),
    }
    return Stream(csv_of_columns(series.columns), headers=headers, media_type=CSV)


def _header(moment: datetime | None) -> str:
    return "" if moment is None else stamp(moment)


def get_export_window(start: Start = None, end: End = None, hours: Hours = None) -> Window:
    """Returns the window of an export, which may be a year long."""
    return window_of(start, end, hours, now=datetime.now(UTC), max_hours=24 * MAX_EXPORT_DAYS)


_EXPORT = {"window": Provide(get_export_window, sync_to_thread=False)}
_READINGS = {
    200: ResponseSpec(str, description="The readings, in order of time.", generate_examples=False, media_type=CSV),
    **_SERIES,
}


@get(
    "/v1/analytics/meters/{meter_id:str}/readings",
    tags=["analytics"],
    dependencies=_EXPORT,
    responses=_READINGS,
)
async def get_meter_readings(
    request: Incoming, meter_id: FromPath[str], pool: NamedDependency[AsyncEngine], window: NamedDependency[Window]
) -> Stream:
    """Returns a meter's readings as sent, as CSV; as NDJSON where `Accept` prefers application/x-ndjson."""
    return await export_readings(pool, METER_READINGS, meter_id, window, request.accept)


@get(
    "/v1/analytics/vehicles/{vehicle_id:str}/readings",
    tags=["analytics"],
    dependencies=_EXPORT,
    responses=_READINGS,
)
async def get_vehicle_readings(
    request: Incoming, vehicle_id: FromPath[str], pool: NamedDependency[AsyncEngine], window: NamedDependency[Window]
) -> Stream:
    """Returns a vehicle's readings as sent, as CSV; as NDJSON where `Accept` prefers application/x-ndjson."""
    return await export_readings(pool, VEHICLE_READINGS, vehicle_id, window, request.accept)


@get("/v1/analytics/freshness", tags=["analytics"], responses=problems({503: AWAY}))
async def get_freshness(pool: NamedDependency[AsyncEngine]) -> Freshness:
    """Returns how fresh the answers are, and how many of the devices report."""
    async with reading(pool) as connection:
        return await fetch_freshness(connection)
