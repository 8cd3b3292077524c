"""Answers over HTTP."""

from datetime import UTC, datetime
from typing import Annotated

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter
from sqlalchemy.ext.asyncio import AsyncEngine

from app.analytics.freshness import Freshness, fetch_freshness
from app.analytics.performance import Performance, fetch_performance
from app.analytics.window import window_of
from app.database import translated_errors
from app.problems import AWAY, PARAMETER, problems
from app.settings import Settings


@get(
    "/v1/analytics/performance/{vehicle_id:str}",
    responses=problems({400: PARAMETER, 404: "No readings in the window, or an unknown vehicle.", 503: AWAY}),
)
async def get_performance(
    vehicle_id: FromPath[str],
    pool: NamedDependency[AsyncEngine],
    settings: NamedDependency[Settings],
    start: Annotated[datetime | None, QueryParameter(name="from", description="Start of the window.")] = None,
    end: Annotated[datetime | None, QueryParameter(name="to", description="Its end; else 5 minutes from now.")] = None,
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


@get("/v1/analytics/freshness", responses=problems({503: AWAY}))
async def get_freshness(pool: NamedDependency[AsyncEngine]) -> Freshness:
    """How fresh the answers are, and how many of the devices report."""
    with translated_errors():
        async with pool.connect() as connection:
            return await fetch_freshness(connection)
