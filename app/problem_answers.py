"""What /schema says of every route: its operation id, and the problem documents that it answers with."""

from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import Method
from litestar.types.internal_types import PathParameterDefinition

from app.errors import Problem

PARAMETER = "A parameter is not valid, or not known."
AWAY = "The database is away or busy; ask again after `Retry-After`."

# Further paths of a route, by their last word.
_ALIASES = {"ingest", "ingestion"}


def operation_id(handler: HTTPRouteHandler, _: Method, path: list[str | PathParameterDefinition]) -> str:
    """The function's name, as in a generated client; at a further path of the same function, with the path's word."""
    return f"{handler.handler_name}_{path[-1]}" if path[-1] in _ALIASES else handler.handler_name


def problems(descriptions: dict[int, str]) -> dict[int, ResponseSpec]:
    """A route's `responses`: for each status, when it is answered."""
    return {
        status: ResponseSpec(
            Problem, description=description, generate_examples=False, media_type="application/problem+json"
        )
        for status, description in descriptions.items()
    }
