"""The registry: which devices exist, by the name that each gives itself."""

from collections.abc import Iterable

import psycopg
from psycopg import sql

from app.telemetry.reading import Stream


async def register(connection: psycopg.AsyncConnection, stream: Stream, external_ids: Iterable[str]) -> dict[str, int]:
    """Ids of the devices by external id; the unknown are registered in a transaction of their own.

    The first look saves the sequence: an insert that conflicts uses up an id all the same. Sorted, so that two
    processes which register the same devices wait for each other instead of deadlocking.
    """
    names = sorted(external_ids)
    table = sql.Identifier(stream)
    find = sql.SQL("SELECT external_id, id FROM {} WHERE external_id = ANY (%s)").format(table)
    insert = sql.SQL(
        "INSERT INTO {} (external_id) SELECT unnest(%s::text[]) ON CONFLICT (external_id) DO NOTHING"
    ).format(table)

    ids: dict[str, int] = dict(await (await connection.execute(find, [names])).fetchall())
    if unknown := [name for name in names if name not in ids]:
        await connection.execute(insert, [unknown])
        ids |= dict(await (await connection.execute(find, [unknown])).fetchall())
    return ids
