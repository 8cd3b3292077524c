"""The loop that judges the hours in which readings have arrived, and who is silent."""

import asyncio
import time
from collections.abc import Collection
from datetime import datetime, timedelta

import psycopg
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.analytics.alerts import stored, transitions
from app.analytics.alerts.hours import NO_METER, Hours, judge_hours, margins
from app.analytics.alerts.judge import KINDS, WINDOW_HOURS, judge, splice
from app.analytics.alerts.minutes import fetch_concerned, fetch_slice
from app.analytics.freshness import REPORTING_MINUTES, fetch_instants
from app.database import create_pool, driver_connection, snapshot
from app.settings import Settings
from app.telemetry.reading import Stream

PERIOD_SECONDS = 60
# An hour of 10,000 devices at once; of an import, a day of some hundred.
_TOUCHED_AT_ONCE = 10_000
# A note of a touched hour stands for readings that were committed so long before its time.
_NOTE_SECONDS = 65

_log = structlog.get_logger()


async def judge_forever(url: str, settings: Settings) -> None:
    """Judges each minute, whatever happens; to be cancelled."""
    started = time.monotonic()
    pool = create_pool(url, 2)
    try:
        while True:
            try:
                # At first devices send what they could not while the service was away: none of them is silent.
                if time.monotonic() - started > 60 * REPORTING_MINUTES:
                    await judge_silence(pool)
                while await judge_touched(pool, settings):
                    pass
            except (psycopg.Error, SQLAlchemyError) as error:
                _log.warning("alerts_failed", error=str(error))
            await asyncio.sleep(PERIOD_SECONDS)
    finally:
        await pool.dispose()


async def judge_silence(pool: AsyncEngine) -> None:
    """One round over all devices' latest states, unless another process is at it."""
    async with pool.connect() as reading:
        as_of = (await fetch_instants(reading, "vehicle_minute", "meter_minute")).as_of
    async with driver_connection(pool) as writing, writing.transaction():
        if as_of and await stored.try_lock(writing):
            await transitions.replace_silent(writing, as_of, REPORTING_MINUTES)


async def judge_touched(pool: AsyncEngine, settings: Settings) -> bool:
    """Judges some of the touched hours that are over, oldest first; false when there are none, or another is at it."""
    async with driver_connection(pool) as writing, pool.connect() as reading, writing.transaction():
        if not await stored.try_lock(writing):
            return False
        instants = await fetch_instants(reading, "vehicle_minute", "meter_minute")
        if instants.as_of is None:
            return False
        gap = timedelta(minutes=settings.pairing_gap_minutes)
        over = _hour(instants.as_of - gap)
        hours = _first_of(await stored.fetch_touched_hours(writing, stored.instant(over), instants.as_of))
        if not hours:
            await stored.note_judged(writing, instants.as_of - timedelta(seconds=_NOTE_SECONDS))
            return False
        touched = await stored.fetch_touched(writing, hours, instants.as_of)

        # Of what is no longer kept, no row is judged again.
        kept = 0 if instants.kept_from is None else _hour(instants.kept_from) + 2
        near = {_hour(hour) + step for hour in hours for step in (-1, 0, 1)}
        if wanted := [hour for hour in sorted(near) if kept <= hour < over]:
            judged = await _judge_hours(reading, touched, wanted, settings)
            await _judge_devices(writing, judged, wanted, settings)
        await stored.forget_touched(writing, touched)
    return True


def _hour(at: datetime) -> int:
    return int(at.timestamp() // 3600)


def _first_of(touched: list[tuple[datetime, int]]) -> list[datetime]:
    """The first hours, within a day, in which not too many devices were touched; at least one."""
    chosen: list[datetime] = []
    total = 0
    for hour, count in touched:
        total += count
        if chosen and (total > _TOUCHED_AT_ONCE or hour - chosen[0] >= timedelta(days=1)):
            break
        chosen.append(hour)
    return chosen


async def _judge_hours(
    connection: AsyncConnection, touched: stored.Touched, hours: list[int], settings: Settings
) -> tuple[set[int], Hours]:
    """The vehicles that are concerned, and their rows of these hours."""
    gap_minutes = settings.pairing_gap_minutes
    before, after = (timedelta(minutes=margin) for margin in margins(gap_minutes))
    bounds = stored.instant(hours[0]) - before, stored.instant(hours[-1] + 1) + after
    vehicles, meters = ({device for stream, device, *_ in touched if stream == each} for each in ("vehicle", "meter"))
    judged: Hours = {}
    judging: asyncio.Task[Hours] | None = None
    async with snapshot(connection):
        concerned = await fetch_concerned(connection, vehicles, meters, *bounds)
        for part in concerned.slices((bounds[1] - bounds[0]) // timedelta(minutes=1)):
            # The database collects a part while the one before it is paired.
            minutes = await fetch_slice(connection, concerned, part, *bounds)
            if judging:
                judged |= await judging
            judging = asyncio.create_task(
                asyncio.to_thread(judge_hours, part, hours, *minutes, gap_minutes=gap_minutes)
            )
    return concerned.vehicles, judged | (await judging if judging else {})


async def _judge_devices(
    connection: stored.Connection, judged: tuple[set[int], Hours], hours: list[int], settings: Settings
) -> None:
    changed = await stored.replace_hours(connection, judged[0], hours, judged[1])
    if not changed:
        return
    first = min(hour for _, hour, _ in changed)
    last = max(hour for _, hour, _ in changed) + WINDOW_HOURS - 1
    meters = {meter for _, _, meter in changed} - {NO_METER}
    froze = await stored.meters_that_froze(connection, meters, first - WINDOW_HOURS + 1)
    for stream, devices in ((Stream.VEHICLE, {vehicle for vehicle, _, _ in changed}), (Stream.METER, froze)):
        # Beyond the windows that changed, the states differ at most for those that are open now and were not, or the
        # other way round.
        further = await _judge_stream(connection, stream, devices, first, last, settings)
        await _judge_stream(connection, stream, further, first, None, settings)


async def _judge_stream(
    connection: stored.Connection,
    stream: Stream,
    devices: Collection[int],
    first: int,
    last: int | None,
    settings: Settings,
) -> set[int]:
    """Replaces the alerts from `first` to `last` or to the end; returns the devices for which `last` is too early."""
    if not devices:
        return set()
    since = stored.instant(first + 1)
    until = None if last is None else stored.instant(last + 1)
    rows = await stored.fetch_rows(connection, stream, devices, first - WINDOW_HOURS + 1, last)
    known = await transitions.fetch_alerts(connection, stream, devices, since)
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
                await transitions.replace_alerts(connection, stream, kind, device, old, spliced)
    return further
