"""A device's minute has the instants of its first and last reading: as they come in, refreshed, late, compressed."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta

import psycopg

from app.ops.refresh import refresh_aggregates
from app.telemetry.reading import MeterReading
from tests.fixtures.engines import on_timescale, run_policies
from tests.fixtures.readings import EPOCH, Reading, Rows, meter_reading, midnight, store, vehicle_reading

MINUTES = """
    SELECT meter.external_id, bucket, NULL, first_ts, last_ts, readings
    FROM meter_minute(%(start)s, %(end)s)
    JOIN meter ON meter.id = meter_id
    UNION ALL
    SELECT vehicle.external_id, bucket, meter.external_id, first_ts, last_ts, readings
    FROM vehicle_minute(%(start)s, %(end)s) AS minute
    JOIN vehicle ON vehicle.id = vehicle_id
    LEFT JOIN meter ON meter.id = minute.meter_id
"""


def minutes_in(connection: psycopg.Connection, day: datetime) -> Rows:
    rows = connection.execute(MINUTES, {"start": day, "end": day + timedelta(days=1)})
    return sorted(rows.fetchall(), key=str)


def minutes_of(readings: Iterable[Reading]) -> Rows:
    """Returns what minutes_in() has to find of these readings."""
    instants: defaultdict[tuple[str, datetime, str | None], list[datetime]] = defaultdict(list)
    for reading in readings:
        at = EPOCH + timedelta(microseconds=reading.ts_us)
        bucket = at.replace(second=0, microsecond=0)
        if isinstance(reading, MeterReading):
            instants[reading.meter_id, bucket, None].append(at)
        else:
            instants[reading.vehicle_id, bucket, reading.meter_id].append(at)
    return sorted(((*key, min(of_key), max(of_key), len(of_key)) for key, of_key in instants.items()), key=str)


def readings_from(start: datetime) -> list[Reading]:
    """Returns some readings of two minutes: up to their bounds, not in order, alone, and at two meters."""
    second, minute = timedelta(seconds=1), timedelta(minutes=1)
    return [
        meter_reading(start + 31 * second),
        meter_reading(start),
        meter_reading(start + minute - timedelta(microseconds=1)),
        meter_reading(start + minute + 17.25 * second),
        vehicle_reading(start + 40 * second, vehicle_id="V1"),
        vehicle_reading(start + 5 * second, vehicle_id="V1"),
        vehicle_reading(start + 20 * second, vehicle_id="V1", meter_id="M2"),
        vehicle_reading(start + 41 * second, vehicle_id="V1", meter_id="M2"),
        vehicle_reading(start + 50 * second, vehicle_id="V1", meter_id=None),
        vehicle_reading(start + 9 * second, vehicle_id="V2"),
        vehicle_reading(start + 33 * second, vehicle_id="V2"),
        vehicle_reading(start + minute + 2.5 * second, vehicle_id="V2"),
    ]


def late_readings_from(start: datetime) -> list[Reading]:
    """Returns readings of the same minutes: before the first one, after the last one, and between them."""
    second, minute = timedelta(seconds=1), timedelta(minutes=1)
    return [
        meter_reading(start + minute + 3 * second),
        meter_reading(start + minute + 55.5 * second),
        meter_reading(start + 45 * second),
        vehicle_reading(start + second, vehicle_id="V2"),
        vehicle_reading(start + 30 * second, vehicle_id="V1"),
        vehicle_reading(start + 58 * second, vehicle_id="V1", meter_id="M2"),
    ]


async def test_minutes_have_the_instants_of_their_first_and_last_reading(
    connection: psycopg.Connection, database_url: str, engine: str
) -> None:
    day = midnight(2)
    start = day + timedelta(hours=10, minutes=30)
    readings, late = readings_from(start), late_readings_from(start)
    await store(database_url, *readings)
    assert minutes_in(connection, day) == minutes_of(readings)
    refresh_aggregates(database_url, None, None)
    assert minutes_in(connection, day) == minutes_of(readings)
    await store(database_url, *late)
    if engine == "timescale":
        # What is answered is what the refresh stored.
        assert minutes_in(connection, day) == minutes_of(readings)
    refresh_aggregates(database_url, None, None)
    assert minutes_in(connection, day) == minutes_of([*readings, *late])


@on_timescale
async def test_compressed_minutes_have_the_same_instants(connection: psycopg.Connection, database_url: str) -> None:
    day = midnight(22)
    start = day + timedelta(hours=10, minutes=30)
    readings, late = readings_from(start), late_readings_from(start)
    await store(database_url, *readings)
    refresh_aggregates(database_url, None, None)
    run_policies(connection, "policy_compression")
    compressed = connection.execute(
        """
        SELECT view_name, bool_and(is_compressed)
        FROM timescaledb_information.continuous_aggregates AS cagg
        JOIN timescaledb_information.chunks AS chunk
            ON chunk.hypertable_name = cagg.materialization_hypertable_name
        WHERE view_name IN ('meter_minute_cagg', 'vehicle_minute_cagg')
        GROUP BY view_name
        ORDER BY view_name
        """
    )
    assert compressed.fetchall() == [("meter_minute_cagg", True), ("vehicle_minute_cagg", True)]
    assert minutes_in(connection, day) == minutes_of(readings)
    await store(database_url, *late)
    refresh_aggregates(database_url, None, None)
    assert minutes_in(connection, day) == minutes_of([*readings, *late])
    run_policies(connection, "policy_compression")
    assert minutes_in(connection, day) == minutes_of([*readings, *late])
