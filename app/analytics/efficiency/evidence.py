"""The rows that prove how much of a meter's AC energy reached a vehicle's battery: fetched, then paired.

Performance, coverage, a vehicle's series and the evaluator of alerts all fetch them here, as arrays by device and
meter: a day has 1,440 minutes, and arrays need a tenth of the rows.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from operator import sub
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, TableValuedAlias, cast, func, null, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.analytics.efficiency.counter import Counter, Mapping, Rows, counter_of
from app.analytics.efficiency.neighbours import MAPPED, NEIGHBOURS, REACH, Neighbours, fetch_neighbours, one_of
from app.analytics.efficiency.pairs import Pairs, pair_counters
from app.analytics.efficiency.rhythm import MINUTE_US, SETTLED_US
from app.errors import InvalidTimeRange
from app.fleet.limits import fetch_limits, limit_of
from app.settings import Settings
from app.tables import meter_minute, vehicle_meter, vehicle_minute
from app.telemetry.instant import MAX_AHEAD
from app.telemetry.reading import Stream

MAX_SHARED_MINUTES = 1_000_000
"""The limit for all vehicles that share a vehicle's meters; each minute takes 200 bytes during pairing."""
SETTLED = timedelta(microseconds=SETTLED_US)

_MINUTE = timedelta(minutes=1)
_RANGE = "range_from", "range_to"
_PAIRING = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pairing")
_FAR_US = 10**18  # beyond any window


class Sides(NamedTuple):
    """The DC side and the AC side, by device: rows of vehicles and of meters, and the mappings of these vehicles.

    The limits are powers in milliwatt: with more, energy is implausible. `sharers` are the vehicles at these meters, by
    meter: also those that have no rows here, but near.
    """

    vehicles: dict[int, list[Rows]]
    meters: dict[int, list[Rows]]
    mappings: dict[int, list[Mapping]]
    vehicle_limits: dict[int, int]
    meter_limits: dict[int, int]
    sharers: dict[int, set[int]]

    def meters_of(self, vehicle_id: int) -> set[int]:
        """Returns the meters that the vehicle's readings name, or that it is mapped to."""
        named = {rows.meter_id for rows in self.vehicles.get(vehicle_id, []) if rows.meter_id is not None}
        return named.union(mapping.meter_id for mapping in self.mappings.get(vehicle_id, []))


async def fetch_sides(
    connection: AsyncConnection,
    vehicles: Collection[int],
    range_from: datetime,
    range_to: datetime,
    settings: Settings,
) -> Sides:
    """Returns the rows on which the pairs of some vehicles in [range_from, range_to) depend.

    Raises InvalidTimeRange when too many vehicles share the meters.
    """
    most = MAX_SHARED_MINUTES * _MINUTE / (range_to - range_from)
    near, far = ((range_from - margin, range_to + margin) for margin in (SETTLED, REACH))
    sides = await fetch_near(connection, vehicles, *near, NEIGHBOURS, settings, most_others=most)
    if {*vehicles} == settled(sides, vehicles, *near, settings):
        return sides
    known = {*vehicles}.union(*sides.sharers.values())
    further = sides._replace(mappings=await _fetch_mappings(connection, known, dict(zip(_RANGE, far, strict=True))))
    if any(
        vehicle_id not in sides.vehicles or further.meters_of(vehicle_id) - sides.meters_of(vehicle_id)
        for vehicle_id in vehicles
    ):
        return await fetch_near(connection, vehicles, *far, NEIGHBOURS, settings, most_others=most)
    for margin in (far[0], near[0]), (near[1], far[1]):
        for stream, devices, rows in (
            (Stream.VEHICLE, known, further.vehicles),
            (Stream.METER, [*further.sharers], further.meters),
        ):
            for device, more in (await fetch_rows(connection, stream, devices, *margin)).items():
                rows.setdefault(device, []).extend(more)
    return further


