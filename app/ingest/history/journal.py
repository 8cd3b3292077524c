"""The progress of each import, written in the transactions that store its readings, so that it is never wrong."""

from datetime import datetime
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import class_row
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from app.ingest.store.statements import Connection
from app.telemetry.instant import DAY_US, instant


class Journal(NamedTuple):
    """The progress of a file's import: `position` in decompressed bytes, `lines`, and `digest`, which sums these bytes.

    read = inserted + duplicates + rejected. `conflicts` counts duplicates that came with other values. `ahead` counts
    the rows after `position` that the first transactions of their block have inserted; no other number includes them.
    """

    id: bytes
    name: str
    position: int = 0
    lines: int = 0
    digest: bytes = b""
    read: int = 0
    inserted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rejected: int = 0
    ahead: int = 0


async def load(connection: Connection, new: Journal) -> Journal:
    """Returns the committed journal of an import; `new` when there is none yet."""
    async with connection.cursor(row_factory=class_row(Journal)) as cursor:
        await cursor.execute(
            """
            SELECT id, name, position, lines, digest, read, inserted, duplicates, conflicts, rejected, ahead
            FROM import_journal
            WHERE id = %s
            """,
            [new.id],
        )
        return await cursor.fetchone() or new


async def save(connection: Connection, before: Journal, after: Journal, days: set[int]) -> None:
    """Replaces `before` by `after` in the caller's transaction; `days` since 2000-01-01 were touched.

    Raises OtherImport when the journal is no longer at `before`.
    """
    touched = Multirange([Range(instant(day * DAY_US), instant((day + 1) * DAY_US)) for day in days])
    cursor = await connection.execute(
        """
        INSERT INTO import_journal AS known (
            id, name, position, lines, digest, read, inserted, duplicates, conflicts, rejected, ahead, touched)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::tstzmultirange)
        ON CONFLICT (id) DO UPDATE SET
            name = excluded.name, position = excluded.position, lines = excluded.lines, digest = excluded.digest,
            read = excluded.read, inserted = excluded.inserted, duplicates = excluded.duplicates,
            conflicts = excluded.conflicts, rejected = excluded.rejected, ahead = excluded.ahead,
            touched = known.touched + excluded.touched, updated_at = clock_timestamp()
        WHERE (known.position, known.ahead) = (%s, %s)
        """,
        [*after, touched, before.position, before.ahead],
    )
    if cursor.rowcount == 0:
        raise OtherImport


class OtherImport(Exception):
    """Another process is importing the same file."""


class Unrefreshed(NamedTuple):
    """Days in which imports have stored readings since the last refresh; `seen` holds the journals that say so."""

    ranges: list[tuple[datetime, datetime]]
    seen: list[tuple[bytes, datetime]]


def unrefreshed(connection: psycopg.Connection[tuple[Any, ...]]) -> Unrefreshed:
    """Returns the days of all imports, including those of one that was killed and never continued."""
    seen = connection.execute("SELECT id, updated_at FROM import_journal WHERE NOT isempty(touched)").fetchall()
    ranges = connection.execute(
        """
        SELECT lower(days), upper(days)
        FROM (SELECT unnest(range_agg(touched)) AS days FROM import_journal WHERE id = ANY(%s)) AS touched
        ORDER BY days
        """,
        [[id for id, _ in seen]],
    ).fetchall()
    return Unrefreshed(ranges, seen)


def mark_refreshed(connection: psycopg.Connection[tuple[Any, ...]], days: Unrefreshed) -> None:
    """Marks the days as refreshed; days in which readings were stored meanwhile stay unrefreshed."""
    for id, updated_at in days.seen:
        connection.execute(
            "UPDATE import_journal SET touched = '{}' WHERE id = %s AND updated_at = %s", [id, updated_at]
        )
