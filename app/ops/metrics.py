"""The metrics for Prometheus: counters of this process, gauges of the database."""

import asyncio
from collections.abc import Iterable

import psycopg
from litestar import Response, get
from litestar.di import NamedDependency
from prometheus_client import REGISTRY, CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.analytics.alerts.judge import Kind
from app.database import reading
from app.ops.doctor.jobs import late_seconds
from app.ops.watch import Watch
from app.problem_answers import translated

# Gauges that do not come so soon are left out.
GAUGE_SECONDS = 0.9

REQUEST_SECONDS = Histogram(
    "wattline_request_seconds",
    "Time from a request to the end of its answer.",
    ["method", "path", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)

# Those of devices in service.
_OPEN_ALERTS = text("""
    SELECT kind, acknowledged IS NOT NULL, count(*)
    FROM alert JOIN device ON device.stream = alert.stream AND device.id = device_id
    WHERE closed IS NULL AND in_service
    GROUP BY 1, 2
""")
_STATEMENTS = {
    "wattline_quarantine_readings": ("Readings in quarantine.", "SELECT count(*) FROM quarantine"),
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
async def get_metrics(pool: NamedDependency[AsyncEngine], watch: NamedDependency[Watch]) -> Response[bytes]:
    """Returns counters since the start of the process and, while the database answers, its gauges; for Prometheus."""
    of_watch = CollectorRegistry()
    _show(watch, of_watch)
    of_database = CollectorRegistry()
    try:
        gauging = asyncio.ensure_future(_gauge(pool, of_database))
        await asyncio.wait_for(asyncio.shield(gauging), GAUGE_SECONDS)
    except (SQLAlchemyError, psycopg.Error, TimeoutError) as error:
        if not isinstance(error, TimeoutError) and translated(error) is None:
            raise
        of_database = CollectorRegistry()
    return Response(
        b"".join(map(generate_latest, (REGISTRY, of_watch, of_database))), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )


async def _gauge(pool: AsyncEngine, registry: CollectorRegistry) -> None:
    async with reading(pool) as connection:
        values = {name: await connection.scalar(text(statement)) for name, (_, statement) in _STATEMENTS.items()}
        open_alerts = (await connection.execute(_OPEN_ALERTS)).all()
    for name, (meaning, _) in _STATEMENTS.items():
        Gauge(name, meaning, registry=registry).set(values[name])
    alerts = Gauge("wattline_alerts_open", "Open alerts.", ["kind", "acknowledged"], registry=registry)
    for kind in Kind:
        for acknowledged in "false", "true":
            alerts.labels(kind, acknowledged)
    for kind, acknowledged, count in open_alerts:
        alerts.labels(kind, str(acknowledged).lower()).set(count)


def _show(watch: Watch, registry: CollectorRegistry) -> None:
    """Sets the gauges of the last round of the watch, without asking the database."""

    def labelled(name: str, meaning: str, label: str, values: Iterable[tuple[str, float]]) -> None:
        gauge = Gauge(f"wattline_{name}", meaning, [label], registry=registry)
        for of, value in values:
            gauge.labels(of).set(value)

    facts = watch.facts
    jobs = {f"{job.work} {job.target}": job for job in facts.jobs}
    labelled("finding", "1 for what is wrong, as in `wattline doctor`.", "code", ((f.code, 1) for f in watch.findings))
    labelled(
        "job_late_seconds",
        "Time for which a job should have been running.",
        "job",
        ((name, late_seconds(job, facts)) for name, job in jobs.items()),
    )
    labelled(
        "job_consecutive_crashes",
        "Runs of a job in a row that ended with their process.",
        "job",
        ((name, job.crashes) for name, job in jobs.items()),
    )
    labelled(
        "aggregate_lag_seconds",
        "Age of what an aggregate is sure to hold.",
        "aggregate",
        ((one.name, (facts.now - one.as_of).total_seconds()) for one in facts.aggregates if facts.now and one.as_of),
    )
    if facts.disk:
        Gauge("wattline_disk_free_bytes", "Free space under the data directory.", registry=registry).set(facts.disk[0])
