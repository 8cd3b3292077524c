"""The rows that prove how much of a meter's AC energy reached a vehicle's battery: fetched, then paired.

Performance, coverage, a vehicle's series and the evaluator of alerts all fetch them here.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import NamedTuple

import numpy as np
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.analytics.efficiency.counter import Counter
from app.analytics.efficiency.neighbours import MAPPED, REACH, fetch_at_meters, one_of
from app.analytics.efficiency.pairs import Pairs, pair_counters
from app.analytics.efficiency.rhythm import MEAN_POWER_US, MINUTE_US
from app.analytics.efficiency.rows import NO_ROWS, Mapping, Rows, counter_of, in_order
from app.analytics.minutes import fetch_rows
from app.database import fetch_all
from app.errors import InvalidTimeRange
from app.fleet.limits import fetch_limits, limit_of, max_milliwatt
from app.settings import Settings
from app.tables import vehicle, vehicle_meter
from app.telemetry.instant import EPOCH_US, MAX_AHEAD, instant
from app.telemetry.reading import Stream

MAX_SHARED_MINUTES = 1_000_000
"""The limit for all vehicles that share a vehicle's meters; each minute takes 200 bytes during pairing."""

_MINUTE = timedelta(minutes=1)
_PAIRING = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pairing")
_FAR_US = 10**18  # beyond any window


class Sides(NamedTuple):
    """The DC side and the AC side, by device: rows of vehicles and of meters, and the mappings of these vehicles.

    The limits are powers in milliwatt: with more, energy is implausible. `sharers` are the vehicles at these meters, by
    meter: also those that have no rows here, but near.
    """

    vehicles: dict[int, Rows]
    meters: dict[int, Rows]
    mappings: dict[int, list[Mapping]]
    vehicle_limits: dict[int, int]
    meter_limits: dict[int, int]
    sharers: dict[int, set[int]]

    def meters_of(self, vehicle_id: int) -> set[int]:
        """Returns the meters that the vehicle's readings name, or that it is mapped to."""
        *_, named = self.vehicles.get(vehicle_id, NO_ROWS)
        return {*named.tolist(), *(mapping.meter_id for mapping in self.mappings.get(vehicle_id, ()))} - {0}


async def fetch_sides(
    connection: AsyncConnection,
    vehicles: Collection[int],
    range_from: datetime,
    range_to: datetime,
    settings: Settings,
    *,
    rows: dict[int, Rows] | None = None,
) -> Sides:
    """Returns the rows on which the pairs of some vehicles in [range_from, range_to) depend.

    `rows` are those of these vehicles near() the range, if they are fetched already. Raises InvalidTimeRange when too
    many vehicles share the meters.
    """
    most = MAX_SHARED_MINUTES * _MINUTE / (range_to - range_from)
    close, far = near(range_from, range_to, settings), (range_from - REACH, range_to + REACH)
    sides = await fetch_near(connection, vehicles, *close, settings, rows=rows, most_others=most)
    if {*vehicles} == settled(sides, vehicles, *close, settings):
        return sides
    known = {*vehicles}.union(*sides.sharers.values())
    mappings, _ = await _fetch_vehicles(connection, known, *far, settings)
    further = sides._replace(mappings=mappings)
    if any(
        vehicle_id not in sides.vehicles or further.meters_of(vehicle_id) - sides.meters_of(vehicle_id)
        for vehicle_id in vehicles
    ):
        return await fetch_near(connection, vehicles, *far, settings, most_others=most)
    for margin in (far[0], close[0]), (close[1], far[1]):
        for stream, devices, found in (
            (Stream.VEHICLE, known, further.vehicles),
            (Stream.METER, [*further.sharers], further.meters),
        ):
            for device, more in (await fetch_rows(connection, stream, devices, *margin)).items():
                found[device] = in_order(np.concatenate([found.get(device, NO_ROWS), more], axis=1))
    return further


