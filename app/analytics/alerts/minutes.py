"""The minutes behind some hours: which vehicles they concern, and what these and their meters measured."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from app.analytics.efficiency.evidence import mappings_of
from app.analytics.efficiency.pairing import ByMeter, Energy, Mapping

# Of a slice: vehicles times minutes. Its arrays and sets take some 100 MB, and half a second.
_SLICE_MINUTES = 150_000


class Concerned(NamedTuple):
    """The vehicles whose pairs may have changed, and who is at which meter, these and those that share with them."""

    vehicles: set[int]
    meters_of: dict[int, set[int]]
    vehicles_at: dict[int, set[int]]
    mappings: list[Mapping]

    def slices(self, minutes: int) -> Iterator[set[int]]:
        """The vehicles in parts that are small enough, those of a meter together."""
        size = max(1, _SLICE_MINUTES // minutes)
        ordered = sorted(self.vehicles, key=lambda vehicle: (min(self.meters_of.get(vehicle, {0})), vehicle))
        return (set(ordered[start : start + size]) for start in range(0, len(ordered), size))


class Minutes(NamedTuple):
    """What some vehicles and those beside them delivered, what their meters consumed, in how many readings (Counts)."""

    delivered: defaultdict[int, ByMeter]
    consumed: defaultdict[int, Energy]
    mappings: list[Mapping]
    vehicle_counts: dict[int, dict[int, int]]
    meter_counts: dict[int, dict[int, int]]


async def fetch_concerned(
    connection: AsyncConnection, vehicles: set[int], meters: set[int], range_from: datetime, range_to: datetime
) -> Concerned:
    """Those that these vehicles and meters concern: a reading of either may change the pairs of all at its meter."""
    bounds = {"range_from": range_from, "range_to": range_to}
    found = Concerned(set(vehicles), defaultdict(set), defaultdict(set), await mappings_of(connection, bounds, None))
    for mapping in found.mappings:
        found.meters_of[mapping.vehicle_id].add(mapping.meter_id)
        found.vehicles_at[mapping.meter_id].add(mapping.vehicle_id)

    async def add(statement: str, ids: set[int]) -> None:
        if ids:
            for vehicle_id, meter_id in await _rows(connection, statement, {"ids": sorted(ids), **bounds}):
                found.meters_of[vehicle_id].add(meter_id)
                found.vehicles_at[meter_id].add(vehicle_id)

    await add(_METERS_OF, vehicles)
    near = meters.union(*(found.meters_of.get(vehicle, ()) for vehicle in vehicles))
    await add(_VEHICLES_AT, near)
    found.vehicles.update(*(found.vehicles_at.get(meter, ()) for meter in near))
    # Whoever shares a further meter with one of those.
    await add(_METERS_OF, found.vehicles - vehicles)
    await add(_VEHICLES_AT, set().union(*(found.meters_of.get(vehicle, ()) for vehicle in found.vehicles)) - near)
    return found


async def fetch_slice(
    connection: AsyncConnection, concerned: Concerned, vehicles: set[int], range_from: datetime, range_to: datetime
) -> Minutes:
    """What judge_hours() needs of some of the vehicles."""
    bounds = {"range_from": range_from, "range_to": range_to}
    meters = set[int]().union(*(concerned.meters_of.get(vehicle, ()) for vehicle in vehicles))
    all_vehicles = vehicles.union(*(concerned.vehicles_at.get(meter, ()) for meter in meters))
    delivered: defaultdict[int, ByMeter] = defaultdict(lambda: ByMeter(lambda: Energy(int)))
    vehicle_counts: defaultdict[int, dict[int, int]] = defaultdict(dict)
    for vehicle, meter, minutes, energies, *several in await _rows(
        connection, _DELIVERED, {"ids": sorted(all_vehicles), **bounds}
    ):
        delivered[vehicle][meter] = Energy(int, zip(minutes, energies, strict=True))
        vehicle_counts[vehicle] |= zip(*several, strict=True)
    consumed: defaultdict[int, Energy] = defaultdict(lambda: Energy(int))
    meter_counts = dict[int, dict[int, int]]()
    for meter, minutes, energies, *several in await _rows(connection, _CONSUMED, {"ids": sorted(meters), **bounds}):
        consumed[meter] = Energy(int, zip(minutes, energies, strict=True))
        meter_counts[meter] = dict(zip(*several, strict=True))
    mappings = [one for one in concerned.mappings if one.vehicle_id in all_vehicles]
    return Minutes(delivered, consumed, mappings, vehicle_counts, meter_counts)


async def _rows(connection: AsyncConnection, statement: str, parameters: dict[str, Any]) -> Sequence[Any]:
    return (await connection.exec_driver_sql(statement, parameters)).all()


# The meters that the readings of some vehicles name.
_METERS_OF = """
    SELECT DISTINCT vehicle_id, meter_id
    FROM vehicle_minute(%(range_from)s, %(range_to)s)
    WHERE vehicle_id = ANY (%(ids)s) AND meter_id IS NOT NULL
"""

# The vehicles whose readings name some meters.
_VEHICLES_AT = """
    SELECT DISTINCT vehicle_id, meter_id
    FROM vehicle_minute(%(range_from)s, %(range_to)s)
    WHERE meter_id = ANY (%(ids)s)
"""

# The minutes of some vehicles, at whatever meter.
_DELIVERED = """
    SELECT vehicle_id, meter_id, array_agg((date_part('epoch', bucket) / 60)::int), array_agg(dc_milliwh),
           coalesce(array_agg((date_part('epoch', bucket) / 60)::int) FILTER (WHERE readings > 1), '{}'),
           coalesce(array_agg(readings) FILTER (WHERE readings > 1), '{}')
    FROM vehicle_minute(%(range_from)s, %(range_to)s)
    WHERE vehicle_id = ANY (%(ids)s)
    GROUP BY vehicle_id, meter_id
"""

# The minutes of some meters.
_CONSUMED = """
    SELECT meter_id, array_agg((date_part('epoch', bucket) / 60)::int), array_agg(ac_milliwh),
           coalesce(array_agg((date_part('epoch', bucket) / 60)::int) FILTER (WHERE readings > 1), '{}'),
           coalesce(array_agg(readings) FILTER (WHERE readings > 1), '{}')
    FROM meter_minute(%(range_from)s, %(range_to)s)
    WHERE meter_id = ANY (%(ids)s)
    GROUP BY meter_id
"""
