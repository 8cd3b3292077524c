"""The operator's commands on devices: seeding a fleet; listing, retiring, renaming; what is expected of a device."""

from datetime import datetime
from enum import StrEnum

import msgspec
import psycopg
from psycopg import sql
from psycopg.rows import class_row

from app.database import TRANSACTION_SECONDS
from app.errors import SetupError
from app.fleet.limits import MILLIWATT_PER_KW, limit_of
from app.fleet.mapping import NOW_AND_RETAINED
from app.fleet.registry import LOCK, find_devices, register
from app.telemetry.device_id import ID_RULE
from app.telemetry.reading import Stream

# One transaction registers or maps this many: batches with new devices wait for it, TRANSACTION_SECONDS at most.
SLICE_DEVICES = 5_000


class Expectation(StrEnum):
    """An operator's word on when a device must report; without it, the device's own rhythm tells."""

    ALWAYS = "always"
    CHARGING = "charging"
    NEVER = "never"


class Device(msgspec.Struct, frozen=True, rename="camel"):
    """A device, with its newest reading; `retired_at` is None while it is in service.

    Of the newest reading, either the energy or the register was sent; the other is None. `expectation`,
    `max_power_kw` and `site` are those of an operator, and None without.
    """

    stream: str
    id: str
    registered_at: datetime
    latest_at: datetime | None
    latest_kwh: float | None
    latest_register_kwh: float | None
    retired_at: datetime | None
    expectation: str | None
    max_power_kw: float | None
    site: str | None


class Seeded(msgspec.Struct, frozen=True):
    """The numbers of vehicles, meters and mappings that seeding has added."""

    vehicles: int
    meters: int
    mappings: int


async def seed(connection: psycopg.AsyncConnection, vehicles: int, meters: int) -> Seeded:
    """Registers vehicle-0001, meter-0001 and so on; a vehicle without a mapping gets the meter of its number.

    Devices and mappings that exist already stay as they are. If it is stopped half way, it can be run again.
    """
    added = [0, 0, 0]
    for first in range(1, max(vehicles, meters) + 1, SLICE_DEVICES):
        numbers = range(first, first + SLICE_DEVICES)
        names = {
            Stream.VEHICLE: [f"vehicle-{number:04d}" for number in numbers if number <= vehicles],
            Stream.METER: [f"meter-{number:04d}" for number in numbers if number <= meters],
        }
        added = [before + more for before, more in zip(added, await _seed_slice(connection, names), strict=True)]
    return Seeded(*added)


async def _seed_slice(connection: psycopg.AsyncConnection, names: dict[Stream, list[str]]) -> tuple[int, int, int]:
    """Adds a slice; returns how many vehicles, meters and mappings are new."""
    known = {stream: len(await find_devices(connection, stream, names[stream])) for stream in Stream}
    ids = {stream: await register(connection, stream, names[stream], per_hour=None) for stream in Stream}
    pairs = list(zip(names[Stream.VEHICLE], names[Stream.METER], strict=False))
    async with connection.transaction():
        await connection.execute(LOCK)
        mapped = await connection.execute(
            """
            INSERT INTO vehicle_meter (vehicle_id, meter_id, valid)
            SELECT vehicle_id, meter_id, '(,)' FROM unnest(%s::integer[], %s::integer[]) AS pair (vehicle_id, meter_id)
            WHERE NOT EXISTS (SELECT FROM vehicle_meter AS any_time WHERE any_time.vehicle_id = pair.vehicle_id)
            """,
            [[ids[Stream.VEHICLE][name] for name, _ in pairs], [ids[Stream.METER][name] for _, name in pairs]],
        )
    new_vehicles, new_meters = (len(names[stream]) - known[stream] for stream in (Stream.VEHICLE, Stream.METER))
    return new_vehicles, new_meters, mapped.rowcount


async def fetch_devices(
    connection: psycopg.AsyncConnection,
    *,
    stream: str | None,
    site: str | None,
    retired: bool,
    silent_minutes: int | None,
) -> list[Device]:
    """Returns devices by stream and name: all, retired ones, or ones in service but silent for `silent_minutes`.

    With `site`, they are only those of this site.
    """
    cursor = connection.cursor(row_factory=class_row(Device))
    await cursor.execute(
        """
        SELECT stream, external_id AS id, registered_at, ts AS latest_at, milliwh / 1e6::float8 AS latest_kwh,
               register_milliwh / 1e6::float8 AS latest_register_kwh,
               CASE WHEN NOT in_service THEN retired_at END AS retired_at, expectation,
               max_milliwatt / %(kw)s::float8 AS max_power_kw, site
        FROM device
        WHERE stream = coalesce(%(stream)s, stream)
            AND (%(site)s::text IS NULL OR site = %(site)s)
            AND NOT (in_service AND %(retired)s)
            AND (%(silent)s::integer IS NULL OR in_service
                 AND coalesce(ts < now() - make_interval(mins => %(silent)s), true))
        ORDER BY stream, external_id
        """,
        {"stream": stream, "site": site, "retired": retired, "silent": silent_minutes, "kw": MILLIWATT_PER_KW},
    )
    return await cursor.fetchall()


