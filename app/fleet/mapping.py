"""The mapping of vehicles to meters over time, for vehicles whose readings do not name their meter."""

from datetime import datetime

import msgspec
import psycopg
from psycopg.rows import class_row

from app.database import TRANSACTION_SECONDS
from app.errors import InvalidTimeRange, TooManyNewDevices
from app.fleet.registry import register
from app.telemetry.reading import Stream


class VehicleMapping(msgspec.Struct, frozen=True, rename="camel"):
    """A vehicle charges at a meter from `valid_from` until before `valid_to`; null means no limit."""

    vehicle_id: str
    meter_id: str
    valid_from: datetime | None
    valid_to: datetime | None


# Rows are read as VehicleMapping, by column name.
_HISTORY = """
    SELECT vehicle.external_id AS vehicle_id, meter.external_id AS meter_id,
           lower(valid) AS valid_from, upper(valid) AS valid_to
    FROM vehicle_meter
    JOIN vehicle ON vehicle.id = vehicle_meter.vehicle_id
    JOIN meter ON meter.id = vehicle_meter.meter_id
    WHERE vehicle.external_id = coalesce(%s, vehicle.external_id)
        AND meter.external_id = coalesce(%s, meter.external_id)
    ORDER BY valid, vehicle.external_id
"""


# The evaluator judges back to the oldest minutes that the database retains; NULL means that it retains all.
NOW_AND_RETAINED = """
    SELECT now(), max(kept_from) FROM aggregate_retention() WHERE name IN ('meter_minute', 'vehicle_minute')
"""

# Hours of the vehicle may count elsewhere now: at the meters where they did and where they do, their alerts are judged
# again. `at` lies beyond the end of this transaction. The hours are those of its minutes, which are what is judged: the
# aggregate of hours may lag behind. The bounds are no subquery, since the function is inlined only without one.
_TOUCH = """
    INSERT INTO touched_hour AS known (stream, device_id, hour, at)
    SELECT stream, device_id, hour, clock_timestamp() + make_interval(secs => %(transaction_seconds)s)
    FROM (
        SELECT DISTINCT utc_bucket('1 hour', bucket) AS hour
        FROM vehicle_minute(utc_bucket('1 hour', coalesce(greatest(%(valid_from)s::timestamptz,
                                                                   %(retained)s::timestamptz), '-infinity')),
                            %(now)s + INTERVAL '1 hour', ARRAY[%(vehicle)s]::integer[])
    ) AS measured
    CROSS JOIN (
        SELECT 'vehicle', %(vehicle)s
        UNION
        SELECT 'meter', meter_id FROM vehicle_meter WHERE vehicle_id = %(vehicle)s
    ) AS device (stream, device_id)
    ORDER BY stream, device_id, hour
    ON CONFLICT (stream, device_id, hour) DO UPDATE SET at = excluded.at
    WHERE known.at < excluded.at
"""


async def mapping_history(
    connection: psycopg.AsyncConnection, vehicle_id: str | None, meter_id: str | None = None
) -> list[VehicleMapping]:
    """Returns the mappings of the vehicle, to the meter, or of this vehicle to this meter, oldest first."""
    cursor = connection.cursor(row_factory=class_row(VehicleMapping))
    return await (await cursor.execute(_HISTORY, [vehicle_id, meter_id])).fetchall()


async def map_vehicle(
    connection: psycopg.AsyncConnection, mapping: VehicleMapping, *, new_devices_per_hour: int
) -> VehicleMapping:
    """Maps the vehicle, registers both devices, ends the vehicle's open mapping; returns the stored mapping.

    Without `valid_from`, a vehicle's first mapping holds from the beginning of time and a later one from now. A mapping
    that the open one covers changes nothing. Raises InvalidTimeRange, TooManyNewDevices, and MappingOverlap for any
    other overlap.
    """
    # Both limits are far from the ends of the calendar, where not every zone could show the time.
    if any(at is not None and not 1900 <= at.year < 2200 for at in (mapping.valid_from, mapping.valid_to)):
        raise InvalidTimeRange("validFrom and validTo must lie between the years 1900 and 2200.")
    ids = [
        *(await register(connection, Stream.VEHICLE, [mapping.vehicle_id], per_hour=new_devices_per_hour)).values(),
        *(await register(connection, Stream.METER, [mapping.meter_id], per_hour=new_devices_per_hour)).values(),
    ]
    if len(ids) < 2:
        raise TooManyNewDevices
    vehicle, meter = ids
    async with connection.transaction():
        mapping = await _by_todays_names(connection, mapping, vehicle, meter)
        # The lock lets only one transaction at a time change a vehicle's mapping.
        await connection.execute("SELECT FROM vehicle WHERE id = %s FOR NO KEY UPDATE", [vehicle])
        history = await mapping_history(connection, mapping.vehicle_id)
        ((now, retained),) = await (await connection.execute(NOW_AND_RETAINED)).fetchall()
        valid_from = mapping.valid_from or (now if history else None)
        if mapping.valid_to is not None and valid_from is not None and mapping.valid_to <= valid_from:
            raise InvalidTimeRange("validTo must lie after validFrom, which is now where it is not given.")

        still_open = next((one for one in history if one.valid_to is None), None)
        if still_open is not None and _covers(still_open, mapping, valid_from):
            return still_open
        # Only an open mapping that began earlier can end there; any other overlap meets the exclusion constraint.
        await connection.execute(
            """
            UPDATE vehicle_meter SET valid = tstzrange(lower(valid), %(start)s)
            WHERE vehicle_id = %(vehicle)s AND upper_inf(valid) AND (lower_inf(valid) OR lower(valid) < %(start)s)
            """,
            {"vehicle": vehicle, "start": valid_from},
        )
        await connection.execute(
            "INSERT INTO vehicle_meter (vehicle_id, meter_id, valid) VALUES (%s, %s, tstzrange(%s, %s))",
            [vehicle, meter, valid_from, mapping.valid_to],
        )
        bounds = {"valid_from": valid_from, "retained": retained, "now": now}
        await connection.execute(_TOUCH, {**bounds, "vehicle": vehicle, "transaction_seconds": TRANSACTION_SECONDS})
    return VehicleMapping(mapping.vehicle_id, mapping.meter_id, valid_from, mapping.valid_to)


async def _by_todays_names(
    connection: psycopg.AsyncConnection, mapping: VehicleMapping, vehicle: int, meter: int
) -> VehicleMapping:
    """Returns the same mapping with the devices' names of today, since a client may use a name from before a rename."""
    names = await connection.execute(
        "SELECT vehicle.external_id, meter.external_id FROM vehicle, meter WHERE vehicle.id = %s AND meter.id = %s",
        [vehicle, meter],
    )
    ((vehicle_id, meter_id),) = await names.fetchall()
    return msgspec.structs.replace(mapping, vehicle_id=vehicle_id, meter_id=meter_id)


def _covers(still_open: VehicleMapping, mapping: VehicleMapping, valid_from: datetime | None) -> bool:
    same = still_open.meter_id == mapping.meter_id and mapping.valid_to is None
    return same and (still_open.valid_from is None or (valid_from is not None and still_open.valid_from <= valid_from))
