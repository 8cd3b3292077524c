"""The loop that judges the hours in which readings have arrived, and finds silent devices."""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

import psycopg
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.analytics.alerts import tables
from app.analytics.alerts.hours import NO_METER, Hours, judge_hours
from app.analytics.alerts.implausible_hours import close_alerts
from app.analytics.alerts.judge import KINDS, TRAILING_HOURS, judge, splice
from app.analytics.alerts.loss import sum_energies
from app.analytics.alerts.reported import judge_reported
from app.analytics.alerts.silence import replace_silent
from app.analytics.efficiency.evidence import Sides, fetch_near, pair_each, settled, settled_margin
from app.analytics.efficiency.neighbours import REACH, fetch_sharers
from app.analytics.freshness import fetch_instants
from app.analytics.sessions.make import make_running, make_sessions
from app.analytics.sessions.tables import fetch_charged
from app.database import ALERTS_POOL_SIZE, create_pool, driver_connection, snapshot
from app.fleet.states import REPORTING_MINUTES
from app.loops import repeat
from app.settings import Settings
from app.telemetry.reading import Stream

PERIOD_SECONDS = 60
# This is an hour of 10,000 devices at once; of an import, it is a day of some hundred.
_TOUCHED_AT_ONCE = 10_000
# The product of vehicles and minutes. More at once are fetched in less time: minutes of all devices lie side by side.
_PAIRED_AT_ONCE = 500_000
# The counters of these vehicles stay in the processor's cache.
_PAIRED_TOGETHER = 50
_REACH_HOURS = -(-REACH // timedelta(hours=1))
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
        first = 0 if instants.kept_from is None else tables.hour_of(instants.kept_from) + 1 + _REACH_HOURS
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
                    judged = await _judge_hours(reading, touched, between, kept, settings)
                    await _judge_devices(writing, judged, settings)
                    for one in judged:
                        kept_from = tables.start_of_hour(first)
                        charged = {vehicle_id for (vehicle_id, *_), row in one.rows.items() if any(row.evidence)}
                        charged |= await fetch_charged(writing, one.vehicles, one.hours)
                        await make_sessions(reading, writing, charged, one.hours, kept_from, as_of, settings)
                    await judge_reported(reading, writing, touched, kept, max_power_kw=settings.max_power_kw)
                # The other notes may stand for readings that are not visible yet.
                await tables.forget_touched(writing, [note for note in touched if note[3] < as_of])
            if hours and time.monotonic() > ends:
                return True
        async with writing.transaction():
            if await tables.try_lock(writing):
                await close_alerts(writing, over)
                await make_running(reading, writing, over, tables.start_of_hour(first), as_of, settings)
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


class Judged(NamedTuple):
    """The rows of some vehicles in some hours, all of them."""

    vehicles: set[int]
    hours: range
    rows: Hours


async def _judge_hours(
    connection: AsyncConnection, touched: tables.Touched, hours: range, judgeable: range, settings: Settings
) -> list[Judged]:
    """Returns the rows of the vehicles that the touched hours concern.

    They concern the hours beside them, and where a device was silent within NEAR_US of what these depend on, all hours
    within REACH.
    """
    margin = settled_margin(settings)
    beside = -(-margin // timedelta(hours=1))
    near, far = (range(hours.start - reach, hours.stop + reach) for reach in (beside, _REACH_HOURS))
    around = tables.start_of_hour(near.start) - margin, tables.start_of_hour(near.stop) + margin
    beyond = tables.start_of_hour(far.start) - REACH, tables.start_of_hour(far.stop) + REACH
    vehicles, meters = ({device for stream, device, *_ in touched if stream == each} for each in ("vehicle", "meter"))
    at = tables.start_of_hour(hours.start), tables.start_of_hour(hours.stop)
    judge = partial(_judge_slices, connection, settings)
    async with snapshot(connection):
        sharers = await fetch_sharers(connection, vehicles, meters, at, *around)
        concerned = vehicles.union(*sharers.values())
        if concerned > vehicles:
            sharers |= await fetch_sharers(connection, concerned - vehicles, set(), at, *around)
        calm = await judge(
            _side_by_side(concerned, sharers), sharers, around, _common(near, judgeable), only_settled=True
        )
        others = concerned - calm.vehicles
        if not others:
            return [calm]
        sharers = await fetch_sharers(connection, others, set(), at, *beyond)
        far_judged = await judge(
            _side_by_side(others, sharers), sharers, beyond, _common(far, judgeable), only_settled=False
        )
        return [calm, far_judged]


def _side_by_side(vehicles: set[int], sharers: Mapping[int, set[int]]) -> list[int]:
    """Returns the vehicles in an order in which those of a meter stand together."""
    meter_of = {vehicle_id: meter_id for meter_id in sorted(sharers, reverse=True) for vehicle_id in sharers[meter_id]}
    return sorted(vehicles, key=lambda vehicle_id: (meter_of.get(vehicle_id, NO_METER), vehicle_id))


def _common(left: range, right: range) -> range:
    return range(max(left.start, right.start), min(left.stop, right.stop))


async def _judge_slices(
    connection: AsyncConnection,
    settings: Settings,
    vehicles: Sequence[int],
    sharers: dict[int, set[int]],
    bounds: tuple[datetime, datetime],
    hours: range,
    *,
    only_settled: bool,
) -> Judged:
    def pair_and_judge(some: Sequence[int], sides: Sides) -> tuple[set[int], Hours]:
        chosen = settled(sides, some, *bounds, settings) if only_settled else {*some}
        rows: Hours = {}
        for start in range(0, len(some), _PAIRED_TOGETHER):
            few = [vehicle_id for vehicle_id in some[start : start + _PAIRED_TOGETHER] if vehicle_id in chosen]
            rows |= judge_hours(pair_each(few, sides, settings), hours)
        return chosen, rows

    judged = Judged(set(), hours, {})
    if not hours:
        return judged
    judging: asyncio.Task[tuple[set[int], Hours]] | None = None
    size = max(1, _PAIRED_AT_ONCE * timedelta(minutes=1) // (bounds[1] - bounds[0]))
    for some in (vehicles[start : start + size] for start in range(0, len(vehicles), size)):
        # The database collects a slice while the previous one is paired.
        sides = await fetch_near(connection, some, *bounds, settings, sharers=sharers)
        if judging:
            _add(judged, *await judging)
        judging = asyncio.create_task(asyncio.to_thread(pair_and_judge, some, sides))
    if judging:
        _add(judged, *await judging)
    return judged


def _add(judged: Judged, vehicles: set[int], rows: Hours) -> None:
    judged.vehicles.update(vehicles)
    judged.rows.update(rows)


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
