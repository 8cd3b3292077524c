"""Sessions over HTTP."""

from datetime import datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from litestar.response import Stream
from sqlalchemy.ext.asyncio import AsyncEngine

from app.analytics.efficiency.verdict import Status
from app.analytics.sessions.answer import SessionAnswer
from app.analytics.sessions.listing import SessionFilter, SessionPage, fetch_sessions, position_of
from app.csv_rows import CSV, csv_of_structs, prefers_csv, stamp
from app.database import of_driver, reading
from app.errors import InvalidTimeRange
from app.problem_answers import AWAY, PARAMETER, problems
from app.settings import Settings


@get(
    "/v1/analytics/sessions",
    tags=["analytics"],
    responses=problems({400: PARAMETER, 404: "The vehicle or meter is not known.", 503: AWAY}),
)
async def get_sessions(
    request: Request[Any, Any, Any],
    pool: NamedDependency[AsyncEngine],
    settings: NamedDependency[Settings],
    vehicle: Annotated[str | None, QueryParameter(description="Only sessions of this vehicle.")] = None,
    meter: Annotated[str | None, QueryParameter(description="Only sessions at this meter.")] = None,
    site: Annotated[
        str | None, QueryParameter(description="Only sessions of the vehicles of this site, or at its meters.")
    ] = None,
    start: Annotated[
        datetime | None, QueryParameter(name="from", description="Only sessions with time after this instant.")
    ] = None,
    end: Annotated[
        datetime | None, QueryParameter(name="to", description="Only sessions that began before this instant.")
    ] = None,
    status: Annotated[Status | None, QueryParameter(description="Only sessions with this verdict.")] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=10_000, description="The most sessions to return.")] = 100,
    after: Annotated[
        str | None, QueryParameter(description="Only the sessions after this place; a `Link` has it.")
    ] = None,
) -> Response[SessionPage]:
    """Returns the sessions of vehicles, the newest first; CSV if `Accept` prefers text/csv."""
    if any(at is not None and at.tzinfo is None for at in (start, end)):
        raise InvalidTimeRange("`from` and `to` need a time zone.")
    only = SessionFilter(vehicle, meter, site, start, end, status, after, limit)
    gap = timedelta(minutes=settings.pairing_gap_minutes)
    async with reading(pool) as connection:
        answer = await fetch_sessions(await of_driver(connection), only, gap=gap)
    headers = {"Vary": "Accept"}
    if len(answer.sessions) == limit:
        query = {**dict(request.query_params), "after": position_of(answer.sessions[-1])}
        headers["Link"] = f'</v1/analytics/sessions?{urlencode(query)}>; rel="next"'
    if not prefers_csv(request):
        return Response(answer, headers=headers)
    return _csv_answer(answer, headers)


def _csv_answer(page: SessionPage, headers: dict[str, str]) -> Response[Any]:
    headers["Content-Disposition"] = 'attachment; filename="sessions.csv"'
    headers["Wattline-As-Of"] = "" if page.as_of is None else stamp(page.as_of)
    headers["Wattline-Judged-To"] = "" if page.judged_to is None else stamp(page.judged_to)
    return Stream(csv_of_structs(SessionAnswer, page.sessions), headers=headers, media_type=CSV)
