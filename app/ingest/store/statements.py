"""The SQL of one store transaction, and the functions that execute it; session.py has their order.

Instants are integers here (telemetry/instant.py), so that they pass as int8 both ways. Rows stand in the order of their
COPY's columns, `ts` first and the device second.
"""

import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple

import psycopg
import structlog
from psycopg.rows import scalar_row
from psycopg.types.numeric import Int8BinaryLoader

from app.database import LOCK_MILLISECONDS, TRANSACTION_SECONDS
from app.faults import FIND_STORE_FAULTS, CannotStore
from app.ingest.batch import Row
from app.ingest.store.conflicts import Differing, differing
from app.telemetry.instant import DAY_US, HOUR_US, LATE_US, instant
from app.telemetry.reading import Stream

_log = structlog.get_logger()

Connection = psycopg.AsyncConnection[Row]
#: Devices by stream and hour since 2000-01-01.
Touched = dict[tuple[Stream, int], set[int]]


class StreamSql(NamedTuple):
    """The statements of one stream."""

    copy_types: Sequence[str]
    copy: str
    stage: str
    insert_staged: str
    conflicting: str
    copy_states: str
    merge_states: str
    energy: int
    """The place of the energy in a row; the register is the last."""


METER = StreamSql(
    copy_types=("int8", "int4", "int8", "int4", "int8"),
    copy="COPY meter_reading (ts, meter_id, ac_milliwh, voltage_centiv, register_milliwh) FROM STDIN (FORMAT binary)",
    stage="""
        COPY staged_meter_reading (ts, meter_id, ac_milliwh, voltage_centiv, register_milliwh, n)
        FROM STDIN (FORMAT binary)
    """,
    # The first of several rows with one key wins, as if their batches had come one after another.
    insert_staged="""
        INSERT INTO meter_reading (ts, meter_id, ac_milliwh, voltage_centiv, register_milliwh)
        SELECT DISTINCT ON (meter_id, ts) ts, meter_id, ac_milliwh, voltage_centiv, register_milliwh
        FROM staged_meter_reading
        ORDER BY meter_id, ts, n
        ON CONFLICT DO NOTHING
        RETURNING ts, meter_id
    """,
    # Those of the `known` staged readings that differ from the stored ones of the same key, as differing() takes them.
    # The energy of a register's reading was not sent. The bounds exclude chunks at planning.
    conflicting="""
        SELECT staged.n,
               (SELECT external_id FROM meter WHERE id = meter_id),
               CASE WHEN stored.register_milliwh IS NULL THEN stored.ac_milliwh END,
               stored.voltage_centiv,
               stored.register_milliwh
        FROM staged_meter_reading AS staged
        JOIN meter_reading AS stored USING (meter_id, ts)
        WHERE staged.n = ANY (%(known)s::int[])
            AND stored.ts BETWEEN %(first)s::timestamptz AND %(last)s::timestamptz
            AND ((staged.register_milliwh, staged.voltage_centiv)
                    IS DISTINCT FROM (stored.register_milliwh, stored.voltage_centiv)
                OR staged.register_milliwh IS NULL AND staged.ac_milliwh <> stored.ac_milliwh)
    """,
    copy_states="""
        COPY new_meter_state (ts, meter_id, ac_milliwh, voltage_centiv, register_milliwh) FROM STDIN (FORMAT binary)
    """,
    merge_states="""
        INSERT INTO meter_state AS state (meter_id, ts, ac_milliwh, voltage_centiv, in_time)
        SELECT meter_id, ts, ac_milliwh, voltage_centiv,
               %(is_live)s AND ts >= now() - make_interval(secs => %(late_seconds)s)
        FROM new_meter_state
        ORDER BY meter_id
        ON CONFLICT (meter_id) DO UPDATE SET
            ts = excluded.ts, ac_milliwh = excluded.ac_milliwh, voltage_centiv = excluded.voltage_centiv,
            register_milliwh = NULL, in_time = state.in_time OR excluded.in_time
        WHERE state.ts < excluded.ts
    """,
    energy=2,
)