async def retire(connection: psycopg.AsyncConnection, stream: Stream, name: str, *, undo: bool) -> None:
    """Takes the device out of service until it measures something later than now; with `undo`, puts it back.

    Its open alerts are logged as closed, or as opened again. Raises SetupError for an unknown device.
    """
    if undo:
        statement = "UPDATE {device} SET retired_at = NULL WHERE id = %s"
    else:
        # The device's clock may be ahead: the reading that is there already must not put it back.
        statement = """
            UPDATE {device} SET retired_at = greatest(now(), (SELECT ts FROM {state} WHERE {state}.{key} = id))
            WHERE id = %s
        """
    update = sql.SQL(statement).format(
        device=sql.Identifier(stream), state=sql.Identifier(f"{stream}_state"), key=sql.Identifier(f"{stream}_id")
    )
    async with connection.transaction():
        # Transitions of alerts are made under this lock: webhooks rely on their order.
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('wattline alerts'))")
        device = await device_named(connection, stream, name)
        await connection.execute(_LOG_ALERTS, {"stream": stream, "device": device, "undo": undo})
        await connection.execute(update, [device])


# Nothing is logged for a device that is already retired (or in service). The alerts themselves stay, for they follow
# from the readings; only a silence is deleted, since it is found anew.
_LOG_ALERTS = """
    WITH concerned AS (
        SELECT stream, id AS device_id FROM device
        WHERE stream = %(stream)s AND id = %(device)s AND in_service <> %(undo)s
    ), silence AS (
        DELETE FROM alert USING concerned
        WHERE kind = 'no_data' AND (alert.stream, alert.device_id) = (concerned.stream, concerned.device_id)
    )
    INSERT INTO alert_transition (transition, kind, stream, device_id, opened, closed, evidence, quiet)
    SELECT CASE WHEN %(undo)s THEN 'opened' ELSE 'closed' END, kind, stream, device_id, opened,
           CASE WHEN NOT %(undo)s THEN now() END, evidence, acknowledged IS NOT NULL
    FROM alert JOIN concerned USING (stream, device_id)
    WHERE closed IS NULL
    ORDER BY kind, opened
"""


async def rename(connection: psycopg.AsyncConnection, stream: Stream, old: str, new: str) -> None:
    """Gives the device another name. Readings under the old name still belong to it, whatever process they reach.

    Raises SetupError for an unknown device, and for a name that is taken or no id.
    """
    async with connection.transaction():
        await connection.execute(LOCK)
        device = await device_named(connection, stream, old)
        if (await find_devices(connection, stream, [new])).get(new, device) != device or new == old:
            raise SetupError(f"There is a {stream} {new} already, or there was.")
        try:
            await connection.execute(
                sql.SQL("UPDATE {} SET external_id = %s WHERE id = %s").format(sql.Identifier(stream)), [new, device]
            )
        except psycopg.errors.CheckViolation:
            raise SetupError(ID_RULE) from None
        await connection.execute("DELETE FROM former_name WHERE stream = %s AND external_id = %s", [stream, new])
        await connection.execute("INSERT INTO former_name VALUES (%s, %s, %s)", [stream, old, device])


async def expect(
    connection: psycopg.AsyncConnection, stream: Stream, name: str, expectation: Expectation | None
) -> None:
    """Records when the device must report; None leaves it to its own rhythm. Raises SetupError for an unknown device.

    The next round of the evaluator opens or retracts the alerts that follow from it.
    """
    device = await device_named(connection, stream, name)
    update = sql.SQL("UPDATE {} SET expectation = %s WHERE id = %s").format(sql.Identifier(stream))
    await connection.execute(update, [expectation, device])


async def limit(connection: psycopg.AsyncConnection, stream: Stream, name: str, kw: float | None) -> None:
    """Sets the device's own limit of power; None leaves it to the service. Raises SetupError for an unknown device.

    All hours of which the device's minutes are retained are noted as touched, so that they are judged again.
    """
    async with connection.transaction():
        device = await device_named(connection, stream, name)
        update = sql.SQL("UPDATE {} SET max_milliwatt = %s WHERE id = %s").format(sql.Identifier(stream))
        await connection.execute(update, [None if kw is None else limit_of(kw), device])
        ((now, retained),) = await (await connection.execute(NOW_AND_RETAINED)).fetchall()
        await connection.execute(
            sql.SQL(_TOUCH).format(minutes=sql.Identifier(f"{stream}_minute")),
            {"stream": stream, "device": device, "now": now, "retained": retained, "seconds": TRANSACTION_SECONDS},
        )


# As after a mapping: `at` lies beyond the end of this transaction, the hours are those of the device's minutes, and the
# bounds are no subquery.
_TOUCH = """
    INSERT INTO touched_hour AS known (stream, device_id, hour, at)
    SELECT %(stream)s, %(device)s, hour, clock_timestamp() + make_interval(secs => %(seconds)s)
    FROM (
        SELECT DISTINCT utc_bucket('1 hour', bucket) AS hour
        FROM {minutes}(utc_bucket('1 hour', coalesce(%(retained)s::timestamptz, '-infinity')),
                       %(now)s + INTERVAL '1 hour', ARRAY[%(device)s]::integer[])
    ) AS measured
    ORDER BY hour
    ON CONFLICT (stream, device_id, hour) DO UPDATE SET at = excluded.at
    WHERE known.at < excluded.at
"""


async def device_named(connection: psycopg.AsyncConnection, stream: Stream, name: str) -> int:
    """Returns the id of the device that has this name today. Raises SetupError when there is none."""
    table = sql.Identifier(stream)
    today = await connection.execute(sql.SQL("SELECT id FROM {} WHERE external_id = %s").format(table), [name])
    if row := await today.fetchone():
        return int(row[0])
    former = await connection.execute(
        sql.SQL(
            """
            SELECT device.external_id FROM former_name JOIN {} AS device ON device.id = device_id
            WHERE stream = %s AND former_name.external_id = %s
            """
        ).format(table),
        [stream, name],
    )
    renamed = await former.fetchone()
    raise SetupError(f"There is no {stream} {name}" + (f"; it is called {renamed[0]} now." if renamed else "."))
