"""The SQL by which a store transaction counts registers; registers.py has what it means.

Instants are integers, as in statements.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from psycopg.rows import scalar_row

from app.ingest.batch import Row
from app.ingest.store.statements import LATE_SECONDS, SQL, Connection, copy
from app.telemetry.instant import HOUR_US, instant
from app.telemetry.reading import Stream
from app.telemetry.register import Base, Shown

#: The instant of the state of a device that has no reading: PostgreSQL's -infinity.
NEVER = -(2**63)


class State(NamedTuple):
    """The latest state of a device as it is stored; `ts` is NEVER before its first reading.

    It begins and ends as a row of the store: `milliwh` is the register. `base_ts` and `base_milliwh` are the last good
    register before it. `registers_since` is None for a device that has never sent a register; no difference is of this
    instant or later.
    """

    ts: int
    device: int
    base_ts: int | None
    base_milliwh: int | None
    registers_since: int | None
    milliwh: int | None

    def base(self) -> Base | None:
        """Returns the last good register before the state."""
        return None if self.base_ts is None or self.base_milliwh is None else (self.base_ts, self.base_milliwh)

    def with_differences(self, sent: Sequence[Shown]) -> int:
        """Returns what `registers_since` is once these readings are stored."""
        since = self.registers_since
        if since is None:
            since = max(self.ts + 1, 0)
        return next((max(since, ts + 1) for ts, milliwh in reversed(sent) if milliwh is None), since)


async def lock(connection: Connection, stream: Stream, devices: list[int]) -> dict[int, Row]:
    """Locks the states of devices, in the order of their ids, until the end of the transaction.

    Returns the members of State by device.
    """
    cursor = connection.cursor(binary=True)
    states: dict[int, Row] = {}
    while missing := [device for device in devices if device not in states]:
        # A list of integers would take five times as long to write.
        await cursor.execute(_LOCK[stream], {"devices": f"{{{','.join(map(str, missing))}}}"})
        states |= {state[1]: state for state in await cursor.fetchall()}
        # A device without a state has nothing to lock. What the transaction stores of it replaces this one.
        if new := [device for device in missing if device not in states]:
            await cursor.execute(_OPEN[stream], {"devices": new})
    return states


async def fetch_registers(
    connection: Connection, stream: Stream, bounds: Mapping[int, tuple[int, int]], most: int
) -> list[Row]:
    """Returns device, instant, register and energy of stored readings of registers.

    They are those between the two bounds of each device, and at most so many of the nearest on either side.
    """
    parameters = {
        "devices": [*bounds],
        "firsts": [instant(first) for first, _ in bounds.values()],
        "lasts": [instant(last) for _, last in bounds.values()],
        "most": most,
    }
    return await (await connection.cursor(binary=True).execute(_REGISTERS[stream], parameters)).fetchall()


async def fetch_differences(connection: Connection, stream: Stream, gaps: Sequence[tuple[int, int, int]]) -> list[Row]:
    """Returns device and instant of the first stored difference in each gap: a device, from when, until before when."""
    if not gaps:
        return []
    devices, starts, ends = zip(*gaps, strict=True)
    parameters = {"devices": [*devices], "starts": [*map(instant, starts)], "ends": [*map(instant, ends)]}
    return await (await connection.cursor(binary=True).execute(_DIFFERENCES[stream], parameters)).fetchall()


async def merge_registers(connection: Connection, stream: Stream, latest: Sequence[Row], *, is_live: bool) -> None:
    """Does what merge_states() does, for devices whose states are locked: rows and the last three members of State."""
    if not latest:
        return
    await copy(connection, _COPY_STATES[stream], (*SQL[stream].copy_types, "int8", "int8", "int8"), latest)
    await connection.execute(_MERGE[stream], {"is_live": is_live, "late_seconds": LATE_SECONDS})


async def write_counters(connection: Connection, stream: Stream, counters: Mapping[int, Row]) -> None:
    """Writes what the states of some devices say of their registers: the last three members of State."""
    if not counters:
        return
    bases, milliwh, since = zip(*counters.values(), strict=True)
    parameters: dict[str, list[Any]] = {
        "devices": [*counters],
        "base_ts": [ts and instant(ts) for ts in bases],
        "base_milliwh": [*milliwh],
        "registers_since": [*map(instant, since)],
    }
    await connection.execute(_COUNTERS[stream], parameters)


async def write_energies(connection: Connection, stream: Stream, corrected: Sequence[Row]) -> None:
    """Gives stored readings other energies: rows of instant, device and energy, in order."""
    parameters = {
        "instants": [instant(ts) for ts, _, _ in corrected],
        "devices": [device for _, device, _ in corrected],
        "energies": [energy for _, _, energy in corrected],
        "first": instant(corrected[0][0]),
        "last": instant(corrected[-1][0]),
    }
    await connection.execute(_CORRECT[stream], parameters)


async def note_due(connection: Connection, stream: Stream, due: Sequence[Row]) -> None:
    """Notes that the energies of stored readings, rows that begin with instant and device, are to be corrected."""
    noted = {"instants": [instant(row[0]) for row in due], "devices": [row[1] for row in due]}
    await connection.execute(_NOTE_DUE, {"stream": stream, **noted})


async def fetch_due(connection: Connection) -> tuple[int, dict[Stream, list[int]]] | None:
    """Returns the oldest hour since 2000-01-01 in which energies are due, with its devices; None when none is due."""
    rows = await (await connection.cursor(binary=True).execute(_DUE)).fetchall()
    if not rows:
        return None
    devices: dict[Stream, list[int]] = {}
    for _, stream, device in rows:
        devices.setdefault(Stream(stream), []).append(device)
    return rows[0][0] // HOUR_US, devices


async def take_due(connection: Connection, stream: Stream, devices: list[int], hour: int) -> dict[int, tuple[int, int]]:
    """Locks devices; deletes what is noted as due in an hour, and returns the bounds of it for each device."""
    await lock(connection, stream, devices)
    bounds = {"first": instant(hour * HOUR_US), "last": instant((hour + 1) * HOUR_US - 1)}
    parameters = {"stream": stream, "devices": devices, **bounds}
    rows = await (await connection.cursor(binary=True).execute(_TAKE_DUE, parameters)).fetchall()
    return {device: (first, last) for device, first, last in rows}


async def limit_milliwatt(connection: Connection) -> int:
    """Returns the limit of power by which the database counts registers."""
    cursor = connection.cursor(row_factory=scalar_row)
    (limit,) = await (await cursor.execute("SELECT max_milliwatt FROM installation")).fetchall()
    return int(limit)


class End(NamedTuple):
    """The knowledge of a transaction at its end, when it has locked the states of its devices.

    `at` is the database's clock. `mixed` are the devices of which it stored differences, and that had sent registers
    before. `is_due` says that energies in other hours are still to be corrected.
    """

    at: int
    mixed: dict[Stream, list[int]]
    is_due: bool


async def end(connection: Connection) -> End:
    """Returns the end of the transaction, with states merged."""
    cursor = connection.cursor(binary=True)
    ((at, meters, vehicles, is_due),) = await (await cursor.execute(_END)).fetchall()
    return End(at, {Stream.METER: meters or [], Stream.VEHICLE: vehicles or []}, is_due)


def _of_streams(statement: str) -> dict[Stream, bytes]:
    """Returns a statement for each stream; `others` are the columns of a state that no register changes."""
    names = {
        Stream.METER: {"energy": "ac_milliwh", "others": ("voltage_centiv",)},
        Stream.VEHICLE: {"energy": "dc_milliwh", "others": ("meter_id", "soc_centipercent", "battery_temp_centic")},
    }
    return {
        stream: statement.format(
            stream=stream,
            energy=of_stream["energy"],
            set_others=", ".join(f"{name} = new.{name}" for name in of_stream["others"]),
        ).encode()
        for stream, of_stream in names.items()
    }


# The states of :devices, locked in the order of their ids.
_LOCK = _of_streams("""
    SELECT ts, {stream}_id, base_ts, base_milliwh, registers_since, register_milliwh
    FROM {stream}_state
    WHERE {stream}_id = ANY (%(devices)s::int[])
    ORDER BY {stream}_id
    FOR NO KEY UPDATE
