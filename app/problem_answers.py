"""Errors over HTTP: the one response for whatever goes wrong, and what /schema says of it."""

from typing import Any

import psycopg
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import Method
from litestar.types.internal_types import PathParameterDefinition
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.database import UNAVAILABLE
from app.errors import (
    BodyTooLarge,
    InternalError,
    InvalidParameter,
    MappingOverlap,
    MethodNotAllowed,
    NotFound,
    Problem,
    ServiceError,
    StoreBusy,
    StoreUnavailable,
)
from app.parameters import first_fault

PARAMETER = "A parameter is not valid, or not known."
AWAY = "The database is away or busy; ask again after `Retry-After`."

_MEDIA_TYPE = "application/problem+json"
# Further paths of a route, by their last word.
_ALIASES = {"ingest", "ingestion"}

_log = structlog.get_logger()


def answer_problem(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    """The one error response: a problem document, whatever went wrong wherever."""
    ours = translated(error) or _of_framework(request, error)
    if isinstance(ours, InternalError):
        _log.error("unexpected_error", exc_info=error)
    return Response(ours.problem(), status_code=ours.status, headers=ours.headers, media_type=_MEDIA_TYPE)


def translated(error: Exception) -> ServiceError | None:
    """The error as one of ours: itself, or the meaning of an error of the driver or the pool; None for a bug."""
    match error.orig if isinstance(error, DBAPIError) else error:
        case ServiceError() as ours:
            return ours
        case psycopg.errors.ExclusionViolation():
            return MappingOverlap()
        case psycopg.DataError(sqlstate=None):
            # Refused by the driver, before the database: PostgreSQL's texts hold no NUL.
            return InvalidParameter("A text holds a character that no id has.")
        case psycopg.errors.UndefinedTable() | psycopg.errors.UndefinedFunction():
            return StoreUnavailable("The database is not migrated: run `wattline migrate`.")
        case away if isinstance(away, UNAVAILABLE):
            return StoreUnavailable()
        case PoolTimeout():
            return StoreBusy("All database connections are in use.")
        case _:
            return None


def _of_framework(request: Request[Any, Any, Any], error: Exception) -> ServiceError:
    """Our error for one of the framework's; anything else is a bug."""
    match error:
        case NotFoundException():
            return NotFound("There is nothing at this path; /schema lists the calls.")
        case MethodNotAllowedException():
            return MethodNotAllowed(headers=dict(error.headers or {}))
        case HTTPException(status_code=413):
            return BodyTooLarge()
        case HTTPException(status_code=400):
            return InvalidParameter(first_fault(request, error))
        case _:
            return InternalError()


def problems(descriptions: dict[int, str]) -> dict[int, ResponseSpec]:
    """A route's `responses`: for each status, when it is answered."""
    return {
        status: ResponseSpec(Problem, description=description, generate_examples=False, media_type=_MEDIA_TYPE)
        for status, description in descriptions.items()
    }


def operation_id(handler: HTTPRouteHandler, _: Method, path: list[str | PathParameterDefinition]) -> str:
    """The function's name, as in a generated client; at a further path of the same function, with the path's word."""
    return f"{handler.handler_name}_{path[-1]}" if path[-1] in _ALIASES else handler.handler_name