VEHICLE = StreamSql(
    copy_types=("int8", "int4", "int4", "int8", "int2", "int2", "int8"),
    copy="""
        COPY vehicle_reading (
            ts, vehicle_id, meter_id, dc_milliwh, soc_centipercent, battery_temp_centic, register_milliwh)
        FROM STDIN (FORMAT binary)
    """,
    stage="""
        COPY staged_vehicle_reading (
            ts, vehicle_id, meter_id, dc_milliwh, soc_centipercent, battery_temp_centic, register_milliwh, n)
        FROM STDIN (FORMAT binary)
    """,
    insert_staged="""
        INSERT INTO vehicle_reading (
            ts, vehicle_id, meter_id, dc_milliwh, soc_centipercent, battery_temp_centic, register_milliwh)
        SELECT DISTINCT ON (vehicle_id, ts)
               ts, vehicle_id, meter_id, dc_milliwh, soc_centipercent, battery_temp_centic, register_milliwh
        FROM staged_vehicle_reading
        ORDER BY vehicle_id, ts, n
        ON CONFLICT DO NOTHING
        RETURNING ts, vehicle_id
    """,
    conflicting="""
        SELECT staged.n,
               (SELECT external_id FROM vehicle WHERE id = vehicle_id),
               (SELECT external_id FROM meter WHERE id = staged.meter_id),
               CASE WHEN stored.register_milliwh IS NULL THEN stored.dc_milliwh END,
               (SELECT external_id FROM meter WHERE id = stored.meter_id),
               stored.soc_centipercent,
               stored.battery_temp_centic,
               stored.register_milliwh
        FROM staged_vehicle_reading AS staged
        JOIN vehicle_reading AS stored USING (vehicle_id, ts)
        WHERE staged.n = ANY (%(known)s::int[])
            AND stored.ts BETWEEN %(first)s::timestamptz AND %(last)s::timestamptz
            AND ((staged.meter_id, staged.register_milliwh, staged.soc_centipercent, staged.battery_temp_centic)
                    IS DISTINCT FROM
                    (stored.meter_id, stored.register_milliwh, stored.soc_centipercent, stored.battery_temp_centic)
                OR staged.register_milliwh IS NULL AND staged.dc_milliwh <> stored.dc_milliwh)
    """,
    copy_states="""
        COPY new_vehicle_state (
            ts, vehicle_id, meter_id, dc_milliwh, soc_centipercent, battery_temp_centic, register_milliwh)
        FROM STDIN (FORMAT binary)
    """,
    merge_states="""
        INSERT INTO vehicle_state AS state (
            vehicle_id, ts, meter_id, dc_milliwh, soc_centipercent, battery_temp_centic, in_time)
        SELECT vehicle_id, ts, meter_id, dc_milliwh, soc_centipercent, battery_temp_centic,
               %(is_live)s AND ts >= now() - make_interval(secs => %(late_seconds)s)
        FROM new_vehicle_state
        ORDER BY vehicle_id
        ON CONFLICT (vehicle_id) DO UPDATE SET
            ts = excluded.ts, meter_id = excluded.meter_id, dc_milliwh = excluded.dc_milliwh,
            soc_centipercent = excluded.soc_centipercent, battery_temp_centic = excluded.battery_temp_centic,
            register_milliwh = NULL, in_time = state.in_time OR excluded.in_time
        WHERE state.ts < excluded.ts
    """,
    energy=3,
)

SQL = {Stream.METER: METER, Stream.VEHICLE: VEHICLE}

NOTED_SECONDS = 60
LATE_SECONDS = LATE_US / 1_000_000
# Temporary tables are all that a session keeps; made when missing, they work behind a pooling proxy too.
_TEMPORARY_TABLES = """
    SET LOCAL client_min_messages = warning;
    CREATE TEMP TABLE IF NOT EXISTS new_meter_state (LIKE meter_state INCLUDING DEFAULTS) ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE IF NOT EXISTS new_vehicle_state (LIKE vehicle_state INCLUDING DEFAULTS) ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE IF NOT EXISTS new_touched_hour (LIKE touched_hour) ON COMMIT DELETE ROWS;
"""
_STAGING_TABLES = """
    CREATE TEMP TABLE IF NOT EXISTS staged_meter_reading (
        ts timestamptz, meter_id int, ac_milliwh bigint, voltage_centiv int, register_milliwh bigint, n int)
        ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE IF NOT EXISTS staged_vehicle_reading (
        ts timestamptz, vehicle_id int, meter_id int, dc_milliwh bigint,
        soc_centipercent smallint, battery_temp_centic smallint, register_milliwh bigint, n int) ON COMMIT DELETE ROWS;
"""

_MERGE_TOUCHED = """
    INSERT INTO touched_hour AS known (stream, device_id, hour, at)
    SELECT stream, device_id, hour, at FROM new_touched_hour ORDER BY stream, device_id, hour
    ON CONFLICT (stream, device_id, hour) DO UPDATE SET at = excluded.at
    WHERE known.at < excluded.at
"""


async def refuse_store_faults(connection: Connection) -> None:
    """Raises CannotStore when one of STORE_FAULTS holds."""
    try:
        found = await (await connection.execute(FIND_STORE_FAULTS)).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        found = (["not_permitted"],)
    if faults := found and found[0]:
        _log.warning("store_unavailable", faults=faults)
        raise CannotStore(faults[0])


