"""Mapping and latest states over HTTP."""

from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody, QueryParameter
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import driver_connection, translated_errors
from app.errors import Problem
from app.fleet.mapping import Mapping, map_vehicle, mapping_history
from app.fleet.states import MeterState, VehicleState, meter_states, vehicle_states

ExternalId = Annotated[str, Meta(pattern="^[A-Za-z0-9._:-]{1,64}$")]
Moment = Annotated[datetime, Meta(tz=True)]
Limit = Annotated[int | None, QueryParameter(ge=1, le=100_000, description="At most so many; else all.")]
After = Annotated[str | None, QueryParameter(description="Only ids that follow this one.")]


class WantedMapping(msgspec.Struct, frozen=True, rename="camel"):
    """Maps a vehicle to the meter it charges at."""

    vehicle_id: ExternalId
    meter_id: ExternalId
    valid_from: Moment | None = None
    valid_to: Moment | None = None


@post(
    "/v1/ingestion/mapping",
    status_code=200,
    responses={
        409: ResponseSpec(
            Problem,
            description="The vehicle is mapped already in a part of that time.",
            generate_examples=False,
            media_type="application/problem+json",
        )
    },
)
async def post_mapping(data: JSONBody[WantedMapping], pool: NamedDependency[AsyncEngine]) -> Mapping:
    """Maps a vehicle to a meter, ending the vehicle's open mapping."""
    with translated_errors():
        async with driver_connection(pool) as connection:
            return await map_vehicle(
                connection, Mapping(data.vehicle_id, data.meter_id, data.valid_from, data.valid_to)
            )


@get("/v1/ingestion/mapping")
async def get_mappings(
    pool: NamedDependency[AsyncEngine], vehicle_id: Annotated[str, QueryParameter(name="vehicleId")]
) -> list[Mapping]:
    """The history of a vehicle's mappings, oldest first."""
    with translated_errors():
        async with driver_connection(pool) as connection:
            return await mapping_history(connection, vehicle_id)


@get("/v1/analytics/meters/states")
async def get_meter_states(
    pool: NamedDependency[AsyncEngine], limit: Limit = None, after: After = None
) -> Response[list[MeterState]]:
    """The latest state of every meter, by id."""
    with translated_errors():
        async with pool.connect() as connection:
            states = await meter_states(connection, limit=limit, after=after)
    return Response(states, headers=_next_page("meters", limit, [state.meter_id for state in states[-1:]], len(states)))


@get("/v1/analytics/vehicles/states")
async def get_vehicle_states(
    pool: NamedDependency[AsyncEngine], limit: Limit = None, after: After = None
) -> Response[list[VehicleState]]:
    """The latest state of every vehicle, by id."""
    with translated_errors():
        async with pool.connect() as connection:
            states = await vehicle_states(connection, limit=limit, after=after)
    return Response(
        states, headers=_next_page("vehicles", limit, [state.vehicle_id for state in states[-1:]], len(states))
    )


def _next_page(kind: str, limit: int | None, last: list[str], count: int) -> dict[str, Any]:
    """The Link to what follows, when the page is full."""
    if limit is None or count < limit:
        return {}
    query = urlencode({"limit": limit, "after": last[0]})
    return {"Link": f'</v1/analytics/{kind}/states?{query}>; rel="next"'}
