"""Query parameters: unknown ones are refused, and a fault in one is described in words."""

from enum import EnumMeta
from types import NoneType
from typing import Any, get_args

from litestar import Request
from litestar.exceptions import HTTPException

from app.errors import InvalidParameter


async def refuse_unknown_parameters(request: Request[Any, Any, Any]) -> None:
    """Raises InvalidParameter for a parameter that the call does not take: ignoring a misspelt one would mislead.

    A call without parameters ignores all of them: probes and gateways add some.
    """
    if not request.scope["query_string"]:
        return
    path = (request.app.openapi_schema.paths or {}).get(request.scope["path_template"])
    operation = getattr(path, request.method.lower(), None)
    known = [
        parameter.name for parameter in getattr(operation, "parameters", None) or [] if parameter.param_in == "query"
    ]
    if known and (unknown := sorted(request.query_params.keys() - known)):
        raise InvalidParameter(f"{', '.join(unknown)}: Unknown parameter; allowed: {', '.join(known)}.")


def first_fault(request: Request[Any, Any, Any], error: HTTPException) -> str:
    """Returns the first fault that the framework found, as a sentence that begins with the parameter's name."""
    match error.extra:
        case [{"message": message, "key": key}, *_]:
            # Litestar gives our name for the parameter, not the client's.
            handler = request.route_handler
            signatures = [handler.parsed_fn_signature]
            signatures += [provider.parsed_fn_signature for provider in handler.resolve_dependencies().values()]
            parameter = {name: of for each in signatures for name, of in each.parameters.items()}[key]
            name = getattr(parameter.kwarg_definition, "name", None) or key
            return f"{name}: {_in_words(message, options=_options(parameter.annotation))}"
        case _:
            return error.detail


def _options(annotation: object) -> list[str]:
    """Returns the values of a Literal or an enum, optional or not."""
    options = [option for option in get_args(annotation) or [annotation] if option is not NoneType]
    return [str(value) for option in options for value in (option if isinstance(option, EnumMeta) else [option])]


def _in_words(message: str, *, options: list[str]) -> str:
    """Rewrites the framework's message for a reader who does not know Python's names for types."""
    if message.startswith("Invalid enum value"):
        return f"Expected one of {', '.join(options)}."
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return f"{message.rstrip(' .')}."


_WORDS = {
    "Invalid RFC3339 encoded datetime": "Write times as 2026-02-10T14:47:25Z; the + of another zone is %2B in a URL.",
    "Expected `bool | null`, got `str`": "Expected true or false.",
    "Expected `int | null`, got `str`": "Expected a whole number.",
    "Expected `int`, got `str`": "Expected a whole number.",
    "Expected `int` ": "Expected a number ",
    "Expected `int | null` ": "Expected a number ",
}