def prepare_connection(connection: Connection) -> None:
    """Makes the connection load instants as integers too."""
    connection.adapters.register_loader("timestamptz", Int8BinaryLoader)


@asynccontextmanager
async def transaction(connection: Connection, prelude: str = "") -> AsyncIterator[None]:
    """Opens a transaction that takes TRANSACTION_SECONDS at most and begins with the statements of `prelude`."""
    # PostgreSQL 16 can only limit each statement; their total is checked before the COMMIT.
    timeout = "transaction_timeout" if connection.info.server_version >= 170000 else "statement_timeout"
    started = time.monotonic()
    async with connection.transaction():
        limits = f"SET LOCAL {timeout} = '{TRANSACTION_SECONDS}s'; SET LOCAL lock_timeout = {LOCK_MILLISECONDS};"
        await connection.execute((limits + prelude).encode())
        yield
        if time.monotonic() - started > TRANSACTION_SECONDS:
            raise psycopg.errors.TransactionTimeout


def store_transaction(connection: Connection, *, staged: bool) -> AbstractAsyncContextManager[None]:
    """Opens a transaction, with its limit and temporary tables, in one round trip."""
    return transaction(connection, _TEMPORARY_TABLES + _STAGING_TABLES if staged else _TEMPORARY_TABLES)


async def prepare_days(connection: Connection, days: range) -> None:
    """Makes sure that there is a partition for each of the UTC days, counted from 2000-01-01."""
    async with transaction(connection):
        await connection.execute("SELECT prepare_days(%s, %s)", (instant(days[0] * DAY_US), instant(days[-1] * DAY_US)))


class Outcome(NamedTuple):
    """The positions of the rows inserted, and of those whose key was stored already with other values, with these."""

    inserted: Collection[int]
    conflicting: Mapping[int, Differing]


async def insert_staged(connection: Connection, stream: Stream, rows: list[Row]) -> Outcome:
    """Inserts the staged rows whose keys are not stored yet, the first of each key."""
    statements = SQL[stream]
    cursor = connection.cursor(binary=True)
    keys = set(await (await cursor.execute(statements.insert_staged.encode())).fetchall())
    if len(keys) == len(rows):
        return Outcome(range(len(rows)), {})

    first_of_key: dict[Row, int] = {}
    for n, row in enumerate(rows):
        first_of_key.setdefault(row[:2], n)
    inserted = frozenset(first_of_key[key] for key in keys)
    known = [n for n in range(len(rows)) if n not in inserted]
    instants = [rows[n][0] for n in known]
    bounds = {"known": known, "first": instant(min(instants)), "last": instant(max(instants))}
    await cursor.execute(statements.conflicting.encode(), bounds)
    return Outcome(inserted, {n: differing(stream, rows[n], found) for n, *found in await cursor.fetchall()})


async def merge_states(connection: Connection, stream: Stream, latest: Sequence[Row], *, is_live: bool) -> None:
    """Moves the latest states forward, never backwards, to differences: a device's newest one each.

    Without `is_live`, none of them counts as in time.
    """
    if not latest:
        return
    statements = SQL[stream]
    await copy(connection, statements.copy_states, statements.copy_types, latest)
    await connection.execute(statements.merge_states.encode(), {"is_live": is_live, "late_seconds": LATE_SECONDS})


async def merge_touched(connection: Connection, touched: Touched) -> None:
    """Notes the hours as touched.

    `at` lies NOTED_SECONDS and the longest transaction ahead: readings that rely on this note are committed by then.
    """
    if not touched:
        return
    at = await clock(connection) + (NOTED_SECONDS + TRANSACTION_SECONDS) * 1_000_000
    await copy(
        connection,
        "COPY new_touched_hour (stream, device_id, hour, at) FROM STDIN (FORMAT binary)",
        ("text", "int4", "int8", "int8"),
        ((stream, device, hour * HOUR_US, at) for (stream, hour), devices in touched.items() for device in devices),
    )
    await connection.execute(_MERGE_TOUCHED.encode())


async def clock(connection: Connection) -> int:
    """Returns the database's clock, in microseconds since 2000-01-01 UTC."""
    cursor = connection.cursor(binary=True, row_factory=scalar_row)
    (now,) = await (await cursor.execute("SELECT clock_timestamp()")).fetchall()
    return int(now)


async def copy(connection: Connection, statement: str, types: Sequence[str], rows: Iterable[Row]) -> None:
    """Copies rows in. Raises UniqueViolation when one of their keys is stored already."""
    async with connection.cursor().copy(statement.encode()) as to:
        to.set_types(types)
        # This is what Copy.write_row does, which as a coroutine for each row would take half as long again.
        write_row, write = to.formatter.write_row, to.writer.write
        for row in rows:
            if data := write_row(row):
                await write(data)