""")

# States for :devices that have none, older than any reading.
_OPEN = _of_streams("""
    INSERT INTO {stream}_state ({stream}_id, ts)
    SELECT unnest(%(devices)s::int[]), '-infinity'
    ON CONFLICT DO NOTHING
""")

# The readings of registers between :firsts and :lasts of each device, and the :most nearest before and after.
_REGISTERS = _of_streams("""
    SELECT device, near.*
    FROM unnest(%(devices)s::int[], %(firsts)s::timestamptz[], %(lasts)s::timestamptz[]) AS asked (device, first, last)
    CROSS JOIN LATERAL (
        (SELECT ts, register_milliwh, {energy} FROM {stream}_reading
         WHERE {stream}_id = device AND ts < first AND register_milliwh IS NOT NULL
         ORDER BY ts DESC LIMIT %(most)s)
        UNION ALL
        (SELECT ts, register_milliwh, {energy} FROM {stream}_reading
         WHERE {stream}_id = device AND ts BETWEEN first AND last AND register_milliwh IS NOT NULL)
        UNION ALL
        (SELECT ts, register_milliwh, {energy} FROM {stream}_reading
         WHERE {stream}_id = device AND ts > last AND register_milliwh IS NOT NULL
         ORDER BY ts LIMIT %(most)s)
    ) AS near
