"""Imports a file block by block, each decoded while the one before is stored.

A block is sorted by time and stored in one transaction, or one for each run of UTC days with readings: on TimescaleDB a
transaction invalidates the aggregates over the whole span between its oldest and its newest row, and the time between
two runs needs no refresh. One transaction for each hour, as for late readings on the live path, would gain nothing
here, since all days that an import touches are refreshed at its end; a file sorted by device would need 700
transactions a block.
"""

import asyncio
import hashlib
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from itertools import count, pairwise
from math import inf
from operator import itemgetter
from typing import NamedTuple, ParamSpec, TypeVar

import psycopg
from psycopg.rows import scalar_row

from app.errors import SetupError
from app.faults import TRANSIENT, UNAVAILABLE
from app.fleet.registry import register
from app.ingest.batch import RejectedReading, Row, Source, StreamRows
from app.ingest.history import journal
from app.ingest.history.decoder import Decoded, Decoder, Opened
from app.ingest.history.file import BLOCK_LINES
from app.ingest.history.journal import Journal
from app.ingest.quarantine.keep import keep_rejected
from app.ingest.store.conflicts import Differing, to_quarantine
from app.ingest.store.session import Session, Stored
from app.ingest.store.statements import Connection, transaction
from app.telemetry.instant import DAY_US, EPOCH_US
from app.telemetry.reading import Stream

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

ATTEMPTS = 12
LONGEST_PAUSE_SECONDS = 30
MIN_TRANSACTION_ROWS = 1_000
# The limit is a tenth of what the quarantine holds: one bad file must not drive out all others.
QUARANTINED_ROWS = 10_000


class Imported(NamedTuple):
    """The journal of a file before and after; its ignored columns; now, the optional members dropped, by field."""

    before: Journal
    after: Journal
    ignored: list[str]
    dropped: Counter[str]