async def fetch_near(
    connection: AsyncConnection,
    vehicles: Collection[int],
    range_from: datetime,
    range_to: datetime,
    neighbours: Neighbours,
    settings: Settings,
    *,
    most_others: float = math.inf,
) -> Sides:
    """Returns the rows in [range_from, range_to) of some vehicles, their meters, and of all vehicles at these.

    Each side is fetched by itself: one anti-join takes 80 times as long. Raises InvalidTimeRange when there are more
    than `most_others` other vehicles.
    """
    bounds = {"range_from": range_from, "range_to": range_to}
    own = Sides(
        await fetch_rows(connection, Stream.VEHICLE, vehicles, **bounds),
        {},
        await _fetch_mappings(connection, vehicles, bounds),
        await fetch_limits(connection, Stream.VEHICLE, vehicles, max_power_kw=settings.max_power_kw),
        {},
        defaultdict(set),
    )
    meters = {meter_id for vehicle_id in own.vehicles for meter_id in own.meters_of(vehicle_id)}
    if not meters:
        return own
    own.meters.update(await fetch_rows(connection, Stream.METER, meters, **bounds))
    own.meter_limits.update(await fetch_limits(connection, Stream.METER, meters, max_power_kw=settings.max_power_kw))
    found = await fetch_neighbours(connection, neighbours, meters, {*vehicles}, **bounds)
    others = {vehicle_id for vehicle_id, _ in found}
    if len(others) > most_others:
        raise InvalidTimeRange(f"{len(others):,} other vehicles charge at its meters: ask for a shorter window.")
    found += [(vehicle_id, meter_id) for vehicle_id in own.vehicles for meter_id in own.meters_of(vehicle_id)]
    for vehicle_id, meter_id in found:
        own.sharers[meter_id].add(vehicle_id)
    if others:
        own.vehicles.update(await fetch_rows(connection, Stream.VEHICLE, others, **bounds))
        own.mappings.update(await _fetch_mappings(connection, others, bounds))
        limits = await fetch_limits(connection, Stream.VEHICLE, others, max_power_kw=settings.max_power_kw)
        own.vehicle_limits.update(limits)
    return own


def settled(
    sides: Sides, vehicles: Iterable[int], range_from: datetime, range_to: datetime, settings: Settings
) -> set[int]:
    """Returns the vehicles that no row outside of [range_from, range_to) concerns, for SETTLED within the range.

    Neither they nor their meters nor any vehicle at these are silent in it. What is still to come is no silence.
    """
    start, end, gap_us = us(range_from), us(range_to), settings.pairing_gap_minutes * MINUTE_US
    is_now = range_to > datetime.now(UTC) + MAX_AHEAD

    def is_silent(rows: list[Rows]) -> bool:
        firsts = sorted(instant for at in rows for instant in at.first_us)
        lasts = sorted(instant for at in rows for instant in at.last_us)
        return (
            not firsts
            or firsts[0] - start > gap_us
            or (end - lasts[-1] > gap_us and not is_now)
            or max(map(sub, firsts[1:], lasts), default=0) > gap_us
        )

    heard = {vehicle_id for vehicle_id, rows in sides.vehicles.items() if not is_silent(rows)}
    sound = {
        meter_id for meter_id, rows in sides.meters.items() if not is_silent(rows) and sides.sharers[meter_id] <= heard
    }
    return {vehicle_id for vehicle_id in heard.intersection(vehicles) if sides.meters_of(vehicle_id) <= sound}


async def pair_one(sides: Sides, vehicle_id: int, settings: Settings) -> Pairs:
    """Returns the pairs of one vehicle. This needs no connection and runs in a thread: 90 days take 0.4 s.

    Only one runs at a time: threads that compute take turns with each other, and with those that store readings.
    """
    pairing = asyncio.get_running_loop().run_in_executor(_PAIRING, pair_each, [vehicle_id], sides, settings)
    (pairs,) = (await pairing).values()
    return pairs