async def fetch_near(
    connection: AsyncConnection,
    vehicles: Collection[int],
    range_from: datetime,
    range_to: datetime,
    settings: Settings,
    *,
    rows: dict[int, Rows] | None = None,
    sharers: dict[int, set[int]] | None = None,
    most_others: float = math.inf,
) -> Sides:
    """Returns the rows in [range_from, range_to) of some vehicles, their meters, and of all vehicles at these.

    `rows` are those of these vehicles, if they are fetched already. `sharers` are the vehicles by meter; without them,
    minutes within REACH tell. Each side is fetched by itself: one anti-join takes 80 times as long. Raises
    InvalidTimeRange when there are more than `most_others` other vehicles.
    """
    bounds = {"range_from": range_from, "range_to": range_to}
    if rows is None:
        rows = await fetch_rows(connection, Stream.VEHICLE, vehicles, **bounds)
    mappings, limits = await _fetch_vehicles(connection, vehicles, **bounds, settings=settings)
    own = Sides(rows, {}, mappings, limits, {}, defaultdict(set))
    meters = {meter_id for vehicle_id in own.vehicles for meter_id in own.meters_of(vehicle_id)}
    if not meters:
        return own
    own.meters.update(await fetch_rows(connection, Stream.METER, meters, **bounds))
    own.meter_limits.update(await fetch_limits(connection, Stream.METER, meters, max_power_kw=settings.max_power_kw))
    if sharers is None:
        found = await fetch_at_meters(connection, meters, {*vehicles}, **bounds)
    else:
        found = [(vehicle_id, meter_id) for meter_id in meters for vehicle_id in sharers.get(meter_id, ())]
    others = {vehicle_id for vehicle_id, _ in found}.difference(vehicles)
    if len(others) > most_others:
        raise InvalidTimeRange(f"{len(others):,} other vehicles charge at its meters: ask for a shorter window.")
    found += [(vehicle_id, meter_id) for vehicle_id in own.vehicles for meter_id in own.meters_of(vehicle_id)]
    for vehicle_id, meter_id in found:
        own.sharers[meter_id].add(vehicle_id)
    if others:
        own.vehicles.update(await fetch_rows(connection, Stream.VEHICLE, others, **bounds))
        mappings, limits = await _fetch_vehicles(connection, others, **bounds, settings=settings)
        own.mappings.update(mappings)
        own.vehicle_limits.update(limits)
    return own


def near(range_from: datetime, range_to: datetime, settings: Settings) -> tuple[datetime, datetime]:
    """Returns the range of the rows that are enough for vehicles that are settled in [range_from, range_to)."""
    margin = settled_margin(settings)
    return range_from - margin, range_to + margin


def settled_margin(settings: Settings) -> timedelta:
    """Returns how far beyond a range the rows must reach of vehicles that are settled there.

    Only a silence asks for rhythms, fitting ratios and neighbours. Without one, edges reach farthest: over their own
    span and the one beyond it, or over the mean power; another span may be cut by the end of the rows. What belongs to
    a session is told by two pauses.
    """
    edges = timedelta(microseconds=MEAN_POWER_US, minutes=3 * settings.pairing_gap_minutes)
    return max(edges, timedelta(minutes=2 * (settings.session_pause_minutes + settings.pairing_gap_minutes)))


def settled(
    sides: Sides, vehicles: Iterable[int], range_from: datetime, range_to: datetime, settings: Settings
) -> set[int]:
    """Returns the vehicles that no row outside of [range_from, range_to) concerns, settled_margin() within it.

    Neither they nor their meters nor any vehicle at these are silent in it. What is still to come is no silence.
    """
    start, end, gap_us = us(range_from), us(range_to), settings.pairing_gap_minutes * MINUTE_US
    is_now = range_to > datetime.now(UTC) + MAX_AHEAD

    def is_silent(rows: Rows) -> bool:
        lasts, firsts, *_ = rows
        return bool(
            firsts[0] - start > gap_us
            or (end - lasts[-1] > gap_us and not is_now)
            or (firsts[1:] - lasts[:-1] > gap_us).any()
        )

    heard = {vehicle_id for vehicle_id, rows in sides.vehicles.items() if not is_silent(rows)}
    sound = {
        meter_id for meter_id, rows in sides.meters.items() if not is_silent(rows) and sides.sharers[meter_id] <= heard
    }
    return {vehicle_id for vehicle_id in heard.intersection(vehicles) if sides.meters_of(vehicle_id) <= sound}