class Importer:
    """Imports files, one after another, over one connection.

    `on_progress` is called after each block with its file, the number of bytes read, the journal, and the journal at
    the start; `on_pause` before each new attempt with the seconds until then. `on_rejected` takes the rejected
    readings, each with its line and that line's number; without it they go to quarantine, as conflicts always do.
    """

    def __init__(
        self,
        url: str,
        *,
        on_progress: Callable[[Opened, int, Journal, Journal], None],
        on_pause: Callable[[int], None],
        on_rejected: Callable[[Opened, list[tuple[int, bytes, RejectedReading]]], None] | None,
    ) -> None:
        self._session = Session(url, errors=(*TRANSIENT, *UNAVAILABLE), pause=self._pause, is_live=False)
        self._on_progress, self._on_pause, self._on_rejected = on_progress, on_pause, on_rejected
        self._decoder = Decoder()
        self._transaction_rows = BLOCK_LINES

    async def run(self, name: str, mapping: Mapping[str, str]) -> Imported:
        """Imports a file, or what is left of it.

        Raises SetupError; what was stored before stays, and the same call goes on from there.
        """
        file, before = await self._opened(name, mapping)
        oldest_us = await self._session.run(_oldest_us)
        done, ignored, dropped = before, list[str](), Counter[str]()
        coming = _in_thread(self._decoder.decode, oldest_us)
        try:
            while (decoded := await coming) is not None:
                if decoded.unknown:
                    ids = await self._session.run(_register, decoded.unknown)
                    decoded = await _in_thread(self._decoder.go_on, ids)
                coming = _in_thread(self._decoder.decode, oldest_us)
                if self._on_rejected and decoded.rejected_lines:
                    rejected = zip(decoded.rejected_lines, decoded.rejected, strict=True)
                    self._on_rejected(file, [(number, line, reading) for (number, line), reading in rejected])
                done = await self._session.run(self._store, decoded, done)
                await self._session.run(self._session.settle)
                ignored = decoded.ignored
                dropped.update(decoded.dropped)
                self._on_progress(file, decoded.read_bytes, done, before)
        except journal.OtherImport:
            raise SetupError(f"{file.name} is already being imported by another process.") from None
        except psycopg.Error as error:
            raise SetupError(f"{file.name}: the database refuses what follows line {done.lines}: {error}") from error
        finally:
            if not coming.done():
                self._decoder.kill()
            await asyncio.gather(coming, return_exceptions=True)
        return Imported(before, done, ignored, dropped)

    async def close(self) -> None:
        """Closes the connection and ends the decoding process."""
        self._decoder.kill()
        await self._session.close()

    async def _opened(self, name: str, mapping: Mapping[str, str]) -> tuple[Opened, Journal]:
        """Opens the file and skips what was imported of it before, known by its beginning and by all that was read."""
        for number in count():
            file = await _in_thread(self._decoder.open, name, mapping)
            known = hashlib.blake2b(file.head + repr((sorted(mapping.items()), number)).encode(), digest_size=16)
            before = await self._session.run(journal.load, Journal(known.digest(), file.name))
            passed = await _in_thread(self._decoder.pass_over, before.position, before.lines)
            if not before.position or passed == before.digest:
                return file, before._replace(name=file.name)
            if name == "-":
                raise SetupError("Standard input begins like an earlier import but then differs; save it to a file.")
        raise AssertionError

    async def _store(self, connection: Connection, decoded: Decoded, before: Journal) -> Journal:
        now = await journal.load(connection, before)
        if now.position == decoded.end.position:
            return now  # It was committed, but the answer was lost with the connection.
        left = deque(split_days(decoded.rows(), self._transaction_rows))
        conflicts: list[Differing] = []

        def following(stored: Stored) -> Journal:
            ahead = now.ahead + sum(map(len, stored.inserted.values()))
            if left:
                return now._replace(ahead=ahead)
            return now._replace(
                **decoded.end._asdict(),
                read=now.read + decoded.received,
                inserted=now.inserted + ahead,
                duplicates=now.duplicates + decoded.good - ahead,
                conflicts=now.conflicts + len(conflicts) + len(stored.conflicts()),
                rejected=now.rejected + len(decoded.rejected),
                ahead=0,
            )

        async def save(connection: Connection, stored: Stored) -> None:
            if not left:
                room = max(0, QUARANTINED_ROWS - now.rejected - now.conflicts)
                rejected = [] if self._on_rejected else decoded.rejected[:room]
                differing = (*conflicts, *stored.conflicts())[: room - len(rejected)]
                if rejected or differing:
                    rows = [*rejected, *map(to_quarantine, differing)]
                    await keep_rejected(connection, Source.IMPORT, rows)
            changed = (*stored.inserted.values(), *map(sorted, stored.corrected.values()))
            days = {day for rows in changed for day in _days(rows)}
            await journal.save(connection, now, following(stored), days)

        while True:
            rows = left.popleft() if left else {}
            stored = await self._session.store(connection, rows, _run_of_days(rows), save)
            now = following(stored)
            conflicts += stored.conflicts()
            if not left:
                return now

    async def _pause(self, attempt: int, error: psycopg.Error) -> None:
        """Waits while the database is away or something else holds what the import needs, longer each time."""
        if attempt == ATTEMPTS:
            raise SetupError(
                f"The database is unavailable: {error}. The same command goes on where this one stopped."
            ) from error
        # Rows that a slow database cannot store in one transaction come back in halves.
        self._transaction_rows = max(self._transaction_rows // 2, MIN_TRANSACTION_ROWS)
        seconds = min(2 ** (attempt - 1), LONGEST_PAUSE_SECONDS)
        self._on_pause(seconds)
        await asyncio.sleep(seconds)


def _in_thread(
    work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> asyncio.Task[Result]:
    return asyncio.create_task(asyncio.to_thread(work, *args, **kwargs))


async def _register(connection: Connection, unknown: Mapping[Stream, set[str]]) -> dict[Stream, dict[str, int]]:
    """Returns the ids of these devices; registers new ones without a limit."""
    ids: dict[Stream, dict[str, int]] = {stream: {} for stream in unknown}
    for stream, names in unknown.items():
        if names:
            async with transaction(connection):
                ids[stream] = await register(connection, stream, names, per_hour=None)
    return ids


async def _oldest_us(connection: Connection) -> int:
    cursor = connection.cursor(binary=True, row_factory=scalar_row)
    (oldest,) = await (await cursor.execute("SELECT importable_from()")).fetchall()
    return int(oldest) + EPOCH_US


def split_days(rows: StreamRows, at_most: int) -> Iterator[StreamRows]:
    """Yields rows in order of time: runs of days without an empty one between, with at most so many per stream."""
    days = sorted({day for of_stream in rows.values() for day in _days(of_stream)})
    starts = [day for before, day in pairwise([-inf, *days]) if day > before + 1]
    for start, end in pairwise([*starts, inf]):
        run = {stream: _between(of_stream, start * DAY_US, end * DAY_US) for stream, of_stream in rows.items()}
        for first in range(0, max(map(len, run.values())), at_most):
            cut = {stream: of_stream[first : first + at_most] for stream, of_stream in run.items()}
            yield {stream: of_stream for stream, of_stream in cut.items() if of_stream}


def _run_of_days(rows: StreamRows) -> range:
    days = [row[0] // DAY_US for of_stream in rows.values() for row in (of_stream[0], of_stream[-1])]
    return range(min(days), max(days) + 1) if days else range(0)


def _days(rows: list[Row]) -> Iterator[int]:
    place = 0
    while place < len(rows):
        day = rows[place][0] // DAY_US
        yield day
        place = bisect_left(rows, (day + 1) * DAY_US, place, key=itemgetter(0))


def _between(rows: list[Row], start: float, end: float) -> list[Row]:
    return rows[bisect_left(rows, start, key=itemgetter(0)) : bisect_left(rows, end, key=itemgetter(0))]
