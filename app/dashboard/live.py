"""Live updates of the dashboard: one task queries the aggregates each second and sends the answer to all listeners."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import structlog
from litestar import Request, get
from litestar.di import NamedDependency
from litestar.response import Stream
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.analytics.alerts.schema import alert_transition
from app.analytics.buckets import Buckets
from app.analytics.fleet_series import FleetColumns, fetch_fleet_series
from app.analytics.freshness import fetch_freshness
from app.database import reading
from app.errors import Busy
from app.fleet.states import VehicleState, vehicle_states
from app.ops.connections import cut_off
from app.problem_answers import AWAY, problems, translated
from app.telemetry.instant import MAX_AHEAD

MAX_LISTENERS = 200
"""The limit for one process; each listener takes a connection and a few kilobytes."""
MAX_STATES = 1_000
"""The limit for one event; further states come with the next event."""
_MAX_WAITING = 16
"""The number of events by which a listener may lag; a slower one is sent away, and asks for everything anew."""
_LAST_WORDS_S = 1.0
"""The time in which a listener that is sent away may read the rest before its connection is cut off."""
_PERIOD_S = 1.0
_MINUTE = timedelta(minutes=1)
_SHOWN_MINUTES = 5 * _MINUTE
# This long after a minute ends, most of its readings have arrived.
_SETTLED = timedelta(seconds=30)

_log = structlog.get_logger()


class LiveFleet(msgspec.Struct, frozen=True, rename="camel"):
    """The fleet now. Every reading committed before `as_of` is included; `lag_seconds` is the age of `as_of`.

    `readings_per_second` is over the last whole minute; `minutes` has the last few minutes as in the fleet's series.
    """

    as_of: datetime | None
    lag_seconds: float | None
    devices_reporting: int
    devices_expected: int
    readings_per_second: float
    minutes: FleetColumns


class Hub:
    """A task that asks while anyone listens, and sends everyone the same events."""

    def __init__(self, pool: AsyncEngine) -> None:
        self._pool = pool
        self._listeners: dict[asyncio.Queue[bytes | None], tuple[str, int] | None] = {}
        self._asking: asyncio.Task[None] | None = None
        self._closed = False
        self._latest = b""

    def close(self) -> None:
        """Ends every stream, now and in future: a server that stops waits for the end of its answers."""
        self._closed = True
        if self._asking is not None:
            self._asking.cancel()
        self._send_away(list(self._listeners))

    async def listen(self, client: tuple[str, int] | None = None) -> AsyncGenerator[bytes, None]:
        """Yields the events as they come, the latest first, until close() or until the listener is too slow.

        A slow listener's connection, from `client`, is cut off: the server would wait for ever until it reads.
        """
        queue = asyncio.Queue[bytes | None](_MAX_WAITING)
        self._listeners[queue] = client
        try:
            yield b"retry: 1000\n\n"
            if not self._closed and (self._asking is None or self._asking.done()):
                self._asking = asyncio.create_task(self._ask_forever())
            elif self._latest:
                yield self._latest
            while not self._closed and (message := await queue.get()) is not None:
                yield message
        finally:
            self._listeners.pop(queue, None)

    @property
    def is_full(self) -> bool:
        """Returns True when no more listeners can be taken."""
        return len(self._listeners) >= MAX_LISTENERS

    async def _ask_forever(self) -> None:
        news = News()
        try:
            while self._listeners:
                soonest = asyncio.create_task(asyncio.sleep(_PERIOD_S))
                try:
                    events = await news.ask(self._pool)
                except Exception as error:
                    if (ours := translated(error)) is None:
                        raise
                    events = {"problem": ours.problem()}
                self._send(b"".join(_encoded(name, data) for name, data in events.items()))
                await soonest
        except Exception:  # noqa: BLE001 - a fault here ends the streams, not the service; listeners come back
            _log.exception("live_failed")
        finally:
            self._latest = b""
            self._send_away(list(self._listeners))

    def _send(self, message: bytes) -> None:
        self._latest = message
        self._send_away([queue for queue in self._listeners if queue.full()])
        for queue in self._listeners:
            queue.put_nowait(message)

    def _send_away(self, queues: list[asyncio.Queue[bytes | None]]) -> None:
        clients = set(filter(None, map(self._listeners.pop, queues)))
        for queue in queues:
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait(None)
        if clients:
            asyncio.get_running_loop().call_later(_LAST_WORDS_S, cut_off, clients)


class News:
    """The changes since the last question."""

    def __init__(self) -> None:
        self._sent: dict[str, datetime] | None = None
        self._transition: int | None = None

    async def ask(self, pool: AsyncEngine) -> dict[str, object]:
        """Returns events by name: `fleet` always, `states` and `alerts` if they have news."""
        events: dict[str, object] = {"fleet": await _fetch_fleet(pool)}
        async with reading(pool) as connection:
            if states := self._new_states(await vehicle_states(connection, limit=None, after=None)):
                events["states"] = states
            if await self._alerts_have_changed(connection):
                events["alerts"] = {"transition": self._transition}
        return events

    def _new_states(self, states: list[VehicleState]) -> list[VehicleState]:
        if self._sent is None:  # a new listener asks for all states itself
            self._sent = {state.vehicle_id: state.last_updated for state in states}
            return []
        new = [state for state in states if self._sent.get(state.vehicle_id) != state.last_updated][:MAX_STATES]
        self._sent |= {state.vehicle_id: state.last_updated for state in new}
        return new

    async def _alerts_have_changed(self, connection: AsyncConnection) -> bool:
        before, self._transition = self._transition, await connection.scalar(_LAST_TRANSITION)
        return before is not None and before != self._transition


async def _fetch_fleet(pool: AsyncEngine) -> LiveFleet:
    now = datetime.now(UTC)
    minute = now.replace(second=0, microsecond=0)
    series = await fetch_fleet_series(pool, Buckets("1m", minute - _SHOWN_MINUTES, minute + _MINUTE + MAX_AHEAD))
    async with reading(pool) as connection:
        freshness = await fetch_freshness(connection)
    settled = (now - _SETTLED).replace(second=0, microsecond=0) - _MINUTE
    columns = series.columns
    readings = {
        t: (of_meters or 0) + (of_vehicles or 0)
        for t, of_meters, of_vehicles in zip(columns.t, columns.meter_readings, columns.vehicle_readings, strict=True)
    }
    return LiveFleet(
        as_of=series.as_of,
        lag_seconds=None if series.as_of is None else max(0.0, (now - series.as_of).total_seconds()),
        devices_reporting=freshness.devices_reporting,
        devices_expected=freshness.devices_expected,
        readings_per_second=readings.get(round(settled.timestamp()), 0) / 60,
        minutes=columns,
    )


def _encoded(name: str, data: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))


@get(
    "/v1/analytics/fleet/live",
    tags=["analytics"],
    media_type="text/event-stream",
    responses=problems({503: AWAY}),
)
async def get_fleet_live(hub: NamedDependency[Hub], request: Request[Any, Any, Any]) -> Stream:
    """Sends server-sent events: `fleet` about once a second, `states` and `alerts` when they have news."""
    if hub.is_full:
        raise Busy("There are too many listeners.")
    return Stream(
        hub.listen(request.client and (request.client.host, int(request.client.port))),  # the server's port is a str
        media_type="text/event-stream",
        # The stream ends with its connection, for cut_off().
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Connection": "close"},
    )


# The newest transition of an alert.
_LAST_TRANSITION = select(func.coalesce(func.max(alert_transition.c.id), 0))
