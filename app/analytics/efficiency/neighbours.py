"""The vehicles and the meters that they are at, by what their readings name or by mapping."""

from collections import defaultdict
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ARRAY, ColumnElement, CompoundSelect, Integer, any_, bindparam, func, select, union
from sqlalchemy.ext.asyncio import AsyncConnection

from app.analytics.efficiency.counter import REACH_US
from app.database import fetch_all
from app.tables import efficiency_hour, vehicle_meter, vehicle_minute

REACH = timedelta(microseconds=REACH_US)


async def fetch_at_meters(
    connection: AsyncConnection, meters: set[int], known: set[int], range_from: datetime, range_to: datetime
) -> list[tuple[int, int]]:
    """Returns the vehicles at these meters within REACH of a range, but for the known ones, each with the meter."""
    start, end = range_from - REACH, range_to + REACH
    bounds = {"range_from": start, "range_to": end, "mapped_from": start, "mapped_to": end}
    return await fetch_all(connection, _AT_METERS, {"meters": [*meters], "known": [*known], **bounds})


async def fetch_sharers(
    connection: AsyncConnection,
    vehicles: set[int],
    meters: set[int],
    touched: tuple[datetime, datetime],
    range_from: datetime,
    range_to: datetime,
) -> dict[int, set[int]]:
    """Returns the vehicles at the meters of some vehicles, and at some more meters, by meter.

    They are those of the minutes of the touched time, of the range's mappings, and of the hours judged within REACH of
    the range, which have a sixtieth of the rows. An hour that was not judged yet concerns its neighbours when it is.
    """
    bounds = {
        "range_from": touched[0],
        "range_to": touched[1],
        "mapped_from": range_from,
        "mapped_to": range_to,
        "judged_from": range_from - REACH,
        "judged_to": range_to + REACH,
    }
    found = [(*row,) for row in await connection.execute(_METERS_OF, {"devices": [*vehicles], **bounds})]
    meters = meters.union(meter_id for _, meter_id in found)
    parameters = {"meters": [*meters], "known": [*vehicles], **bounds}
    found += [(*row,) for row in await connection.execute(_JUDGED_AT_METERS, parameters)]
    sharers = defaultdict[int, set[int]](set)
    for vehicle_id, meter_id in found:
        sharers[meter_id].add(vehicle_id)
    return dict(sharers)


def one_of(column: ColumnElement[int], ids: str) -> ColumnElement[bool]:
    """Compares a column with a list of ids, which is the parameter of that name."""
    return column == any_(bindparam(ids, type_=ARRAY(Integer)))


MAPPED = vehicle_meter.c.valid.op("&&")(func.tstzrange(bindparam("mapped_from"), bindparam("mapped_to")))
_JUDGED = efficiency_hour.c.hour.between(bindparam("judged_from"), bindparam("judged_to"))


def _at(named: ColumnElement[bool], *others: tuple[Any, ColumnElement[bool]]) -> CompoundSelect[Any]:
    """Selects vehicles, with the meters that their readings name, and those of other tables."""
    return union(
        select(vehicle_minute.c.vehicle_id, vehicle_minute.c.meter_id).where(named),
        *(select(table.c.vehicle_id, table.c.meter_id).where(chosen) for table, chosen in others),
    )


def _other_at(table: Any) -> ColumnElement[bool]:
    return one_of(table.c.meter_id, "meters") & ~one_of(table.c.vehicle_id, "known")


# The statements: of minutes in [:range_from, :range_to), of mappings that hold in [:mapped_from, :mapped_to), and of
# hours that were judged from :judged_from to :judged_to.

# The meters of :devices.
_METERS_OF = _at(
    vehicle_minute.c.meter_id.is_not(None),
    (vehicle_meter, one_of(vehicle_meter.c.vehicle_id, "devices") & MAPPED),
    (efficiency_hour, one_of(efficiency_hour.c.vehicle_id, "devices") & (efficiency_hour.c.meter_id > 0) & _JUDGED),
)
# The vehicles at :meters, but for the :known ones.
_AT_METERS = _at(_other_at(vehicle_minute), (vehicle_meter, _other_at(vehicle_meter) & MAPPED))
_JUDGED_AT_METERS = _at(
    _other_at(vehicle_minute),
    (vehicle_meter, _other_at(vehicle_meter) & MAPPED),
    (efficiency_hour, _other_at(efficiency_hour) & _JUDGED),
)
