"""The hours of many vehicles, judged: their evidence at meters, and the parts of their sessions, both of one pairing.

Vehicles are paired a slice at a time; the database collects a slice while the one before is paired.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from app.analytics.alerts import tables
from app.analytics.alerts.hours import NO_METER, Hours, judge_hours
from app.analytics.efficiency.evidence import Sides, fetch_near, pair_each, settled, settled_margin
from app.analytics.efficiency.neighbours import REACH, fetch_sharers
from app.analytics.efficiency.rhythm import HOUR_US
from app.analytics.minutes import Integers, fetch_batteries
from app.analytics.sessions.battery import Battery, battery_between
from app.analytics.sessions.session import Part, parts_of, rule_of
from app.database import snapshot
from app.settings import Settings

REACH_HOURS = -(-REACH // timedelta(hours=1))

# The product of vehicles and minutes. More at once are fetched in less time: minutes of all devices lie side by side.
_PAIRED_AT_ONCE = 500_000
# The counters of these vehicles stay in the processor's cache.
_PAIRED_TOGETHER = 50


class Judged(NamedTuple):
    """All rows of some vehicles in some hours, and all parts of their sessions, with the battery in each."""

    vehicles: set[int]
    hours: range
    rows: Hours
    parts: dict[int, list[tuple[Part, Battery]]]


async def judge_touched_hours(
    connection: AsyncConnection, touched: tables.Touched, hours: range, judgeable: range, settings: Settings
) -> list[Judged]:
    """Judges the vehicles that the touched hours concern.

    They concern the hours beside them, and where a device was silent within NEAR_US of what these depend on, all hours
    within REACH.
    """
    beside = -(-settled_margin(settings) // timedelta(hours=1))
    near, far = (range(hours.start - by, hours.stop + by) for by in (beside, REACH_HOURS))
    vehicles, meters = ({device for stream, device, *_ in touched if stream == each} for each in ("vehicle", "meter"))
    at = _instants(hours)
    around = _instants(near, settled_margin(settings))
    async with snapshot(connection):
        sharers = await fetch_sharers(connection, vehicles, meters, at, *around)
        concerned = vehicles.union(*sharers.values())
        if concerned > vehicles:
            sharers |= await fetch_sharers(connection, concerned - vehicles, set(), at, *around)
        calm = await _judge(connection, settings, concerned, sharers, _common(near, judgeable), is_near=True)
        others = concerned - calm.vehicles
        if not others:
            return [calm]
        sharers = await fetch_sharers(connection, others, set(), at, *_instants(far, REACH))
        return [calm, await _judge(connection, settings, others, sharers, _common(far, judgeable), is_near=False)]


async def judge_running(
    connection: AsyncConnection, vehicles: set[int], hours: range, settings: Settings
) -> list[Judged]:
    """Judges these vehicles in hours that are not over."""
    async with snapshot(connection):
        judged: list[Judged] = []
        for is_near, margin in (True, settled_margin(settings)), (False, REACH):
            others = vehicles.difference(*(one.vehicles for one in judged))
            if not others:
                break
            sharers = await fetch_sharers(connection, others, set(), _instants(hours), *_instants(hours, margin))
            judged.append(await _judge(connection, settings, others, sharers, hours, is_near=is_near))
        return judged


def _common(left: range, right: range) -> range:
    return range(max(left.start, right.start), min(left.stop, right.stop))


def _instants(hours: range, margin: timedelta = timedelta()) -> tuple[datetime, datetime]:
    return tables.start_of_hour(hours.start) - margin, tables.start_of_hour(hours.stop) + margin


async def _judge(
    connection: AsyncConnection,
    settings: Settings,
    vehicles: set[int],
    sharers: dict[int, set[int]],
    hours: range,
    *,
    is_near: bool,
) -> Judged:
    """Judges these vehicles; if `is_near`, only those that are settled, by the rows near the hours."""
    judged = Judged(set(), hours, {}, {})
    if not hours or not vehicles:
        return judged
    bounds = _instants(hours, settled_margin(settings) if is_near else REACH)
    size = max(1, _PAIRED_AT_ONCE * timedelta(minutes=1) // (bounds[1] - bounds[0]))
    in_order = _side_by_side(vehicles, sharers)
    judging: asyncio.Task[Judged] | None = None
    for some in (in_order[start : start + size] for start in range(0, len(in_order), size)):
        rows, batteries = await fetch_batteries(connection, some, *bounds)
        sides = await fetch_near(connection, some, *bounds, settings, rows=rows, sharers=sharers)
        if judging:
            _add(judged, await judging)
        near = bounds if is_near else None
        judging = asyncio.create_task(asyncio.to_thread(_judge_slice, sides, batteries, some, hours, near, settings))
    if judging:
        _add(judged, await judging)
    return judged


def _side_by_side(vehicles: set[int], sharers: Mapping[int, set[int]]) -> list[int]:
    """Returns the vehicles in an order in which those of a meter stand together."""
    meter_of = {vehicle_id: meter_id for meter_id in sorted(sharers, reverse=True) for vehicle_id in sharers[meter_id]}
    return sorted(vehicles, key=lambda vehicle_id: (meter_of.get(vehicle_id, NO_METER), vehicle_id))


def _judge_slice(
    sides: Sides,
    batteries: dict[int, Integers],
    some: Sequence[int],
    hours: range,
    near: tuple[datetime, datetime] | None,
    settings: Settings,
) -> Judged:
    """Judges some vehicles, in their order; with the bounds of `near` rows, only those that are settled there."""
    chosen = settled(sides, some, *near, settings) if near else {*some}
    vehicles = [one for one in some if one in chosen]
    rule, bounds = rule_of(settings), [hour * HOUR_US for hour in (*hours, hours.stop)]
    rows: Hours = {}
    parts: dict[int, list[tuple[Part, Battery]]] = {}
    for start in range(0, len(vehicles), _PAIRED_TOGETHER):
        pairs = pair_each(vehicles[start : start + _PAIRED_TOGETHER], sides, settings)
        rows |= judge_hours(pairs, hours)
        for vehicle_id, of_vehicle in pairs.items():
            parts[vehicle_id] = [
                (part, battery_between(sides.vehicles[vehicle_id], batteries[vehicle_id], part.start_us, part.end_us))
                for part in parts_of(of_vehicle, rule, bounds)
            ]
    return Judged({*vehicles}, hours, rows, parts)


def _add(judged: Judged, further: Judged) -> None:
    judged.vehicles.update(further.vehicles)
    judged.rows.update(further.rows)
    judged.parts.update(further.parts)
