"""Errors over HTTP: the one response to every error, and its description in /schema."""

from typing import Any

import psycopg
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import Method, Receive, Scope, Send
from litestar.types.internal_types import PathParameterDefinition
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.errors import (
    Away,
    BodyTooLarge,
    Busy,
    DiskFull,
    Frozen,
    InternalError,
    InvalidParameter,
    Locked,
    MappingOverlap,
    MethodNotAllowed,
    NotFound,
    OutOfConnections,
    Problem,
    ReadOnly,
    ServiceError,
    StoreUnavailable,
)
from app.faults import STORE_FAULTS, UNAVAILABLE, CannotStore, Cause, cause_of
from app.parameters import first_fault

PARAMETER = "A parameter is invalid or unknown."
AWAY = "The database is unavailable or busy; ask again after `Retry-After`."

_MEDIA_TYPE = "application/problem+json"
# These paths of a route are additional; each is known by its last word.
_ALIASES = {"ingest", "ingestion"}

_log = structlog.get_logger()


def answer_problem(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    """Returns the one response to every error: a problem document."""
    ours = translated(error) or _of_framework(request, error)
    if isinstance(ours, InternalError):
        _log.error("unexpected_error", exc_info=error)
    # The line of the request has these.
    structlog.contextvars.bind_contextvars(code=ours.code)
    if ours.status == 503:
        structlog.contextvars.bind_contextvars(reason=str(error.orig if isinstance(error, DBAPIError) else error))
    return Response(ours.problem(), status_code=ours.status, headers=ours.headers, media_type=_MEDIA_TYPE)


async def refuse(scope: Scope, receive: Receive, send: Send, error: ServiceError) -> None:
    """Sends that answer for a request which is not passed on."""
    request = Request[None, None, Any](scope)
    await answer_problem(request, error).to_asgi_response(None, request)(scope, receive, send)


def translated(error: Exception) -> ServiceError | None:
    """Returns the error as one of ours: itself, or the meaning of a driver's or the pool's error; None for a bug."""
    match error.orig if isinstance(error, DBAPIError) else error:
        case ServiceError() as ours:
            return ours
        case psycopg.errors.ExclusionViolation():
            return MappingOverlap()
        case psycopg.DataError(sqlstate=None):
            # The driver refuses this before the database sees it: PostgreSQL's texts hold no NUL.
            return InvalidParameter("A text holds a character that no id has.")
        case psycopg.errors.UndefinedTable() | psycopg.errors.UndefinedFunction():
            return StoreUnavailable("The database is not migrated: run `wattline migrate`.")
        case psycopg.errors.InternalError_() as refused if "must be preloaded" in str(refused):
            return StoreUnavailable(STORE_FAULTS["not_preloaded"])
        case failed if cause := cause_of(failed):
            return _CAUSES[cause](str(failed) if isinstance(failed, CannotStore) else None)
        case CannotStore():
            return StoreUnavailable(str(error))
        case away if isinstance(away, UNAVAILABLE):
            return StoreUnavailable()
        case PoolTimeout():
            return Busy("All database connections are in use.")
        case _:
            return None


_CAUSES: dict[Cause, type[ServiceError]] = {
    "away": Away,
    "disk_full": DiskFull,
    "frozen": Frozen,
    "locked": Locked,
    "out_of_connections": OutOfConnections,
    "read_only": ReadOnly,
}


def _of_framework(request: Request[Any, Any, Any], error: Exception) -> ServiceError:
    """Returns our error for one of the framework's; any other error is a bug."""
    match error:
        case NotFoundException():
            return NotFound("There is nothing at this path; /schema lists the calls.")
        case MethodNotAllowedException():
            allowed = (error.headers or {}).get("allow", "")
            return MethodNotAllowed(headers={"Allow": allowed.replace("GET", "GET, HEAD")})
        case HTTPException(status_code=413):
            return BodyTooLarge()
        case HTTPException(status_code=400):
            return InvalidParameter(first_fault(request, error))
        case _:
            return InternalError()


def problems(descriptions: dict[int, str]) -> dict[int, ResponseSpec]:
    """Returns a route's `responses` from a description of each status."""
    return {
        status: ResponseSpec(Problem, description=description, generate_examples=False, media_type=_MEDIA_TYPE)
        for status, description in descriptions.items()
    }


def operation_id(handler: HTTPRouteHandler, _: Method, path: list[str | PathParameterDefinition]) -> str:
    """Returns the function's name, as in a generated client; with the path's word at an additional path."""
    return f"{handler.handler_name}_{path[-1]}" if path[-1] in _ALIASES else handler.handler_name
