"""The writer: batches in flight become one transaction, and each gets its own receipt after the COMMIT.

A process has one. While a group is being stored the next batches gather, so that groups grow with the load and a lone
batch does not wait.

1. The group's unknown devices are registered, in a transaction of their own; readings of those beyond the limit of new
   devices are rejected.
2. Its readings are split into parts (parts.py), each one transaction: readings, latest states, touched hours
   (statements.py).
3. COPY goes direct. When a key is there already, the part is done again through a temporary table, and so is every part
   of the next half minute: retries come in runs, and an aborted COPY leaves dead rows behind.
4. When a part fails on its data, its batches are stored singly: one batch never fails another.
5. Rejected readings go to quarantine, in a transaction of their own; then the receipts go out.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from operator import itemgetter
from typing import ParamSpec, TypeVar

import psycopg

from app.database import TRANSIENT, UNAVAILABLE, connect
from app.errors import StoreBusy
from app.ingest.batch import Batch, Receipt, Source
from app.ingest.counters import WAITING, count
from app.ingest.quarantine.keep import keep_rejected
from app.ingest.store import statements
from app.ingest.store.device_ids import DeviceIds
from app.ingest.store.statements import Row
from app.ingest.store.transactions import Part, Pending, rows_of, split
from app.telemetry.reading import Stream

# Large enough that a transaction's fixed costs vanish; what waits meanwhile gets decoded.
GROUP_READINGS = 20_000
MIN_GROUP_READINGS = 1_000
STAGED_SECONDS = 30
TRANSIENT_ATTEMPTS = 6


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Writer:
    """Stores batches while `run()` runs."""

    def __init__(self, url: str, *, queue_max_readings: int, new_devices_per_hour: int | None) -> None:
        self._url = url
        self._queue_max_readings = queue_max_readings
        self._queue: deque[Pending] = deque()
        self._waiting_readings = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._connection: statements.Connection | None = None
        self._ids = DeviceIds(new_devices_per_hour)
        self._group_readings = GROUP_READINGS
        self._staged_until = 0.0
        self._prepared_days: set[int] = set()
        self._noted = statements.Noted()

    async def store(self, batch: Batch, source: Source) -> Receipt:
        """The receipt, after COMMIT. Raises StoreBusy, and what the driver raised.

        Cancelling the caller cancels nothing: the batch is stored all the same.
        """
        if self._closing or (self._queue and self._waiting_readings + batch.received > self._queue_max_readings):
            raise StoreBusy
        pending = Pending(batch, source)
        # Here and not with the group, so that it happens while the database works on the group before.
        with suppress(KeyError):
            pending.rows = rows_of(batch, self._ids)
        self._queue.append(pending)
        self._waiting_readings += batch.received
        WAITING.inc(batch.received)
        self._wake.set()
        return await pending.answered

    async def run(self) -> None:
        """Stores group after group; returns when `close()` was called and nothing is in flight any more."""
        while self._queue or not self._closing:
            if self._queue:
                await self._store_group(self._take_group())
            else:
                self._wake.clear()
                await self._wake.wait()
        if self._connection is not None:
            await self._connection.close()

    def close(self) -> None:
        """Takes no more batches."""
        self._closing = True
        self._wake.set()

    def _take_group(self) -> list[Pending]:
        group = [self._queue.popleft()]
        readings = group[0].batch.received
        while self._queue and readings + self._queue[0].batch.received <= self._group_readings:
            group.append(self._queue.popleft())
            readings += group[-1].batch.received
        self._waiting_readings -= readings
        WAITING.dec(readings)
        return group

    async def _store_group(self, group: list[Pending]) -> None:
        try:
            connection = await self._connected()
            if without_rows := [pending for pending in group if not pending.rows]:
                await _retried(self._ids.learn, connection, [pending.batch for pending in without_rows])
                for pending in without_rows:
                    self._ids.reject_unknown(pending.batch)
                    pending.rows = rows_of(pending.batch, self._ids)
            for part in split(group, time.time_ns() // 1000):
                await self._store_part(connection, part)
            await self._keep_rejected(connection, group)
            self._group_readings = min(2 * self._group_readings, GROUP_READINGS)
        except Exception as error:  # noqa: BLE001
            # A group that is too large for a slow database would come back as large, and fail again.
            self._group_readings = max(self._group_readings // 2, MIN_GROUP_READINGS)
            # Whatever happens to a group, the writer goes on; its batches are answered with what happened.
            for pending in group:
                _fail(pending, error)
        for pending in group:
            if not pending.answered.done():
                receipt = pending.receipt()
                count(receipt)
                pending.answered.set_result(receipt)

    async def _keep_rejected(self, connection: statements.Connection, group: list[Pending]) -> None:
        for source in Source:
            with_rejected = [pending for pending in group if pending.source is source and pending.batch.rejected]
            rejected = [reading for pending in with_rejected for reading in pending.batch.rejected]
            if rejected:
                committed_at = await _retried(keep_rejected, connection, source, rejected)
                for pending in with_rejected:
                    pending.committed_at = committed_at

    async def _connected(self) -> statements.Connection:
        if self._connection is None or self._connection.closed:
            self._connection = await connect(self._url)
            statements.prepare_connection(self._connection)
        return self._connection

    async def _store_part(self, connection: statements.Connection, part: Part) -> None:
        try:
            await _retried(self._commit_on_days, connection, part)
        except UNAVAILABLE:
            raise
        except psycopg.Error as error:
            if len(part.slices) == 1:
                _fail(part.slices[0].pending, error)
                return
            for one in part.slices:
                await self._store_part(connection, part._replace(slices=[one]))

    async def _commit_on_days(self, connection: statements.Connection, part: Part) -> None:
        days = part.days()
        if self._prepared_days.issuperset(days):
            # It fails where retention has dropped the partition of an old day since.
            with suppress(psycopg.errors.CheckViolation):
                return await self._commit_part(connection, part)
        await statements.prepare_days(connection, days)
        self._prepared_days.update(days)
        await self._commit_part(connection, part)

    async def _commit_part(self, connection: statements.Connection, part: Part) -> None:
        if time.monotonic() >= self._staged_until:
            try:
                return await self._commit(connection, part, staged=False)
            except psycopg.errors.UniqueViolation:
                self._staged_until = time.monotonic() + STAGED_SECONDS
        await self._commit(connection, part, staged=True)

    async def _commit(self, connection: statements.Connection, part: Part, *, staged: bool) -> None:
        rows = {stream: rows for stream in Stream if (rows := part.rows(stream))}
        outcomes: dict[Stream, statements.Outcome] = {}
        inserted: dict[Stream, list[Row]] = {}
        async with statements.store_transaction(connection, staged=staged):
            store = statements.insert_staged if staged else statements.insert_direct
            for stream in rows:
                outcomes[stream] = await store(connection, stream, rows[stream])
                inserted[stream] = sorted((rows[stream][n] for n in outcomes[stream].inserted), key=itemgetter(0))
            for stream in rows:
                await statements.merge_states(connection, stream, inserted[stream])
            touched = self._noted.missing(inserted)
            await statements.merge_touched(connection, touched)
            committed_at = await statements.clock(connection)
        self._noted.add(touched)
        for one in part.slices:
            one.pending.committed_at = committed_at
        for stream, outcome in outcomes.items():
            _count(part, stream, outcome)


async def _retried(
    work: Callable[Arguments, Awaitable[Result]], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Does the work again while it loses against other transactions."""
    for attempt in range(1, TRANSIENT_ATTEMPTS):
        with suppress(*TRANSIENT):
            return await work(*args, **kwargs)
        await asyncio.sleep(random.uniform(0, 0.02 * 2**attempt))  # noqa: S311 - spreads, hides nothing
    return await work(*args, **kwargs)


def _count(part: Part, stream: Stream, outcome: statements.Outcome) -> None:
    """Gives each batch its share of what became of the part's rows, which stand in the order of the batches."""
    position = 0
    for pending, rows in part.slices:
        span = range(position, position := position + len(rows[stream]))
        inserted = sum(map(outcome.inserted.__contains__, span))
        pending.inserted += inserted
        pending.late += inserted if part.late else 0
        pending.duplicates += len(span) - inserted
        pending.conflicts += sum(map(outcome.conflicting.__contains__, span)) if outcome.conflicting else 0


def _fail(pending: Pending, error: BaseException) -> None:
    if not pending.answered.done():
        pending.answered.set_exception(error)
