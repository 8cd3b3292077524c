"""Visits of vehicles to meters over a window, which say who charges where."""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta

import msgspec
from sqlalchemy import Table, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.analytics.efficiency.evidence import MAX_SHARED_MINUTES, fetch_sides, instant_of, pair_in_thread, us
from app.analytics.efficiency.neighbours import fetch_at_meters, one_of
from app.analytics.efficiency.pairs import Pair
from app.analytics.efficiency.verdict import Coverage, coverage_of
from app.analytics.freshness import fetch_instants
from app.analytics.window import Window
from app.database import snapshot
from app.errors import InvalidTimeRange
from app.fleet.registry import device_id_of
from app.settings import Settings
from app.tables import meter, vehicle


class Visit(msgspec.Struct, frozen=True, rename="camel"):
    """The energy that a vehicle took at a meter; `id` is that of the device at the other end. Energy is in kWh.

    `dc_kwh` is all DC of the vehicle at this meter, the other two are of the paired time. It took energy there from
    `first_at` to `last_at`, with or without pauses. `shared_with` are the vehicles that took energy in its shared time.
    """

    id: str
    dc_kwh: float
    paired_dc_kwh: float
    paired_ac_kwh: float
    coverage: Coverage
    first_at: datetime
    last_at: datetime
    shared_with: list[str]


class DeviceVisits(msgspec.Struct, frozen=True, rename="camel"):
    """The vehicles that took energy at the meter `id`, or the meters at which the vehicle did; those with most first.

    All readings committed before `as_of` are included, but minutes before `kept_from` are no longer kept.
    """

    id: str
    from_: datetime = msgspec.field(name="from")
    to: datetime
    as_of: datetime | None
    kept_from: datetime | None
    visits: list[Visit]


async def fetch_meter_vehicles(pool: AsyncEngine, meter_id: str, window: Window, settings: Settings) -> DeviceVisits:
    """Returns who charges at a meter. Raises UnknownDevice.

    Raises InvalidTimeRange when too many vehicles charge there, or at their other meters, for so long a window.
    """
    bounds = window.first_minute, window.end_minute
    async with pool.connect() as connection:
        instants = await fetch_instants(connection, "vehicle_minute", "meter_minute")
        async with snapshot(connection):
            device = await device_id_of(connection, meter, meter_id)
            vehicles = {vehicle_id for vehicle_id, _ in await fetch_at_meters(connection, {device}, set(), *bounds)}
            if len(vehicles) * (bounds[1] - bounds[0]) > MAX_SHARED_MINUTES * timedelta(minutes=1):
                raise InvalidTimeRange(f"{len(vehicles):,} vehicles charge at this meter: ask for a shorter window.")
            sides = await fetch_sides(connection, vehicles, *bounds, settings)
            names = await _fetch_names(connection, vehicle, sides.sharers[device])
    pairs = await pair_in_thread(sides, vehicles, settings)
    here = ((names[one], of_one[device]) for one, of_one in pairs.items() if device in of_one)
    return DeviceVisits(meter_id, *bounds, instants.as_of, instants.kept_from, _visits(here, names, *bounds))


async def fetch_vehicle_meters(pool: AsyncEngine, vehicle_id: str, window: Window, settings: Settings) -> DeviceVisits:
    """Returns where a vehicle charges. Raises UnknownDevice, and InvalidTimeRange as its performance does."""
    bounds = window.first_minute, window.end_minute
    async with pool.connect() as connection:
        instants = await fetch_instants(connection, "vehicle_minute", "meter_minute")
        async with snapshot(connection):
            device = await device_id_of(connection, vehicle, vehicle_id)
            sides = await fetch_sides(connection, [device], *bounds, settings)
            meters = await _fetch_names(connection, meter, sides.sharers)
            others = await _fetch_names(connection, vehicle, set().union(*sides.sharers.values()))
    pairs = (await pair_in_thread(sides, [device], settings))[device]
    where = ((meters[meter_id], pair) for meter_id, pair in pairs.items() if meter_id is not None)
    return DeviceVisits(vehicle_id, *bounds, instants.as_of, instants.kept_from, _visits(where, others, *bounds))


def _visits(pairs: Iterable[tuple[str, Pair]], names: Mapping[int, str], start: datetime, end: datetime) -> list[Visit]:
    """Returns the visits in [start, end) with energy; `names` are those of the vehicles."""
    window = us(start), us(end)
    visits = []
    for name, pair in pairs:
        if runs := pair.runs(*window):
            evidence = pair.between(*window)
            energies = evidence.dc_milliwh, evidence.paired_dc_milliwh, evidence.paired_ac_milliwh
            dc, paired_dc, paired_ac = (milliwh / 1_000_000 for milliwh in energies)
            ends = runs[0].from_us, max(run.to_us for run in runs)
            first, last = map(instant_of, ends)
            others = sorted(names[other] for other in pair.shared_with(*window))
            visits.append(Visit(name, dc, paired_dc, paired_ac, coverage_of(evidence), first, last, others))
    return sorted(visits, key=lambda visit: (-visit.dc_kwh, visit.id))


async def _fetch_names(connection: AsyncConnection, device: Table, ids: Collection[int]) -> dict[int, str]:
    named = select(device.c.id, device.c.external_id).where(one_of(device.c.id, "devices"))
    return {row.id: row.external_id for row in await connection.execute(named, {"devices": [*ids]})}