def pair_each(vehicles: Iterable[int], sides: Sides, settings: Settings) -> dict[int, Pairs]:
    """Returns the pairs of some vehicles with their meters. The order of rows does not matter."""
    gap_us, default = settings.pairing_gap_minutes * MINUTE_US, limit_of(settings.max_power_kw)
    counters = {
        vehicle_id: counter_of(
            rows,
            sides.mappings.get(vehicle_id, []),
            gap_us=gap_us,
            limit_milliwatt=sides.vehicle_limits.get(vehicle_id, default),
        )
        for vehicle_id, rows in sides.vehicles.items()
    }
    meters = {
        meter_id: counter_of(rows, gap_us=gap_us, limit_milliwatt=sides.meter_limits.get(meter_id, default))
        for meter_id, rows in sides.meters.items()
    }
    at: defaultdict[int | None, dict[int, Counter]] = defaultdict(dict)
    for vehicle_id, counter in counters.items():
        for meter_id in counter.meters() - {None}:
            at[meter_id][vehicle_id] = counter
    none = counter_of([], gap_us=gap_us, limit_milliwatt=default)

    def pairs(vehicle_id: int) -> Pairs:
        own = counters.get(vehicle_id, none)
        others = {other: counter for meter_id in own.meters() for other, counter in at[meter_id].items()}
        return pair_counters(own, meters, [counter for other, counter in others.items() if other != vehicle_id])

    return {vehicle_id: pairs(vehicle_id) for vehicle_id in vehicles}


async def fetch_rows(
    connection: AsyncConnection, stream: Stream, devices: Collection[int], range_from: datetime, range_to: datetime
) -> dict[int, list[Rows]]:
    """Returns the rows of some devices in [range_from, range_to)."""
    rows: defaultdict[int, list[Rows]] = defaultdict(list)
    bounds = {"devices": [*devices], "range_from": range_from, "range_to": range_to}
    for device_id, *columns in await connection.execute(_ROWS[stream], bounds):
        rows[device_id].append(Rows(*columns))
    return dict(rows)


async def _fetch_mappings(
    connection: AsyncConnection, vehicles: Collection[int], bounds: dict[str, datetime]
) -> dict[int, list[Mapping]]:
    found = await connection.execute(_MAPPINGS, {"devices": [*vehicles], **bounds})
    mappings: defaultdict[int, list[Mapping]] = defaultdict(list)
    for vehicle_id, meter_id, valid in found:
        from_us = us(valid.lower) if valid.lower else -_FAR_US
        to_us = us(valid.upper) if valid.upper else _FAR_US
        mappings[vehicle_id].append(Mapping(vehicle_id, meter_id, from_us, to_us))
    return dict(mappings)


def us(instant: datetime) -> int:
    """Returns the microseconds since 1970-01-01 UTC."""
    return round(instant.timestamp() * 1_000_000)


# The statements, all over [:range_from, :range_to) and of :devices where these are given.


def _arrays(source: TableValuedAlias, milliwh: ColumnElement[int]) -> Iterator[ColumnElement[Any]]:
    """Yields the columns of Rows. A double holds the microseconds of this era exactly, once rounded."""
    for instant in (source.c.first_ts, source.c.last_ts):
        yield func.array_agg(cast(func.date_part("epoch", instant) * 1_000_000, BigInteger))
    yield func.array_agg(milliwh)
    yield func.array_agg(source.c.readings)


_KEY = vehicle_minute.c.vehicle_id, vehicle_minute.c.meter_id
_ROWS = {
    Stream.VEHICLE: select(*_KEY, *_arrays(vehicle_minute, vehicle_minute.c.dc_milliwh)).group_by(*_KEY),
    Stream.METER: select(meter_minute.c.meter_id, null(), *_arrays(meter_minute, meter_minute.c.ac_milliwh)).group_by(
        meter_minute.c.meter_id
    ),
}

# The mappings of :devices.
_MAPPINGS = select(vehicle_meter.c.vehicle_id, vehicle_meter.c.meter_id, vehicle_meter.c.valid).where(
    one_of(vehicle_meter.c.vehicle_id, "devices"), MAPPED
)
