"""The rows of the quarantine: looking at them, purging them, and settling those that were driven again."""

from datetime import datetime

import msgspec
import psycopg
from psycopg.rows import class_row


class QuarantinedReading(msgspec.Struct, frozen=True):
    """A rejected reading, or a payload that could not be decoded.

    `payload` is as much as was asked for, from the start of the `payload_bytes` that quarantine holds.
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


class Filter(msgspec.Struct, frozen=True):
    """A choice of rows: every member that is not None must match; `since` and `until` bound their last arrival."""

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
_WHERE = b"""
    WHERE (%(ids)s::bigint[] IS NULL OR id = ANY (%(ids)s))
        AND (%(code)s::text IS NULL OR code = %(code)s)
        AND (%(source)s::text IS NULL OR source = %(source)s)
        AND (%(device)s::text IS NULL OR device = %(device)s)
        AND (%(since)s::timestamptz IS NULL OR last_at >= %(since)s)
        AND (%(until)s::timestamptz IS NULL OR last_at < %(until)s)
        AND (%(newest_id)s::bigint IS NULL OR id <= %(newest_id)s)
"""


async def count(connection: psycopg.AsyncConnection, matching: Filter) -> tuple[int, Filter]:
    """Counts the matching rows; returns a filter, too, for these alone, without rows that come later."""
    statement = b"SELECT count(*), coalesce(max(id), 0) FROM quarantine" + _WHERE
    ((found, newest_id),) = await (await connection.execute(statement, msgspec.structs.asdict(matching))).fetchall()
    return found, msgspec.structs.replace(matching, newest_id=newest_id)


async def count_dropped(connection: psycopg.AsyncConnection) -> int:
    """Returns the number of rows that the bounds of the quarantine have dropped so far."""
    ((dropped,),) = await (await connection.execute("SELECT quarantine_dropped FROM installation")).fetchall()
    return int(dropped)


async def fetch_newest(
    connection: psycopg.AsyncConnection, matching: Filter, *, limit: int, payload_bytes: int
) -> list[QuarantinedReading]:
    """Returns the matching rows that arrived last, newest first."""
    cursor = connection.cursor(row_factory=class_row(QuarantinedReading))
    bounds = {"limit": limit, "payload_bytes": payload_bytes}
    statement = _COLUMNS + _WHERE + b"ORDER BY last_at DESC, id DESC LIMIT %(limit)s"
    return await (await cursor.execute(statement, msgspec.structs.asdict(matching) | bounds)).fetchall()


async def fetch_after(
    connection: psycopg.AsyncConnection, matching: Filter, after: int, *, limit: int
) -> list[QuarantinedReading]:
    """Returns the matching rows with the next ids and their whole payloads."""
    cursor = connection.cursor(row_factory=class_row(QuarantinedReading))
    bounds = {"after": after, "limit": limit, "payload_bytes": 2**30}
    statement = _COLUMNS + _WHERE + b"AND id > %(after)s ORDER BY id LIMIT %(limit)s"
    return await (await cursor.execute(statement, msgspec.structs.asdict(matching) | bounds)).fetchall()


async def purge(connection: psycopg.AsyncConnection, matching: Filter) -> int:
    """Deletes the matching rows and returns their number."""
    return (await connection.execute(b"DELETE FROM quarantine" + _WHERE, msgspec.structs.asdict(matching))).rowcount


async def settle(connection: psycopg.AsyncConnection, stored: list[int], rejected: list[QuarantinedReading]) -> None:
    """Deletes the rows with the ids `stored`, and records the new reasons of those rejected again.

    A row whose new reason already has a row is deleted too.
    """
    columns = [[getattr(reading, name) for reading in rejected] for name in ("id", "code", "field", "message")]
    async with connection.transaction():
        await connection.execute("DELETE FROM quarantine WHERE id = ANY (%s)", [stored])
        await connection.execute(
            """
            WITH judged AS (
                SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::text[]) AS new (id, code, field, message)
            ), leaving AS (
                DELETE FROM quarantine AS known USING judged, quarantine AS other
                WHERE known.id = judged.id AND other.id <> known.id
                    AND other.hash = known.hash AND other.code = judged.code
            )
            UPDATE quarantine AS known SET code = judged.code, field = judged.field, message = judged.message
            FROM judged
            WHERE known.id = judged.id
                AND NOT EXISTS (
                    SELECT FROM quarantine AS other
                    WHERE other.id <> known.id AND other.hash = known.hash AND other.code = judged.code)
            """,
            columns,
        )
