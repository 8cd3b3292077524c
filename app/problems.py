"""What /schema says of the problem documents that a route answers with."""

from litestar.openapi.datastructures import ResponseSpec

from app.errors import Problem

PARAMETER = "A parameter is not valid."
AWAY = "The database is away or busy; ask again after `Retry-After`."


def problems(descriptions: dict[int, str]) -> dict[int, ResponseSpec]:
    """A route's `responses`: for each status, when it is answered."""
    return {
        status: ResponseSpec(
            Problem, description=description, generate_examples=False, media_type="application/problem+json"
        )
        for status, description in descriptions.items()
    }
