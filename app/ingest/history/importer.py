"""Importing a file: block after block, each decoded while the one before is stored.

A block is sorted by time and stored in one transaction, or one for each run of UTC days with readings: on TimescaleDB a
transaction invalidates the aggregates over the whole span between its oldest and its newest row, and what lies between
two runs is not to be refreshed. One transaction for each hour, as late readings have it on the live path, would gain
nothing here, since all days that an import touches are refreshed at its end; a file in order of devices would have 700
transactions a block.
"""

import asyncio
import hashlib
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count, pairwise
from math import inf
from operator import itemgetter
from typing import Concatenate, ParamSpec, TypeVar

import psycopg
from psycopg.rows import scalar_row

from app.database import TRANSIENT, UNAVAILABLE, connect
from app.errors import SetupError
from app.fleet.registry import register
from app.ingest.batch import RejectedReading, Source
from app.ingest.history import journal
from app.ingest.history.decoder import Decoded, Decoder, Opened, StreamRows
from app.ingest.history.file import BLOCK_LINES
from app.ingest.history.journal import Journal
from app.ingest.quarantine.keep import keep_rejected
from app.ingest.store import statements
from app.ingest.store.statements import Row
from app.telemetry.instant import DAY_US, EPOCH_US
from app.telemetry.reading import Stream

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

ATTEMPTS = 12
LONGEST_PAUSE_SECONDS = 30
STAGED_SECONDS = 30
MIN_PART_ROWS = 1_000
# Quarantine keeps 100,000 rejected readings: one bad file must not drive out all others.
QUARANTINED_ROWS = 10_000


