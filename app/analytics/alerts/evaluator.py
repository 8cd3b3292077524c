"""The loop that judges the hours in which readings have arrived, and finds silent devices."""

import time
from collections.abc import Collection
from contextlib import nullcontext
from datetime import datetime, timedelta

import psycopg
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.analytics.alerts import tables
from app.analytics.alerts.hours import NO_METER
from app.analytics.alerts.implausible_hours import close_alerts
from app.analytics.alerts.judge import KINDS, TRAILING_HOURS, judge, splice
from app.analytics.alerts.judged import REACH_HOURS, Judged, judge_touched_hours
from app.analytics.alerts.loss import sum_energies
from app.analytics.alerts.reported import judge_reported
from app.analytics.alerts.silence import replace_silent
from app.analytics.freshness import fetch_instants
from app.analytics.sessions.parts import replace_judged
from app.analytics.sessions.running import make_running
from app.database import ALERTS_POOL_SIZE, create_pool, driver_connection
from app.fleet.states import REPORTING_MINUTES
from app.loops import repeat
from app.settings import Settings
from app.telemetry.reading import Stream

PERIOD_SECONDS = 60
# This is an hour of 10,000 devices at once; of an import, it is a day of some hundred.
_TOUCHED_AT_ONCE = 10_000
_GRACE_SECONDS = 60 * REPORTING_MINUTES

_log = structlog.get_logger()


