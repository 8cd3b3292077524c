"""One store transaction: the only way in, which the writer and the import of history share.

A transaction stores meter readings, vehicle readings, latest states and touched hours, always in this order, which
keeps two processes from deadlocking. Where readings hold registers, it locks the states of their devices before.
"""

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Awaitable, Callable
from operator import itemgetter
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import psycopg

from app.database import connect
from app.ingest.batch import StreamRows
from app.ingest.store import register_statements, registers, statements
from app.ingest.store.conflicts import Differing
from app.ingest.store.late_registers import Asked, Recount, asked_of, recount
from app.ingest.store.statements import SQL, Connection, Outcome, Touched
from app.telemetry.instant import HOUR_US
from app.telemetry.reading import Stream

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

STAGED_SECONDS = 30


class Stored(NamedTuple):
    """The outcome of a transaction.

    `inserted` are the new rows in order of time. `corrected` are stored readings that have another energy now: instant,
    device, energy. If `is_due`, some of them wait for Session.settle(). `at` is the database's clock at the end, in
    microseconds since 2000-01-01 UTC.
    """

    outcomes: dict[Stream, Outcome]
    inserted: StreamRows
    corrected: StreamRows
    is_due: bool
    at: int

    def conflicts(self) -> list[Differing]:
        """Returns the rows whose keys are stored with other values, with these."""
        return [conflict for outcome in self.outcomes.values() for conflict in outcome.conflicting.values()]


Also = Callable[[Connection, Stored], Awaitable[None]]


