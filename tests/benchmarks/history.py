"""A day of readings of a whole fleet, written by the database itself."""

from datetime import timedelta

import psycopg
from psycopg import sql

METERS = """
    INSERT INTO meter_reading (ts, meter_id, ac_milliwh, voltage_centiv)
    SELECT %(hour)s::timestamptz + make_interval(mins => minute, secs => id * 7919 %% 60), id,
           120000 + id + minute * 7919 %% 601, 23000 + id %% 100
    FROM generate_series(0, 59) AS minute, generate_series(1, %(devices)s) AS id
    WHERE %(hour)s::timestamptz + make_interval(mins => minute, secs => id * 7919 %% 60) < now()
"""
VEHICLES = """
    INSERT INTO vehicle_reading (ts, vehicle_id, meter_id, dc_milliwh, soc_centipercent, battery_temp_centic)
    SELECT %(hour)s::timestamptz + make_interval(mins => minute, secs => id * 104729 %% 60), id, id,
           108000 + id + minute * 7919 %% 541, 5000 + minute, 2500 + id %% 100
    FROM generate_series(0, 59) AS minute, generate_series(1, %(devices)s) AS id
    WHERE %(hour)s::timestamptz + make_interval(mins => minute, secs => id * 104729 %% 60) < now()
"""
STATES = """
    INSERT INTO vehicle_state (vehicle_id, ts, meter_id, dc_milliwh, soc_centipercent, battery_temp_centic)
    SELECT id, now() - INTERVAL '1 minute', id, 108000 + id, 5000, 2500 FROM vehicle
"""

# The chunks of the aggregates of minutes on TimescaleDB, each with its index by time.
MINUTES = """
    SELECT indrelid::regclass::text, relname
    FROM timescaledb_information.continuous_aggregates
    JOIN timescaledb_information.chunks ON hypertable_name = materialization_hypertable_name
    JOIN pg_index ON indrelid = format('%I.%I', chunk_schema, chunk_name)::regclass AND indnkeyatts = 1
    JOIN pg_class ON pg_class.oid = indexrelid
    WHERE view_name IN ('meter_minute_cagg', 'vehicle_minute_cagg')
"""


def store_day(connection: psycopg.Connection, devices: int, *, hours: int = 24) -> None:
    """Stores the last hours of so many meters and vehicles, a reading a minute, and refreshes the aggregates.

    Minutes lie in the order of time, as policies that run each minute leave them: a vehicle's day lies in as many pages
    as it has minutes, and an hour of the fleet in few.
    """
    for device in ("meter", "vehicle"):
        insert = sql.SQL("INSERT INTO {} (external_id) SELECT {} || n FROM generate_series(1, %s) AS n ORDER BY n")
        connection.execute(insert.format(sql.Identifier(device), sql.Literal(f"{device}-")), [devices])
    connection.execute("SELECT prepare_days(now() - %s * INTERVAL '1 hour', now())", [hours + 1])
    starts = connection.execute(
        "SELECT generate_series(date_trunc('hour', now()) - %s * INTERVAL '1 hour', now(), '1 hour')", [hours]
    ).fetchall()
    for (hour,) in starts:
        for statement in (METERS, VEHICLES):
            connection.execute(statement, {"hour": hour, "devices": devices})
        connection.execute("CALL refresh_aggregates(%s, %s)", [hour, hour + timedelta(hours=1)])
    connection.execute(STATES)
    connection.execute("CALL refresh_aggregates()")
    if connection.execute("SELECT FROM pg_extension WHERE extname = 'timescaledb'").fetchone():
        for chunk, index in connection.execute(MINUTES).fetchall():
            connection.execute(f"CLUSTER {chunk} USING {sql.Identifier(index).as_string()}".encode())
    connection.execute("CALL spread_fleet(NULL, now())")
    connection.execute("ANALYZE")


HOURS = """
    INSERT INTO efficiency_hour
    SELECT id, hour, id, 7000000 + id, 6000000 + 13 * id, 0, 0, 6000000 + 13 * id, 0, 3600000000, 0, 0, 0, 0, 0, 0, 0
    FROM generate_series(date_trunc('hour', now()) - INTERVAL '72 hours', date_trunc('hour', now()), '1 hour') AS hour,
         generate_series(1, %s) AS id
    ON CONFLICT DO NOTHING
"""
# Two sessions a day of each vehicle.
CHARGED = """
    INSERT INTO charging_session
    SELECT id, at, at + INTERVAL '3 hours', at + INTERVAL '195 minutes', id, 20000000, 22000000, 20000000, 0.01, 'ok',
           7000000, 2000, 8000, 3000, 180, 0, 0
    FROM generate_series(1, %s) AS id,
         generate_series(now() - INTERVAL '30 days', now() - INTERVAL '2 days', '12 hours') AS at
"""
OPEN = """
    INSERT INTO alert
    SELECT 'low_efficiency', 'vehicle', id, date_trunc('hour', now()) - id %% 24 * INTERVAL '1 hour', NULL,
           jsonb_build_object('efficiencyRatio', 0.8, 'acKwh', 10, 'dcKwh', 8, 'lossKwh', 2, 'others', ARRAY[id])
    FROM generate_series(1, %s) AS id
    ON CONFLICT DO NOTHING
"""
# These meters, and the vehicles that charge there.
LABELS = """
    WITH labelled AS (UPDATE meter SET site = 'depot' WHERE id <= %s)
    UPDATE vehicle SET site = 'depot' WHERE id <= %s
"""