""")

# The first difference of each device from :starts until before :ends.
_DIFFERENCES = _of_streams("""
    SELECT device, difference.ts
    FROM unnest(%(devices)s::int[], %(starts)s::timestamptz[], %(ends)s::timestamptz[]) AS gap (device, start, until)
    CROSS JOIN LATERAL (
        SELECT ts FROM {stream}_reading
        WHERE {stream}_id = device AND ts >= start AND ts < until AND register_milliwh IS NULL
        ORDER BY ts LIMIT 1
    ) AS difference
""")

# Other energies for stored readings. The bounds and the devices exclude chunks and compressed segments.
_CORRECT = _of_streams("""
    UPDATE {stream}_reading AS reading SET {energy} = corrected.energy
    FROM unnest(%(instants)s::timestamptz[], %(devices)s::int[], %(energies)s::bigint[])
        AS corrected (ts, device, energy)
    WHERE reading.ts = corrected.ts AND reading.{stream}_id = corrected.device
        AND reading.ts BETWEEN %(first)s::timestamptz AND %(last)s::timestamptz
        AND reading.{stream}_id = ANY (%(devices)s::int[])
""")

_COPY_STATES = {
    Stream.METER: """
        COPY new_meter_state (
            ts, meter_id, ac_milliwh, voltage_centiv, register_milliwh, base_ts, base_milliwh, registers_since)
        FROM STDIN (FORMAT binary)
    """,
    Stream.VEHICLE: """
        COPY new_vehicle_state (
            ts, vehicle_id, meter_id, dc_milliwh, soc_centipercent, battery_temp_centic, register_milliwh,
            base_ts, base_milliwh, registers_since)
        FROM STDIN (FORMAT binary)
    """,
}

# States that are newer. Of a register, its energy was not sent.
_MERGE = _of_streams("""
    UPDATE {stream}_state AS state SET
        ts = new.ts, {set_others}, register_milliwh = new.register_milliwh,
        {energy} = CASE WHEN new.register_milliwh IS NULL THEN new.{energy} END,
        base_ts = new.base_ts, base_milliwh = new.base_milliwh, registers_since = new.registers_since,
        in_time = state.in_time OR %(is_live)s AND new.ts >= now() - make_interval(secs => %(late_seconds)s)
    FROM new_{stream}_state AS new
    WHERE state.{stream}_id = new.{stream}_id AND state.ts < new.ts AND new.registers_since IS NOT NULL
""")

# What the states say of registers.
_COUNTERS = _of_streams("""
    UPDATE {stream}_state AS state SET (base_ts, base_milliwh, registers_since) = (
        counter.base_ts, counter.base_milliwh, counter.registers_since)
    FROM unnest(%(devices)s::int[], %(base_ts)s::timestamptz[], %(base_milliwh)s::bigint[],
                %(registers_since)s::timestamptz[]) AS counter (device, base_ts, base_milliwh, registers_since)
    WHERE {stream}_id = device
""")

_NOTE_DUE = b"""
    INSERT INTO register_due (stream, device_id, ts)
    SELECT %(stream)s, device, ts FROM unnest(%(devices)s::int[], %(instants)s::timestamptz[]) AS due (device, ts)
    ON CONFLICT DO NOTHING
"""

# The oldest hour with anything due, and its devices in the order of their ids.
_DUE = b"""
    WITH oldest AS (SELECT utc_bucket('1 hour', min(ts)) AS hour FROM register_due)
    SELECT DISTINCT hour, stream, device_id
    FROM register_due JOIN oldest ON ts >= hour AND ts < hour + INTERVAL '1 hour'
    ORDER BY stream, device_id
"""

# The bounds of what is taken, by device.
_TAKE_DUE = b"""
    WITH taken AS (
        DELETE FROM register_due
        WHERE stream = %(stream)s AND device_id = ANY (%(devices)s::int[])
            AND ts BETWEEN %(first)s::timestamptz AND %(last)s::timestamptz
        RETURNING device_id, ts
    )
    SELECT device_id, min(ts), max(ts) FROM taken GROUP BY device_id
"""

# Before the states were locked, another transaction may have made a device's first register known. Where no device has
# ever sent one, an empty index tells at once.
_END = b"""
    SELECT clock_timestamp(),
           CASE WHEN EXISTS (SELECT FROM meter_state WHERE registers_since IS NOT NULL) THEN
               (SELECT array_agg(meter_id) FROM new_meter_state AS new JOIN meter_state AS state USING (meter_id)
                WHERE new.registers_since IS NULL AND state.registers_since IS NOT NULL)
           END,
           CASE WHEN EXISTS (SELECT FROM vehicle_state WHERE registers_since IS NOT NULL) THEN
               (SELECT array_agg(vehicle_id)
                FROM new_vehicle_state AS new JOIN vehicle_state AS state USING (vehicle_id)
                WHERE new.registers_since IS NULL AND state.registers_since IS NOT NULL)
           END,
           EXISTS (SELECT FROM register_due)
"""
