"""Alerts and the ranking over HTTP."""

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from litestar.response import Stream
from sqlalchemy.ext.asyncio import AsyncEngine

from app.analytics.alerts.judge import EVIDENCE, Kind
from app.analytics.alerts.listing import AlertFilter, AlertPage, fetch_alerts, position_of
from app.analytics.efficiency.ranking import By, EfficiencyRanking, Rankings
from app.analytics.efficiency.verdict import Coverage
from app.csv_rows import CSV, csv_rows, prefers_csv, stamp
from app.database import of_driver, reading
from app.errors import InvalidTimeRange
from app.problem_answers import AWAY, PARAMETER, problems
from app.settings import Settings

_PROBLEMS = problems({400: PARAMETER, 503: AWAY})
_ALERT_COLUMNS = ("id", "kind", "stream", "deviceId", "meterIds", "vehicleIds", "openedAt", "closedAt", "text")
_CURRENT = ("acKwh", "dcKwh", "lossKwh", "lossCost", "efficiencyRatio")
_CURRENT_COLUMNS = (
    *("currentAcKwh", "currentDcKwh", "currentLossKwh", "currentLossCost", "currentEfficiencyRatio"),
    *("lossToDateKwh", "lossToDateCost"),
)
_ACKNOWLEDGED_COLUMNS = ("acknowledgedAt", "acknowledgedBy", "acknowledgedReason")
_RANKED_COLUMNS = ("id", "efficiencyRatio", "uncertainty", "acKwh", "dcKwh", "lossKwh", "lossCost")


@get(
    "/v1/analytics/alerts",
    tags=["analytics"],
    responses=problems({400: PARAMETER, 404: "The vehicle or meter is not known.", 503: AWAY}),
)
async def get_alerts(
    request: Request[Any, Any, Any],
    pool: NamedDependency[AsyncEngine],
    settings: NamedDependency[Settings],
    is_open: Annotated[bool | None, QueryParameter(name="open", description="Only open or only closed alerts.")] = None,
    kind: Annotated[Kind | None, QueryParameter(description="Only alerts of this kind.")] = None,
    vehicle_id: Annotated[
        str | None, QueryParameter(name="vehicleId", description="Only alerts that concern this vehicle.")
    ] = None,
    meter_id: Annotated[
        str | None, QueryParameter(name="meterId", description="Only alerts that concern this meter.")
    ] = None,
    site: Annotated[str | None, QueryParameter(description="Only alerts that concern a device of this site.")] = None,
    start: Annotated[
        datetime | None, QueryParameter(name="from", description="Only alerts that were open at this time or later.")
    ] = None,
    end: Annotated[
        datetime | None, QueryParameter(name="to", description="Only alerts that opened before this time.")
    ] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=10_000, description="The most alerts to return.")] = 100,
    after: Annotated[
        str | None, QueryParameter(description="Only the alerts after this place; a `Link` has it.")
    ] = None,
) -> Response[AlertPage]:
    """Returns alerts of devices in service: open ones first, then by loss to date; CSV if `Accept` prefers text/csv."""
    if any(at is not None and at.tzinfo is None for at in (start, end)):
        raise InvalidTimeRange("`from` and `to` need a time zone.")
    only = AlertFilter(is_open, kind, vehicle_id, meter_id, None, site, start, end, after, limit)
    async with reading(pool) as connection:
        answer = await fetch_alerts(await of_driver(connection), only, settings)
    headers = {"Vary": "Accept"}
    if len(answer.alerts) == limit:
        query = {**dict(request.query_params), "after": position_of(answer.alerts[-1])}
        headers["Link"] = f'</v1/analytics/alerts?{urlencode(query)}>; rel="next"'
    if not prefers_csv(request):
        return Response(answer, headers=headers)
    documents = msgspec.to_builtins(answer.alerts)
    rows = (
        [" ".join(one[name]) if name.endswith("Ids") else one[name] for name in _ALERT_COLUMNS]
        + [one["evidence"].get(name) for name in EVIDENCE]
        + [*((one["current"] or {}).get(name) for name in _CURRENT), one["lossToDateKwh"], one["lossToDateCost"]]
        + [*(one["acknowledged"] or dict.fromkeys(("at", "by", "reason"))).values()]
        for one in documents
    )
    columns = [*_ALERT_COLUMNS, *EVIDENCE, *_CURRENT_COLUMNS, *_ACKNOWLEDGED_COLUMNS]
    return _csv_answer("alerts", columns, rows, headers, answer)


@get("/v1/analytics/efficiency", tags=["analytics"], responses=_PROBLEMS)
async def get_efficiency(
    request: Request[Any, Any, Any],
    rankings: NamedDependency[Rankings],
    by: Annotated[By, QueryParameter(description="The kind of device to rank.")] = "vehicle",
    worst: Annotated[int, QueryParameter(ge=1, le=100_000, description="The number of devices to return.")] = 20,
    start: Annotated[
        datetime | None, QueryParameter(name="from", description="Start of the hours; default: 24 before `to`.")
    ] = None,
    end: Annotated[
        datetime | None, QueryParameter(name="to", description="End of the hours; default: end of the last judged one.")
    ] = None,
    site: Annotated[str | None, QueryParameter(description="Only devices of this site, also in the totals.")] = None,
) -> Response[EfficiencyRanking]:
    """Returns the efficiency of the fleet and its worst devices over whole hours; CSV if `Accept` prefers text/csv."""
    answer = await rankings.fetch(by, start, end, site, worst=worst)
    headers = {"Vary": "Accept"}
    if not prefers_csv(request):
        return Response(answer, headers=headers)
    headers["Wattline-Judged-To"] = "" if answer.judged_to is None else stamp(answer.judged_to)
    coverage = Coverage.__struct_fields__
    rows = (
        [*(one[name] for name in _RANKED_COLUMNS), *(one["coverage"][name] for name in coverage), one["status"]]
        for one in msgspec.to_builtins(answer.ranking)
    )
    return _csv_answer(f"efficiency-{by}", [*_RANKED_COLUMNS, *coverage, "status"], rows, headers, answer)


def _csv_answer(
    name: str,
    header: list[str],
    rows: Iterator[list[Any]],
    headers: dict[str, str],
    answer: AlertPage | EfficiencyRanking,
) -> Response[Any]:
    headers["Content-Disposition"] = f'attachment; filename="{name}.csv"'
    headers["Wattline-As-Of"] = "" if answer.as_of is None else stamp(answer.as_of)
    headers["Wattline-Currency"] = answer.currency or ""
    return Stream(csv_rows(header, rows), headers=headers, media_type=CSV)
