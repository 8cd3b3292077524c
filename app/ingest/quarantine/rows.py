"""What the quarantine holds: looked at, purged, and settled after a re-drive."""

from datetime import datetime

import msgspec
import psycopg
from psycopg.rows import class_row


class Kept(msgspec.Struct, frozen=True):
    """A rejected reading, or a payload that could not be decoded.

    `payload` is what was asked for of the `payload_bytes` that are kept.
    """

    id: int
    first_at: datetime
    last_at: datetime
    times: int
    source: str
    stream: str | None
    device: str | None
    topic: str | None
    code: str
    field: str | None
    message: str
    payload: bytes
    payload_bytes: int


class Wanted(msgspec.Struct, frozen=True):
    """Those to which all applies that is not None; `since` and `until` bound their last arrival."""

    ids: list[int] | None = None
    code: str | None = None
    source: str | None = None
    device: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    newest_id: int | None = None


_COLUMNS = b"""
    SELECT id, first_at, last_at, times, source, stream, device, topic, code, field, message,
           substring(payload for %(payload_bytes)s) AS payload, octet_length(payload) AS payload_bytes
    FROM quarantine
"""
_WANTED = b"""
    WHERE (%(ids)s::bigint[] IS NULL OR id = ANY (%(ids)s))
        AND (%(code)s::text IS NULL OR code = %(code)s)
        AND (%(source)s::text IS NULL OR source = %(source)s)
        AND (%(device)s::text IS NULL OR device = %(device)s)
        AND (%(since)s::timestamptz IS NULL OR last_at >= %(since)s)
        AND (%(until)s::timestamptz IS NULL OR last_at < %(until)s)
        AND (%(newest_id)s::bigint IS NULL OR id <= %(newest_id)s)
"""


async def count_kept(connection: psycopg.AsyncConnection, wanted: Wanted) -> tuple[int, Wanted]:
    """How many there are, and the condition for these without those that come later."""
    statement = b"SELECT count(*), coalesce(max(id), 0) FROM quarantine" + _WANTED
    ((count, newest_id),) = await (await connection.execute(statement, msgspec.structs.asdict(wanted))).fetchall()
    return count, msgspec.structs.replace(wanted, newest_id=newest_id)


async def count_dropped(connection: psycopg.AsyncConnection) -> int:
    """How many the bounds of the quarantine have dropped so far."""
    ((count,),) = await (await connection.execute("SELECT quarantine_dropped FROM installation")).fetchall()
    return int(count)


async def fetch_newest(
    connection: psycopg.AsyncConnection, wanted: Wanted, *, limit: int, payload_bytes: int
) -> list[Kept]:
    """Those that arrived last, newest first."""
    cursor = connection.cursor(row_factory=class_row(Kept))
    bounds = {"limit": limit, "payload_bytes": payload_bytes}
    statement = _COLUMNS + _WANTED + b"ORDER BY last_at DESC, id DESC LIMIT %(limit)s"
    return await (await cursor.execute(statement, msgspec.structs.asdict(wanted) | bounds)).fetchall()


async def fetch_after(connection: psycopg.AsyncConnection, wanted: Wanted, after: int, *, limit: int) -> list[Kept]:
    """Those with the next ids, with their whole payloads."""
    cursor = connection.cursor(row_factory=class_row(Kept))
    bounds = {"after": after, "limit": limit, "payload_bytes": 2**30}
    statement = _COLUMNS + _WANTED + b"AND id > %(after)s ORDER BY id LIMIT %(limit)s"
    return await (await cursor.execute(statement, msgspec.structs.asdict(wanted) | bounds)).fetchall()


async def purge(connection: psycopg.AsyncConnection, wanted: Wanted) -> int:
    """Deletes them; returns how many there were."""
    return (await connection.execute(b"DELETE FROM quarantine" + _WANTED, msgspec.structs.asdict(wanted))).rowcount


async def settle(connection: psycopg.AsyncConnection, stored: list[int], refused: list[Kept]) -> None:
    """Lets those leave whose readings are stored, and notes the new reasons of those that were refused again.

    One that is kept under its new reason already leaves too.
    """
    columns = [[getattr(kept, name) for kept in refused] for name in ("id", "code", "field", "message")]
    async with connection.transaction():
        await connection.execute("DELETE FROM quarantine WHERE id = ANY (%s)", [stored])
        await connection.execute(
            """
            WITH judged AS (
                SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::text[]) AS new (id, code, field, message)
            ), leaving AS (
                DELETE FROM quarantine AS kept USING judged, quarantine AS other
                WHERE kept.id = judged.id AND other.id <> kept.id
                    AND other.hash = kept.hash AND other.code = judged.code
            )
            UPDATE quarantine AS kept SET code = judged.code, field = judged.field, message = judged.message
            FROM judged
            WHERE kept.id = judged.id
                AND NOT EXISTS (
                    SELECT FROM quarantine AS other
                    WHERE other.id <> kept.id AND other.hash = kept.hash AND other.code = judged.code)
            """,
            columns,
        )