async def judge_forever(url: str, settings: Settings) -> None:
    """Judges once a minute, whatever happens, until it is cancelled."""
    pool = create_pool(url, ALERTS_POOL_SIZE)
    grace, at_once = Grace(), _TOUCHED_AT_ONCE

    async def judge_all(pool: AsyncEngine) -> None:
        nonlocal at_once
        is_more = True
        while is_more:
            if grace.is_over():
                await judge_silence(pool)
            is_more = await judge_touched(pool, settings, at_once=at_once)
            at_once = _TOUCHED_AT_ONCE

    def failed(error: Exception) -> None:
        nonlocal at_once
        _log.warning("alerts_failed", error=str(error))
        if isinstance(getattr(error, "orig", error), psycopg.errors.QueryCanceled):
            at_once = max(1, at_once // 2)  # The last round took too long.
        else:
            grace.begin()

    errors = psycopg.Error, SQLAlchemyError
    try:
        await repeat(
            judge_all, lambda: nullcontext(pool), period_seconds=PERIOD_SECONDS, survives=errors, failed=failed
        )
    finally:
        await pool.dispose()


class Grace:
    """The time in which devices send what they could not send while the service or its database was away.

    No device counts as silent then. Grace begins anew when the wall clock jumps: the machine was suspended.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._began, self._wall_began = time.monotonic(), time.time()

    def is_over(self) -> bool:
        lasted, wall_lasted = time.monotonic() - self._began, time.time() - self._wall_began
        if abs(wall_lasted - lasted) > 2 * PERIOD_SECONDS:
            self.begin()
            return False
        return lasted > _GRACE_SECONDS


async def judge_silence(pool: AsyncEngine) -> None:
    """Looks for silent devices in all latest states, once, unless another process is doing so."""
    async with pool.connect() as reading:
        as_of = (await fetch_instants(reading, "vehicle_minute", "meter_minute")).as_of
    async with driver_connection(pool) as writing, writing.transaction():
        if as_of and await tables.try_lock(writing):
            await replace_silent(writing, as_of)


async def judge_touched(pool: AsyncEngine, settings: Settings, *, at_once: int = _TOUCHED_AT_ONCE) -> bool:
    """Judges the touched hours that are over, for about a minute; returns True when that was too short for all.

    Does nothing while another process judges.
    """
    ends = time.monotonic() + PERIOD_SECONDS
    async with driver_connection(pool) as writing, pool.connect() as reading:
        instants = await fetch_instants(reading, "vehicle_minute", "meter_minute")
        if instants.as_of is None:
            return False
        as_of, over = instants.as_of, tables.hour_of(instants.as_of - timedelta(minutes=settings.pairing_gap_minutes))
        # An hour keeps its rows when its minutes, or those that it depends on, were dropped.
        first = 0 if instants.kept_from is None else tables.hour_of(instants.kept_from) + 1 + REACH_HOURS
        hours = await tables.fetch_touched_hours(writing, tables.start_of_hour(over), as_of)
        while chosen := _first_of(hours, at_once):
            hours = hours[len(chosen) :]
            async with writing.transaction():
                if not await tables.try_lock(writing):
                    return False
                touched = await tables.fetch_touched(writing, chosen)
                if touched:
                    between = range(tables.hour_of(chosen[0]), tables.hour_of(chosen[-1]) + 1)
                    kept = range(first, over)
                    judged = await judge_touched_hours(reading, touched, between, kept, settings)
                    await _judge_devices(writing, judged, settings)
                    for one in judged:
                        await replace_judged(writing, one, as_of, settings)
                    await judge_reported(reading, writing, touched, kept, max_power_kw=settings.max_power_kw)
                # The other notes may stand for readings that are not visible yet.
                await tables.forget_touched(writing, [note for note in touched if note[3] < as_of])
            if hours and time.monotonic() > ends:
                return True
        async with writing.transaction():
            if await tables.try_lock(writing):
                await close_alerts(writing, over)
                await make_running(reading, writing, over, as_of, settings)
        await tables.note_judged(writing, as_of)
    return False


def _first_of(touched: list[tuple[datetime, int]], at_once: int) -> list[datetime]:
    """Returns the first hours, in order and within a day, with not too many touched devices; at least one hour."""
    chosen: list[datetime] = []
    total = 0
    for hour, count in touched:
        total += count
        if chosen and (total > at_once or not chosen[-1] < hour < chosen[0] + timedelta(days=1)):
            break
        chosen.append(hour)
    return chosen


async def _judge_devices(connection: tables.Connection, judged: list[Judged], settings: Settings) -> None:
    changed = set[tuple[int, int, int]]()
    for one in judged:
        changed |= await tables.replace_hours(connection, one.vehicles, one.hours, one.rows)
    if not changed:
        return
    first = min(hour for _, hour, _ in changed)
    last = max(hour for _, hour, _ in changed) + TRAILING_HOURS - 1
    meters = {meter for _, _, meter in changed} - {NO_METER}
    froze = await tables.meters_that_froze(connection, meters, first - TRAILING_HOURS + 1)
    for stream, devices in ((Stream.VEHICLE, {vehicle for vehicle, _, _ in changed}), (Stream.METER, froze)):
        # After `last`, alerts can differ only where one is open at `last` that was not, or one that was open is not.
        further = await _judge_stream(connection, stream, devices, first, last, settings)
        await _judge_stream(connection, stream, further, first, None, settings)
        await sum_energies(connection, stream, devices, tables.start_of_hour(first))


async def _judge_stream(
    connection: tables.Connection,
    stream: Stream,
    devices: Collection[int],
    first: int,
    last: int | None,
    settings: Settings,
) -> set[int]:
    """Replaces the alerts from `first` to `last` or to the end; returns the devices for which `last` is too early."""
    if not devices:
        return set()
    since = tables.start_of_hour(first + 1)
    until = None if last is None else tables.start_of_hour(last + 1)
    rows = await tables.fetch_rows(connection, stream, devices, first - TRAILING_HOURS + 1, last)
    known = await tables.fetch_alerts(connection, stream, devices, since)
    further = set()
    for device in sorted(devices):
        for kind in KINDS[stream]:
            old = known.get((kind, device), [])
            before = old[0] if old and old[0].opened < since else None
            new = judge(kind, rows.get(device, []), first, before, low_efficiency=settings.low_efficiency)
            old, spliced = splice(old, new, until)
            if spliced is None:
                further.add(device)
            else:
                await tables.replace_alerts(connection, stream, kind, device, old, spliced)
    return further
