"""The HTTP calls for mappings and latest states."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import InternalServerException
from litestar.openapi.spec import Example, OpenAPIFormat, OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from litestar.params import QueryParameter
from litestar.response import Stream
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncEngine

from app.csv_rows import CSV, csv_of_structs, prefers_csv
from app.database import LIMITS, driver_connection, of_driver, reading
from app.errors import InvalidParameter, MalformedBody, UnsupportedMediaType
from app.fleet.mapping import VehicleMapping, map_vehicle, mapping_history
from app.fleet.states import MeterState, VehicleState, meter_states, vehicle_states
from app.problem_answers import AWAY, PARAMETER, problems
from app.settings import Settings
from app.telemetry.device_id import ID_PATTERN, ID_SCHEMA_PATTERN

ExternalId = Annotated[str, Meta(pattern=ID_PATTERN)]
Moment = Annotated[datetime, Meta(tz=True)]
Limit = Annotated[int | None, QueryParameter(ge=1, le=100_000, description="The most states to return; default: all.")]
Site = Annotated[str | None, QueryParameter(description="Only devices with this label.")]
After = Annotated[str | None, QueryParameter(description="Only devices whose ids follow this one.")]


class NewMapping(VehicleMapping, frozen=True, rename="camel"):
    """A mapping in the form that clients may send."""

    vehicle_id: ExternalId
    meter_id: ExternalId
    valid_from: Moment | None = None
    valid_to: Moment | None = None


@dataclass
class MappingOperation(Operation):
    """The body of a mapping in /schema. It is decoded here, since Litestar would take a number for a time."""

    def __post_init__(self) -> None:
        name = Schema(type=OpenAPIType.STRING, pattern=ID_SCHEMA_PATTERN)
        moment = Schema(type=[OpenAPIType.STRING, OpenAPIType.NULL], format=OpenAPIFormat.DATE_TIME)
        properties = {"vehicleId": name, "meterId": name, "validFrom": moment, "validTo": moment}
        schema = Schema(type=OpenAPIType.OBJECT, properties={**properties}, required=["vehicleId", "meterId"])
        example = Example(value={"vehicleId": "vehicle-001", "meterId": "meter-001"})
        body = OpenAPIMediaType(schema=schema, examples={"mapping": example})
        self.request_body = RequestBody(required=True, content={"application/json": body})


@post(
    "/v1/ingestion/mapping",
    tags=["mapping"],
    status_code=200,
    request_max_body_size=64 * 1024,
    operation_class=MappingOperation,
    responses=problems(
        {
            400: "The body is not a mapping, or its times are not a range.",
            403: "A web page of another origin sent the request.",
            408: "The body did not arrive in time.",
            409: "The vehicle is mapped already during part of that time.",
            413: "The body is too large.",
            415: "The content type is missing or not supported.",
            429: "A device is new, and too many new devices were registered within the hour.",
            503: AWAY,
        }
    ),
)
async def post_mapping(
    request: Request[Any, Any, Any], pool: NamedDependency[AsyncEngine], settings: NamedDependency[Settings]
) -> VehicleMapping:
    """Maps a vehicle to a meter and ends the vehicle's open mapping."""
    try:
        new = _decode(await request.body(), request.content_type[0])
    except InternalServerException:
        # The client has gone: nobody reads this answer, and it is not a bug.
        raise MalformedBody("The connection was closed before the end of the body.") from None
    async with driver_connection(pool) as connection, connection.transaction():
        await connection.execute(LIMITS)
        return await map_vehicle(connection, new, new_devices_per_hour=settings.new_devices_per_hour)


def _decode(body: bytes, media_type: str) -> NewMapping:
    if media_type != "application/json":
        raise UnsupportedMediaType("The content type must be application/json.")
    try:
        return msgspec.json.decode(body, type=NewMapping)
    except msgspec.ValidationError as error:
        raise InvalidParameter(f"{error}.") from None
    except RecursionError:
        raise MalformedBody("The body is nested too deeply.") from None
    except ValueError as error:  # msgspec lets UnicodeDecodeError through; its own errors are ValueErrors too.
        raise MalformedBody(f"{error}.") from None


@get("/v1/ingestion/mapping", tags=["mapping"], responses=problems({400: PARAMETER, 503: AWAY}))
async def get_mappings(
    pool: NamedDependency[AsyncEngine],
    vehicle_id: Annotated[str | None, QueryParameter(name="vehicleId", description="Mappings of this vehicle.")] = None,
    meter_id: Annotated[str | None, QueryParameter(name="meterId", description="Mappings to this meter.")] = None,
) -> list[VehicleMapping]:
    """Returns the mappings of a vehicle, to a meter, or of both, oldest first."""
    if vehicle_id is None and meter_id is None:
        raise InvalidParameter("Give vehicleId or meterId.")
    async with reading(pool) as connection:
        return await mapping_history(await of_driver(connection), vehicle_id, meter_id)


@get("/v1/analytics/meters/states", tags=["analytics"], responses=problems({400: PARAMETER, 503: AWAY}))
async def get_meter_states(
    request: Request[Any, Any, Any],
    pool: NamedDependency[AsyncEngine],
    limit: Limit = None,
    after: After = None,
    site: Site = None,
) -> Response[list[MeterState]]:
    """Returns the latest state of every meter, by id; as CSV where `Accept` prefers text/csv."""
    async with reading(pool) as connection:
        states = await meter_states(connection, limit=limit, after=after, site=site)
    last = [state.meter_id for state in states[-1:]]
    return _as_accepted(request, MeterState, states, _next_page("meters", limit, last, site, len(states)))


@get("/v1/analytics/vehicles/states", tags=["analytics"], responses=problems({400: PARAMETER, 503: AWAY}))
async def get_vehicle_states(
    request: Request[Any, Any, Any],
    pool: NamedDependency[AsyncEngine],
    limit: Limit = None,
    after: After = None,
    site: Site = None,
) -> Response[list[VehicleState]]:
    """Returns the latest state of every vehicle, by id; as CSV where `Accept` prefers text/csv."""
    async with reading(pool) as connection:
        states = await vehicle_states(connection, limit=limit, after=after, site=site)
    last = [state.vehicle_id for state in states[-1:]]
    return _as_accepted(request, VehicleState, states, _next_page("vehicles", limit, last, site, len(states)))


def _next_page(kind: str, limit: int | None, last: list[str], site: str | None, count: int) -> dict[str, Any]:
    """Returns the Link to the next page, when this one is full."""
    if limit is None or count < limit:
        return {}
    query = urlencode({"limit": limit, "after": last[0]} | ({} if site is None else {"site": site}))
    return {"Link": f'</v1/analytics/{kind}/states?{query}>; rel="next"'}


def _as_accepted(
    request: Request[Any, Any, Any],
    kind: type[msgspec.Struct],
    states: Sequence[msgspec.Struct],
    headers: dict[str, Any],
) -> Response[Any]:
    headers["Vary"] = "Accept"
    if not prefers_csv(request):
        return Response(states, headers=headers)
    headers["Content-Disposition"] = f'attachment; filename="{request.url.path.split("/")[-2]}.csv"'
    return Stream(csv_of_structs(kind, states), headers=headers, media_type=CSV)
