"""The metrics for Prometheus: counters of this process, gauges of the database."""

from litestar import Response, get
from litestar.di import NamedDependency
from prometheus_client import REGISTRY, CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.problem_answers import translated

REQUEST_SECONDS = Histogram(
    "wattline_request_seconds",
    "Time from a request to the end of its answer.",
    ["method", "path", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)

_STATEMENTS = {
    "wattline_quarantine_readings": ("Rejected readings in quarantine.", "SELECT count(*) FROM quarantine"),
    "wattline_quarantine_dropped_readings": (
        "Rejected readings that the bounds of the quarantine have dropped so far.",
        "SELECT quarantine_dropped FROM installation",
    ),
    "wattline_webhooks_waiting": ("Transitions of alerts not yet delivered.", "SELECT count(*) FROM webhook"),
    "wattline_webhooks_given_up": (
        "Transitions of alerts given up so far because no receiver took them in time.",
        "SELECT webhooks_given_up FROM installation",
    ),
    "wattline_meters": ("Registered meters.", "SELECT count(*) FROM meter"),
    "wattline_vehicles": ("Registered vehicles.", "SELECT count(*) FROM vehicle"),
}


@get("/metrics", tags=["health"], media_type="text/plain")
async def get_metrics(pool: NamedDependency[AsyncEngine]) -> Response[bytes]:
    """Returns counters since the start of the process and, while the database answers, its gauges; for Prometheus."""
    of_database = CollectorRegistry()
    try:
        async with pool.connect() as connection:
            await _gauge(connection, of_database)
    except SQLAlchemyError as error:
        if translated(error) is None:
            raise
        of_database = CollectorRegistry()
    return Response(
        generate_latest(REGISTRY) + generate_latest(of_database), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )


async def _gauge(connection: AsyncConnection, registry: CollectorRegistry) -> None:
    for name, (meaning, statement) in _STATEMENTS.items():
        Gauge(name, meaning, registry=registry).set(await connection.scalar(text(statement)))