class Session:
    """A connection that is opened again when it is lost, with what this process knows of its database.

    `pause` is called with the number of a failed attempt and its error, one of `errors`: it waits until the next
    attempt, or raises. Without `is_live`, what it stores is history, which says nothing about when devices report.
    """

    def __init__(
        self,
        url: str,
        *,
        errors: tuple[type[psycopg.Error], ...],
        pause: Callable[[int, psycopg.Error], Awaitable[None]],
        is_live: bool,
    ) -> None:
        self._url = url
        self._is_live = is_live
        self._errors, self._pause = errors, pause
        self._connection: Connection | None = None
        self._prepared_days: set[int] = set()
        self._staged_until = 0.0
        self._noted = Noted()
        self._limit_milliwatt = 0

    async def run(
        self,
        work: Callable[Concatenate[Connection, Arguments], Awaitable[Result]],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Does the work with the connection, and again while it fails with one of the errors."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return await work(await self._connected(), *args, **kwargs)
            except psycopg.errors.ReadOnlySqlTransaction:
                # The session keeps the setting that it began with.
                await self.close()
                raise
            except self._errors as error:
                await self._pause(attempt, error)

    async def store(self, connection: Connection, rows: StreamRows, days: range, also: Also | None = None) -> Stored:
        """Stores rows of these UTC days, counted from 2000-01-01, in one transaction; `also` is called at its end.

        COPY writes directly. When a key is there already, the transaction is repeated through a temporary table, and so
        is each one of the next half minute: retries come in runs, and an aborted COPY leaves dead rows behind.
        """
        prepared = not days
        staged = time.monotonic() < self._staged_until
        while True:
            if not (prepared or self._prepared_days.issuperset(days)):
                await statements.prepare_days(connection, days)
                self._prepared_days.update(days)
                prepared = True
            try:
                return await self._commit(connection, rows, also, staged=staged)
            except psycopg.errors.UniqueViolation:
                if staged:
                    raise
                staged = True
                self._staged_until = time.monotonic() + STAGED_SECONDS
            except psycopg.errors.CheckViolation:
                # Retention may have dropped the partition of an old day since it was prepared.
                if prepared:
                    raise
                self._prepared_days.difference_update(days)

    async def settle(self, connection: Connection) -> None:
        """Corrects the energies that are due, whoever noted them: each hour's in a transaction of its own."""
        while due := await register_statements.fetch_due(connection):
            hour, devices = due
            corrected: StreamRows = {}
            async with statements.store_transaction(connection, staged=False):
                for stream, some in devices.items():
                    bounds = await register_statements.take_due(connection, stream, some, hour)
                    asked = {device: Asked(*of_device, []) for device, of_device in bounds.items()}
                    recounted = await self._recount(connection, stream, asked)
                    await registers.correct(connection, stream, recounted, [(hour * HOUR_US,)])
                    corrected[stream] = recounted.corrected
                touched = self._noted.missing({}, corrected)
                await statements.merge_touched(connection, touched)
            self._noted.add(touched)

    async def close(self) -> None:
        """Closes the connection."""
        if self._connection is not None:
            await self._connection.close()

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            connection = await connect(self._url)
            try:
                await statements.refuse_store_faults(connection)
            except psycopg.Error:
                await connection.close()
                raise
            statements.prepare_connection(connection)
            self._limit_milliwatt = await register_statements.limit_milliwatt(connection)
            self._connection = connection
        return self._connection

    async def _recount(self, connection: Connection, stream: Stream, asked: dict[int, Asked]) -> Recount:
        states = await register_statements.lock(connection, stream, sorted(asked))
        return await recount(connection, stream, asked, states, self._limit_milliwatt)

    async def _commit(self, connection: Connection, rows: StreamRows, also: Also | None, *, staged: bool) -> Stored:
        outcomes: dict[Stream, Outcome] = {}
        inserted: StreamRows = {}
        corrected: StreamRows = {}
        is_due = False
        async with statements.store_transaction(connection, staged=staged):
            counted = {
                stream: await registers.begin_counting(connection, stream, of_stream, self._limit_milliwatt)
                for stream, of_stream in rows.items()
            }
            for stream, of_stream in rows.items():
                sql, counting = SQL[stream], counted[stream]
                if staged:
                    numbered = ((*row, n) for n, row in enumerate(await counting.all(connection)))
                    await statements.copy(connection, sql.stage, (*sql.copy_types, "int4"), numbered)
                    outcome = await statements.insert_staged(connection, stream, of_stream)
                else:
                    await statements.copy(connection, sql.copy, sql.copy_types, counting.steady())
                    if others := await counting.others(connection):
                        await statements.copy(connection, sql.copy, sql.copy_types, others)
                    outcome = Outcome(range(len(of_stream)), {})
                outcomes[stream] = outcome
                inserted[stream] = sorted(map(of_stream.__getitem__, outcome.inserted), key=itemgetter(0))
                corrected[stream] = [*counting.recount.corrected]
            for stream in rows:
                recounted = counted[stream].recount
                counters, latest = recounted.counters, {row[1]: row for row in inserted[stream]}
                registered = [latest.pop(device) + counters[device] for device in counters.keys() & latest.keys()]
                await statements.merge_states(connection, stream, [*latest.values()], is_live=self._is_live)
                await register_statements.merge_registers(connection, stream, registered, is_live=self._is_live)
                is_due |= await registers.correct(connection, stream, recounted, inserted[stream])
            end = await register_statements.end(connection)
            for stream, mixed in end.mixed.items():
                rows_of_mixed = [row for row in inserted.get(stream, ()) if row[1] in mixed]
                more = await self._recount(connection, stream, asked_of(rows_of_mixed))
                is_due |= await registers.correct(connection, stream, more, rows_of_mixed)
                corrected.setdefault(stream, []).extend(more.corrected)
            touched = self._noted.missing(inserted, corrected)
            await statements.merge_touched(connection, touched)
            at = await statements.clock(connection) if touched else end.at
            stored = Stored(outcomes, inserted, corrected, is_due or end.is_due, at)
            if also is not None:
                await also(connection, stored)
        self._noted.add(touched)
        return stored


class Noted:
    """The touched hours that a process has noted. A device's hour is noted once in NOTED_SECONDS, not each time."""

    def __init__(self) -> None:
        self._hours: defaultdict[tuple[Stream, int], set[int]] = defaultdict(set)
        self._until = 0.0

    def missing(self, inserted: StreamRows, corrected: StreamRows) -> Touched:
        """Returns the hours of the rows, without those noted already. Inserted ones are ordered by time."""
        if time.monotonic() >= self._until:
            self._hours.clear()
            self._until = time.monotonic() + statements.NOTED_SECONDS
        touched = touched_hours(inserted)
        for stream, rows in corrected.items():
            for ts, device, _ in rows:
                touched.setdefault((stream, ts // HOUR_US), set()).add(device)
        return {hour: new for hour, devices in touched.items() if (new := devices - self._hours[hour])}

    def add(self, touched: Touched) -> None:
        """Marks hours as noted; they must be committed."""
        for hour, devices in touched.items():
            self._hours[hour] |= devices


def touched_hours(inserted: StreamRows) -> Touched:
    """Returns the hours of each stream's rows, which are ordered by time."""
    touched: Touched = {}
    for stream, rows in inserted.items():
        start = 0
        while start < len(rows):
            hour = rows[start][0] // HOUR_US
            end = bisect_left(rows, (hour + 1) * HOUR_US, start, key=itemgetter(0))
            touched[stream, hour] = set(map(itemgetter(1), rows[start:end]))
            start = end
    return touched