async def pair_in_thread(sides: Sides, vehicles: Iterable[int], settings: Settings) -> dict[int, Pairs]:
    """Returns the pairs of some vehicles. This needs no connection; 90 days of one vehicle take 0.4 s.

    Only one runs at a time: threads that compute take turns with each other, and with those that store readings.
    """
    return await asyncio.get_running_loop().run_in_executor(_PAIRING, pair_each, vehicles, sides, settings)


def pair_each(vehicles: Iterable[int], sides: Sides, settings: Settings) -> dict[int, Pairs]:
    """Returns the pairs of some vehicles with their meters. The order of rows does not matter."""
    gap_us, default = settings.pairing_gap_minutes * MINUTE_US, limit_of(settings.max_power_kw)

    @cache
    def vehicle(vehicle_id: int) -> Counter:
        return counter_of(
            sides.vehicles.get(vehicle_id, NO_ROWS),
            sides.mappings.get(vehicle_id, []),
            gap_us=gap_us,
            limit_milliwatt=sides.vehicle_limits.get(vehicle_id, default),
        )

    @cache
    def meter(meter_id: int) -> Counter:
        limit = sides.meter_limits.get(meter_id, default)
        return counter_of(sides.meters.get(meter_id, NO_ROWS), gap_us=gap_us, limit_milliwatt=limit)

    def pairs(vehicle_id: int) -> Pairs:
        meters = {meter_id: meter(meter_id) for meter_id in vehicle(vehicle_id).meters() if meter_id is not None}
        others = {other for meter_id in meters for other in sides.sharers.get(meter_id, ())} - {vehicle_id}
        return pair_counters(vehicle(vehicle_id), meters, ((other, vehicle(other)) for other in others))

    return {vehicle_id: pairs(vehicle_id) for vehicle_id in vehicles}


async def _fetch_vehicles(
    connection: AsyncConnection,
    vehicles: Collection[int],
    range_from: datetime,
    range_to: datetime,
    settings: Settings,
) -> tuple[dict[int, list[Mapping]], dict[int, int]]:
    """Returns the mappings in [range_from, range_to) and the limits of some vehicles."""
    bounds = {"mapped_from": range_from, "mapped_to": range_to}
    parameters = {"devices": [*vehicles], "default": limit_of(settings.max_power_kw), **bounds}
    mappings: defaultdict[int, list[Mapping]] = defaultdict(list)
    limits: dict[int, int] = {}
    for vehicle_id, milliwatt, meter_id, valid in await fetch_all(connection, _VEHICLES, parameters):
        limits[vehicle_id] = milliwatt
        if valid is not None:
            from_us = us(valid.lower) if valid.lower else -_FAR_US
            to_us = us(valid.upper) if valid.upper else _FAR_US
            mappings[vehicle_id].append(Mapping(vehicle_id, meter_id, from_us, to_us))
    return dict(mappings), limits


def us(at: datetime) -> int:
    """Returns the microseconds since 1970-01-01 UTC."""
    return round(at.timestamp() * 1_000_000)


def instant_of(since_1970_us: int) -> datetime:
    """Returns the instant so many microseconds after 1970-01-01 UTC."""
    return instant(since_1970_us - EPOCH_US)


# The limits of :devices, with the mappings that hold in [:mapped_from, :mapped_to).
_VEHICLES = (
    select(vehicle.c.id, max_milliwatt(vehicle), vehicle_meter.c.meter_id, vehicle_meter.c.valid)
    .join_from(vehicle, vehicle_meter, (vehicle_meter.c.vehicle_id == vehicle.c.id) & MAPPED, isouter=True)
    .where(one_of(vehicle.c.id, "devices"))
)
