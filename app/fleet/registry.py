"""The registry: the devices that exist, by the name that each gives itself."""

from collections.abc import Iterable, Sequence

import psycopg
from psycopg import sql
from psycopg.rows import scalar_row
from sqlalchemy import Table, bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import fetch_all
from app.errors import UnknownDevice
from app.tables import meter, vehicle
from app.telemetry.reading import Stream

# Under the lock, changes come one at a time: the limit is exact over all processes, and a name means one device.
LOCK = "SELECT pg_advisory_xact_lock(hashtext('wattline registry'))"
_REGISTERED_WITHIN_THE_HOUR = """
    SELECT (SELECT count(*) FROM meter WHERE registered_at > now() - INTERVAL '1 hour')
        + (SELECT count(*) FROM vehicle WHERE registered_at > now() - INTERVAL '1 hour')
"""
# The id of the device of a table that is called :name.
_ID = {table.name: select(table.c.id).where(table.c.external_id == bindparam("name")) for table in (meter, vehicle)}


async def find_devices(connection: psycopg.AsyncConnection, stream: Stream, names: Sequence[str]) -> dict[str, int]:
    """Returns the ids of the registered devices among those names, which may be from before a rename."""
    statement = sql.SQL(
        """
        SELECT external_id, id FROM {} WHERE external_id = ANY (%(names)s)
        UNION ALL
        SELECT external_id, device_id FROM former_name WHERE stream = %(stream)s AND external_id = ANY (%(names)s)
        """
    ).format(sql.Identifier(stream))
    cursor = await connection.execute(statement, {"names": names, "stream": stream})
    return dict(await cursor.fetchall())


async def device_id_of(connection: AsyncConnection, device: Table, name: str) -> int:
    """Returns the id of the meter or vehicle that has this name today. Raises UnknownDevice."""
    found = await fetch_all(connection, _ID[device.name], {"name": name})
    if not found:
        raise UnknownDevice(f"There is no {device.name} {name}.")
    ((device_id,),) = found
    return int(device_id)


async def refuse_unknown(
    connection: psycopg.AsyncConnection, *, vehicle: str | None, meter: str | None, either: str | None = None
) -> None:
    """Raises UnknownDevice for a name that no vehicle, no meter, or neither of them has today; None is no name."""
    names = {"vehicle": vehicle, "meter": meter, "either": either}
    for stream, name in await (await connection.execute(_UNKNOWN, names)).fetchall():
        raise UnknownDevice(f"There is no {stream} {name}.")


_UNKNOWN = """
    SELECT coalesce(stream, 'device'), name
    FROM (VALUES ('vehicle', %(vehicle)s::text), ('meter', %(meter)s), (NULL, %(either)s)) AS asked (stream, name)
    WHERE name IS NOT NULL
        AND NOT EXISTS (SELECT FROM device
                        WHERE external_id = name AND device.stream = coalesce(asked.stream, device.stream))
"""


async def register(
    connection: psycopg.AsyncConnection, stream: Stream, names: Iterable[str], *, per_hour: int | None
) -> dict[str, int]:
    """Returns the ids of the devices by name; registers unknown devices, in a transaction.

    At most `per_hour` devices are registered within an hour, over all ways in; ids of further devices are missing in
    the answer. None means no limit.
    """
    names = sorted(names)
    ids = await find_devices(connection, stream, names)
    if len(ids) == len(names):
        return ids
    async with connection.transaction():
        await connection.execute(LOCK)
        ids |= await find_devices(connection, stream, [name for name in names if name not in ids])
        new = [name for name in names if name not in ids]
        if per_hour is not None:
            cursor = connection.cursor(row_factory=scalar_row)
            (registered,) = await (await cursor.execute(_REGISTERED_WITHIN_THE_HOUR)).fetchall()
            new = new[: max(0, per_hour - registered)]
        insert = "INSERT INTO {} (external_id) SELECT unnest(%s::text[]) ON CONFLICT (external_id) DO NOTHING"
        await connection.execute(sql.SQL(insert).format(sql.Identifier(stream)), [new])
        return ids | await find_devices(connection, stream, new)
