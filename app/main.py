"""The service: the one place where all parts meet."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from litestar import Litestar
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.types import ASGIApp

from app import __version__
from app.analytics.alerts.evaluator import judge_forever
from app.analytics.alerts.routes import get_alerts, get_efficiency
from app.analytics.efficiency.ranking import Rankings
from app.analytics.routes import (
    get_fleet_series,
    get_freshness,
    get_meter_readings,
    get_meter_series,
    get_meter_vehicles,
    get_performance,
    get_vehicle_coverage,
    get_vehicle_meters,
    get_vehicle_readings,
    get_vehicle_series,
)
from app.analytics.sessions.routes import get_sessions
from app.browsers import keep_pages_out
from app.dashboard.live import Hub, get_fleet_live
from app.dashboard.routes import get_asset, get_page
from app.database import create_pool
from app.errors import SetupError
from app.faults import NoAnswer, cause_of
from app.fleet.routes import get_mappings, get_meter_states, get_vehicle_states, post_mapping
from app.heads import answer_heads
from app.ingest.http.memory import Memory
from app.ingest.http.openapi import READINGS
from app.ingest.http.routes import post_batch, post_meter_batch, post_vehicle_batch
from app.ingest.mqtt import Consumer
from app.ingest.store.writer import Writer
from app.ops.connections import Connections, connection_limit
from app.ops.health import get_live, get_ready
from app.ops.logging import configure_logging, log_requests
from app.ops.maintenance import maintain_forever
from app.ops.metrics import get_metrics
from app.ops.pulse import Pulse
from app.ops.server import before_stop, follow_parent
from app.ops.watch import Watch
from app.parameters import refuse_unknown_parameters
from app.policies.routes import get_storage
from app.problem_answers import answer_problem, operation_id
from app.settings import Settings
from app.webhooks.deliver import deliver_forever

_log = structlog.get_logger()

ROUTES = [
    post_batch,
    post_meter_batch,
    post_vehicle_batch,
    post_mapping,
    get_mappings,
    get_meter_states,
    get_vehicle_states,
    get_performance,
    get_meter_series,
    get_vehicle_series,
    get_fleet_series,
    get_alerts,
    get_efficiency,
    get_sessions,
    get_meter_readings,
    get_vehicle_readings,
    get_vehicle_coverage,
    get_meter_vehicles,
    get_vehicle_meters,
    get_fleet_live,
    get_freshness,
    get_storage,
    get_live,
    get_ready,
    get_metrics,
    get_page,
    get_asset,
]

OPENAPI = OpenAPIConfig(
    title="Wattline",
    version=__version__,
    description="Telemetry for electric-vehicle charging: readings in, efficiency with its evidence out.",
    path="/schema",
    render_plugins=[JsonRenderPlugin(path="/", media_type="application/json")],  # type: ignore[arg-type]
    use_handler_docstrings=True,
    operation_id_creator=operation_id,
)


def create_writer(url: str, settings: Settings) -> Writer:
    """Returns the writer that the settings describe; a process has one."""
    return Writer(
        url, queue_max_readings=settings.queue_max_readings, new_devices_per_hour=settings.new_devices_per_hour
    )


@asynccontextmanager
async def ingesting(
    url: str, settings: Settings, writer: Writer, consumer: Consumer | None, watch: Watch
) -> AsyncIterator[None]:
    """Runs the writer, the loops and the MQTT consumer; at the end, batches in flight are finished and answered."""
    writing = asyncio.create_task(writer.run())
    loops = [
        asyncio.create_task(maintain_forever(url), name="maintenance"),
        asyncio.create_task(judge_forever(url, settings), name="alerts"),
        asyncio.create_task(deliver_forever(url, settings), name="webhooks"),
        asyncio.create_task(watch.run(), name="watch"),
        asyncio.create_task(Pulse(url, lambda: writer.refuse_waiting(NoAnswer())).run(), name="pulse"),
    ]
    consuming = asyncio.create_task(consumer.run() if consumer else asyncio.sleep(0), name="mqtt_consumer")
    for task in (*loops, consuming):
        task.add_done_callback(_end_if_failed)
    try:
        yield
    finally:
        if consumer:
            consumer.close()
        await asyncio.wait({consuming})
        writer.close()
        await writing
        # Nothing in flight needs the database any more.
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
    consuming.result()


def _end_if_failed(task: asyncio.Task[None]) -> None:
    # A service that went on without its consumer or a loop would look alive.
    if not task.cancelled() and (error := task.exception()):
        _log.error("task_failed", task=task.get_name(), exc_info=error)
        os.kill(os.getpid(), signal.SIGTERM)


async def consume(url: str, settings: Settings) -> None:
    """Takes readings from the broker into the database of the URL until SIGTERM or SIGINT."""
    writer = create_writer(url, settings)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with ingesting(url, settings, writer, Consumer(settings, writer), Watch(url, settings)):
        await stopped.wait()


def create_app(settings: Settings, *, mqtt: bool = False) -> ASGIApp:
    """Returns the application for the settings; with `mqtt`, it has a consumer too. Raises SetupError without a URL."""
    url = settings.database_url
    if url is None:
        raise SetupError("DATABASE_URL is not set.")
    pool = create_pool(url, settings.pool_max_size)
    # These are made here, not in the lifespan, because the handlers below need them; both are harmless until used.
    writer = create_writer(url, settings)
    consumer = Consumer(settings, writer) if mqtt else None
    watch = Watch(url, settings)
    hub = Hub(pool)
    memory = Memory(settings.queue_max_readings)
    connections = Connections(connection_limit(settings))
    rankings = Rankings(pool, settings)

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        before_stop(hub.close)
        ending_idle = asyncio.create_task(connections.run())
        async with ingesting(url, settings, writer, consumer, watch):
            yield
        ending_idle.cancel()
        hub.close()
        await pool.dispose()

    app = Litestar(
        route_handlers=ROUTES,
        dependencies={
            "writer": Provide(lambda: writer, sync_to_thread=False),
            "store_fault": Provide(lambda: cause_of(writer.fault), sync_to_thread=False),
            "watch": Provide(lambda: watch, sync_to_thread=False),
            "hub": Provide(lambda: hub, sync_to_thread=False),
            "rankings": Provide(lambda: rankings, sync_to_thread=False),
            "memory": Provide(lambda: memory, sync_to_thread=False),
            "pool": Provide(lambda: pool, sync_to_thread=False),
            "settings": Provide(lambda: settings, sync_to_thread=False),
        },
        lifespan=[lifespan],
        before_request=refuse_unknown_parameters,
        exception_handlers={Exception: answer_problem},
        openapi_config=OPENAPI,
        logging_config=None,
    )
    # Litestar knows the schemas of what it decodes itself; batches are decoded by us.
    app.openapi_schema.components.schemas |= READINGS
    # These go around the router, not inside, so that they see the requests that the router refuses too.
    return log_requests(keep_pages_out(connections.limited(answer_heads(app)), settings))


def from_environ(*, mqtt: bool = False) -> ASGIApp:
    """Returns the application for the server's process, configured by the environment."""
    settings = Settings.from_environ(os.environ)
    configure_logging(settings.log_level)
    follow_parent()
    return create_app(settings, mqtt=mqtt)


def from_environ_with_mqtt() -> ASGIApp:
    """Returns the same application, with an MQTT consumer in the process."""
    return from_environ(mqtt=True)
