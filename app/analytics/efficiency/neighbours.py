"""The vehicles and the meters that they are at, by what their readings name or by mapping."""

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ARRAY, ColumnElement, CompoundSelect, Integer, any_, bindparam, func, select, union
from sqlalchemy.ext.asyncio import AsyncConnection

from app.analytics.efficiency.counter import REACH_US
from app.tables import efficiency_hour, vehicle_meter, vehicle_minute

REACH = timedelta(microseconds=REACH_US)


class Neighbours(NamedTuple):
    """A statement that finds vehicles at meters, and how far beyond a range it reads minutes."""

    statement: CompoundSelect[Any]
    minutes_beyond: timedelta


async def fetch_neighbours(
    connection: AsyncConnection,
    neighbours: Neighbours,
    meters: set[int],
    known: set[int],
    range_from: datetime,
    range_to: datetime,
) -> list[tuple[int, int]]:
    """Returns the vehicles at these meters within REACH of a range, but for the known ones, each with the meter."""
    bounds = _bounds(range_from - neighbours.minutes_beyond, range_to + neighbours.minutes_beyond)
    found = await connection.execute(neighbours.statement, {"meters": [*meters], "known": [*known], **bounds})
    return [(*row,) for row in found]


async def fetch_concerned(
    connection: AsyncConnection, vehicles: set[int], meters: set[int], range_from: datetime, range_to: datetime
) -> list[int]:
    """Returns the vehicles whose pairs may change with readings of these devices, those of a meter side by side.

    They are these vehicles, and all vehicles at their meters and at these meters.
    """
    bounds = _bounds(range_from, range_to)
    found = [(*row,) for row in await connection.execute(_METERS_OF, {"devices": [*vehicles], **bounds})]
    near = meters.union(meter_id for _, meter_id in found)
    found += await fetch_neighbours(connection, JUDGED_NEIGHBOURS, near, vehicles, range_from, range_to)
    # A vehicle at several meters counts at the one with the least id.
    meter_of = dict(sorted(found, reverse=True))
    return sorted(vehicles | meter_of.keys(), key=lambda vehicle_id: (meter_of.get(vehicle_id, 0), vehicle_id))


def _bounds(range_from: datetime, range_to: datetime) -> dict[str, datetime]:
    return {
        "range_from": range_from,
        "range_to": range_to,
        "judged_from": range_from - REACH,
        "judged_to": range_to + REACH,
    }


def one_of(column: ColumnElement[int], ids: str) -> ColumnElement[bool]:
    """Compares a column with a list of ids, which is the parameter of that name."""
    return column == any_(bindparam(ids, type_=ARRAY(Integer)))


MAPPED = vehicle_meter.c.valid.op("&&")(func.tstzrange(bindparam("range_from"), bindparam("range_to")))
_JUDGED = efficiency_hour.c.hour.between(bindparam("judged_from"), bindparam("judged_to"))


def _at(named: ColumnElement[bool], *others: tuple[Any, ColumnElement[bool]]) -> CompoundSelect[Any]:
    """Selects vehicles, with the meters that their readings name, and those of other tables."""
    return union(
        select(vehicle_minute.c.vehicle_id, vehicle_minute.c.meter_id).where(named),
        *(select(table.c.vehicle_id, table.c.meter_id).where(chosen) for table, chosen in others),
    )


def _other_at(table: Any) -> ColumnElement[bool]:
    return one_of(table.c.meter_id, "meters") & ~one_of(table.c.vehicle_id, "known")


# The meters of :devices in [:range_from, :range_to), and in the hours that were judged from :judged_from to :judged_to.
_METERS_OF = _at(
    vehicle_minute.c.meter_id.is_not(None),
    (vehicle_meter, one_of(vehicle_meter.c.vehicle_id, "devices") & MAPPED),
    (efficiency_hour, one_of(efficiency_hour.c.vehicle_id, "devices") & (efficiency_hour.c.meter_id > 0) & _JUDGED),
)
NEIGHBOURS = Neighbours(_at(_other_at(vehicle_minute), (vehicle_meter, _other_at(vehicle_meter) & MAPPED)), REACH)
"""Finds all of them, in the minutes within REACH."""

# An hour that was not judged yet concerns its neighbours when it is.
JUDGED_NEIGHBOURS = Neighbours(
    _at(
        _other_at(vehicle_minute),
        (vehicle_meter, _other_at(vehicle_meter) & MAPPED),
        (efficiency_hour, _other_at(efficiency_hour) & _JUDGED),
    ),
    timedelta(0),
)
"""Finds those of judged hours there, which have a sixtieth of the rows, and of the range's own minutes."""