class Importer:
    """Imports files, one after the other, over one connection.

    `tell` is called after each block with its file, how many bytes of it are read, the journal and that of the start;
    `pause` before each new attempt with the seconds until then. `reject` takes the rejected rows, each with its line
    and that line's number; without it they go to quarantine.
    """

    def __init__(
        self,
        url: str,
        *,
        tell: Callable[[Opened, int, Journal, Journal], None],
        pause: Callable[[int], None],
        reject: Callable[[Opened, list[tuple[int, bytes, RejectedReading]]], None] | None,
    ) -> None:
        self._url = url
        self._tell, self._pause, self._reject = tell, pause, reject
        self._connection: statements.Connection | None = None
        self._decoder = Decoder()
        self._noted = statements.Noted()
        self._prepared_days: set[int] = set()
        self._part_rows = BLOCK_LINES
        self._staged_until = 0.0

    async def run(self, name: str, mapping: Mapping[str, str]) -> tuple[Journal, Journal, list[str]]:
        """Imports a file, or what is left of it: the journal before and after, and the columns that were ignored.

        Raises SetupError; what was stored before stays, and the same call goes on after it.
        """
        file, before = await self._opened(name, mapping)
        oldest_us = await self._retried(_oldest_us)
        done, ignored = before, list[str]()
        coming = _in_thread(self._decoder.decode, oldest_us)
        try:
            while (decoded := await coming) is not None:
                if decoded.unknown:
                    ids = await self._retried(_register, decoded.unknown)
                    decoded = await _in_thread(self._decoder.go_on, ids)
                coming = _in_thread(self._decoder.decode, oldest_us)
                if self._reject and decoded.rejected_lines:
                    rejected = zip(decoded.rejected_lines, decoded.rejected, strict=True)
                    self._reject(file, [(number, line, reading) for (number, line), reading in rejected])
                done = await self._retried(self._store, decoded, done)
                ignored = decoded.ignored
                self._tell(file, decoded.read_bytes, done, before)
        except journal.OtherImport:
            raise SetupError(f"{file.name} is being imported by another process, too.") from None
        except psycopg.Error as error:
            raise SetupError(f"{file.name}: the database refuses what follows line {done.lines}: {error}") from error
        finally:
            if not coming.done():
                self._decoder.kill()
            await asyncio.gather(coming, return_exceptions=True)
        return before, done, ignored

    async def close(self) -> None:
        """Ends the connection and the process that decodes."""
        self._decoder.kill()
        if self._connection is not None:
            await self._connection.close()

    async def _opened(self, name: str, mapping: Mapping[str, str]) -> tuple[Opened, Journal]:
        """The file, behind what was imported of it before (known by its beginning and by all that was read of it)."""
        for number in count():
            file = await _in_thread(self._decoder.open, name, mapping)
            known = hashlib.blake2b(file.head + repr((sorted(mapping.items()), number)).encode(), digest_size=16)
            before = await self._retried(journal.load, Journal(known.digest(), file.name))
            passed = await _in_thread(self._decoder.pass_over, before.position, before.lines)
            if not before.position or passed == before.digest:
                return file, before._replace(name=file.name)
            if name == "-":
                raise SetupError("Standard input begins like an earlier import, then differs: save it to a file.")
        raise AssertionError

    async def _store(self, connection: statements.Connection, decoded: Decoded, before: Journal) -> Journal:
        now = await journal.load(connection, before)
        if now.position == decoded.end.position:
            return now  # committed, but the answer was lost with the connection
        parts = list(split_days(decoded.rows(), self._part_rows))
        conflicts = 0
        for part in parts[:-1]:
            now, more = await self._commit(connection, part, now, lambda now, _: now)
            conflicts += more

        def end_of_block(now: Journal, more: int) -> Journal:
            return now._replace(
                **decoded.end._asdict(),
                read=now.read + decoded.received,
                inserted=now.inserted + now.ahead,
                duplicates=now.duplicates + decoded.good - now.ahead,
                conflicts=now.conflicts + conflicts + more,
                rejected=now.rejected + len(decoded.rejected),
                ahead=0,
            )

        room = max(0, QUARANTINED_ROWS - now.rejected)
        rejected = [] if self._reject else decoded.rejected[:room]
        now, _ = await self._commit(connection, parts[-1] if parts else {}, now, end_of_block, rejected)
        return now

    async def _commit(
        self,
        connection: statements.Connection,
        rows: StreamRows,
        before: Journal,
        following: Callable[[Journal, int], Journal],
        rejected: Sequence[RejectedReading] = (),
    ) -> tuple[Journal, int]:
        """Stores rows in one transaction, with the journal that follows; how many were there with other values."""
        days = {row[0] // DAY_US for of_stream in rows.values() for row in (of_stream[0], of_stream[-1])}
        if days and not self._prepared_days.issuperset(run := range(min(days), max(days) + 1)):
            await statements.prepare_days(connection, run)
            self._prepared_days.update(run)
        if time.monotonic() >= self._staged_until:
            with suppress(psycopg.errors.UniqueViolation):
                return await self._transaction(connection, rows, before, following, rejected, staged=False)
            self._staged_until = time.monotonic() + STAGED_SECONDS
        return await self._transaction(connection, rows, before, following, rejected, staged=True)

    async def _transaction(
        self,
        connection: statements.Connection,
        rows: StreamRows,
        before: Journal,
        following: Callable[[Journal, int], Journal],
        rejected: Sequence[RejectedReading],
        *,
        staged: bool,
    ) -> tuple[Journal, int]:
        inserted: StreamRows = {}
        conflicts = 0
        async with statements.store_transaction(connection, staged=staged):
            store = statements.insert_staged if staged else statements.insert_direct
            for stream, of_stream in rows.items():
                outcome = await store(connection, stream, of_stream)
                inserted[stream] = [of_stream[n] for n in sorted(outcome.inserted)] if staged else of_stream
                conflicts += len(outcome.conflicting)
            for stream, of_stream in inserted.items():
                await statements.merge_states(connection, stream, of_stream)
            touched = self._noted.missing(inserted)
            await statements.merge_touched(connection, touched)
            if rejected:
                await keep_rejected(connection, Source.IMPORT, list(rejected))
            after = following(before._replace(ahead=before.ahead + sum(map(len, inserted.values()))), conflicts)
            days = {day for of_stream in inserted.values() for day in _days(of_stream)}
            await journal.save(connection, before, after, days)
        self._noted.add(touched)
        return after, conflicts

    async def _connected(self) -> statements.Connection:
        if self._connection is None or self._connection.closed:
            self._connection = await connect(self._url)
            statements.prepare_connection(self._connection)
        return self._connection

    async def _retried(
        self,
        work: Callable[Concatenate[statements.Connection, Arguments], Awaitable[Result]],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Does the work again, after a pause, while the database is away or something else holds what it needs."""
        for attempt in range(ATTEMPTS):
            try:
                return await work(await self._connected(), *args, **kwargs)
            except (*TRANSIENT, *UNAVAILABLE) as error:
                away = error
            # What a slow database does not manage in one transaction comes back in halves.
            self._part_rows = max(self._part_rows // 2, MIN_PART_ROWS)
            seconds = min(2**attempt, LONGEST_PAUSE_SECONDS)
            self._pause(seconds)
            await asyncio.sleep(seconds)
        raise SetupError(f"The database cannot be had: {away}. The same command goes on where this one stopped.")


def _in_thread(
    work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> asyncio.Task[Result]:
    return asyncio.create_task(asyncio.to_thread(work, *args, **kwargs))


async def _register(
    connection: statements.Connection, unknown: Mapping[Stream, set[str]]
) -> dict[Stream, dict[str, int]]:
    """The ids of these devices, new ones without limit."""
    ids: dict[Stream, dict[str, int]] = {stream: {} for stream in unknown}
    for stream, names in unknown.items():
        if names:
            async with statements.transaction(connection):
                ids[stream] = await register(connection, stream, names, per_hour=None)
    return ids


async def _oldest_us(connection: statements.Connection) -> int:
    cursor = connection.cursor(binary=True, row_factory=scalar_row)
    (oldest,) = await (await cursor.execute("SELECT importable_from()")).fetchall()
    return int(oldest) + EPOCH_US


def split_days(rows: StreamRows, part_rows: int) -> Iterator[StreamRows]:
    """Rows in order of time, in runs of days without an empty one between them, and at most so many of a stream."""
    days = sorted({day for of_stream in rows.values() for day in _days(of_stream)})
    starts = [day for before, day in pairwise([-inf, *days]) if day > before + 1]
    for start, end in pairwise([*starts, inf]):
        run = {stream: _between(of_stream, start * DAY_US, end * DAY_US) for stream, of_stream in rows.items()}
        for first in range(0, max(map(len, run.values())), part_rows):
            part = {stream: of_stream[first : first + part_rows] for stream, of_stream in run.items()}
            yield {stream: of_stream for stream, of_stream in part.items() if of_stream}


def _days(rows: list[Row]) -> Iterator[int]:
    place = 0
    while place < len(rows):
        day = rows[place][0] // DAY_US
        yield day
        place = bisect_left(rows, (day + 1) * DAY_US, place, key=itemgetter(0))


def _between(rows: list[Row], start: float, end: float) -> list[Row]:
    return rows[bisect_left(rows, start, key=itemgetter(0)) : bisect_left(rows, end, key=itemgetter(0))]
