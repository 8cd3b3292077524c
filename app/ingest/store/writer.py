"""The writer: batches in flight become one transaction, and each gets its own receipt after the COMMIT.

A process has one writer. While a group is stored, the next batches gather, so that groups grow with the load and a
lone batch does not wait.

1. The group's unknown devices are registered, in a transaction of their own; readings of devices beyond the limit of
   new devices are rejected.
2. Its readings are split into transactions (transactions.py), which are stored one after the other (session.py).
3. When a transaction fails on its data, its batches are stored singly: one batch never fails another.
4. Rejected readings and conflicts go to quarantine, in transactions of their own; then the receipts go out.

When the database does nothing at all (faults.cause_of), the group fails, and with it all that wait.
"""

import asyncio
import random
import time
from collections import deque
from contextlib import suppress

import psycopg
import structlog

from app.database import BEATS
from app.errors import Busy
from app.faults import TRANSIENT, UNAVAILABLE, NoAnswer, cause_of
from app.ingest.batch import Batch, Receipt, Source
from app.ingest.counters import WAITING, count
from app.ingest.quarantine.keep import keep_rejected
from app.ingest.store.device_ids import DeviceIds
from app.ingest.store.session import Session
from app.ingest.store.transactions import Pending, rows_of, split

# Groups are so large that a transaction's fixed costs vanish; the batches that wait get decoded meanwhile.
GROUP_READINGS = 20_000
MIN_GROUP_READINGS = 1_000
# 50,000 rejected readings took 2.5 to 4 of the 5 s that a transaction has; 10,000 take 0.3 to 0.8.
KEPT_AT_ONCE = 10_000
TRANSIENT_ATTEMPTS = 6
LOCK_ATTEMPTS = 4

_log = structlog.get_logger()


class Writer:
    """Stores batches while `run()` runs."""

    def __init__(self, url: str, *, queue_max_readings: int, new_devices_per_hour: int | None) -> None:
        self._session = Session(url, errors=TRANSIENT, pause=self._pause, is_live=True)
        self._url = url
        self._queue_max_readings = queue_max_readings
        self._queue: deque[Pending] = deque()
        self._waiting_readings = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._ids = DeviceIds(new_devices_per_hour)
        self._group_readings = GROUP_READINGS
        #: What has kept the database from storing anything since then; None while it stores.
        self.fault: Exception | None = None

    async def store(self, batch: Batch, source: Source) -> Receipt:
        """Stores a batch and returns its receipt, after COMMIT. Raises Busy and the driver's errors.

        The batch is stored even when the caller is cancelled.
        """
        if (beat := BEATS.get(self._url)) and beat.is_frozen:
            raise NoAnswer
        if self._closing or (self._queue and self._waiting_readings + batch.received > self._queue_max_readings):
            raise Busy
        pending = Pending(batch, source)
        # This is done here, not with the group, so that it happens while the database works on the group before.
        with suppress(KeyError):
            pending.rows = rows_of(batch, self._ids)
        self._queue.append(pending)
        self._waiting_readings += batch.received
        WAITING.inc(batch.received)
        self._wake.set()
        return await pending.answered

    async def run(self) -> None:
        """Stores group after group; returns once `close()` was called and nothing is in flight."""
        while self._queue or not self._closing:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            group = self._take_group()
            try:
                await self._store_group(group)
                self._group_readings = min(2 * self._group_readings, GROUP_READINGS)
                if self.fault:
                    _log.warning("store_available")
                self.fault = None
            except Exception as error:  # noqa: BLE001
                # A group that is too large for a slow database would come back as large and fail again.
                self._group_readings = max(self._group_readings // 2, MIN_GROUP_READINGS)
                # Whatever happens to a group, the writer goes on; the group's batches are answered with the error.
                for pending in group:
                    _fail(pending, error)
                if cause_of(error):
                    self.refuse_waiting(error)
                else:
                    self.fault = None
            for pending in group:
                if not pending.answered.done():
                    receipt = pending.receipt()
                    count(receipt, pending.source)
                    pending.answered.set_result(receipt)
        await self._session.close()

    def close(self) -> None:
        """Stops taking batches."""
        self._closing = True
        self._wake.set()

    def refuse_waiting(self, error: Exception) -> None:
        """Answers all batches that wait with the error, which keeps the database from storing anything."""
        if cause_of(error) != cause_of(self.fault):
            _log.warning("store_unavailable", faults=[cause_of(error)], error=str(error))
        self.fault = error
        while self._queue:
            for pending in self._take_group():
                _fail(pending, error)

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
        await self._learn_devices(group)
        transactions = deque(split(group, time.time_ns() // 1000))
        is_due = False
        while transactions:
            transaction = transactions.popleft()
            try:
                stored = await self._session.run(self._session.store, transaction.rows(), transaction.days())
                transaction.credit(stored)
                is_due |= stored.is_due
            except UNAVAILABLE:
                raise
            except psycopg.Error as error:
                if len(transaction.slices) == 1:
                    _fail(transaction.slices[0].pending, error)
                else:
                    singly = [transaction._replace(slices=[one]) for one in transaction.slices]
                    transactions.extendleft(reversed(singly))
        if is_due:
            await self._settle()
        await self._keep_rejected(group)

    async def _pause(self, attempt: int, error: psycopg.Error) -> None:
        """Waits for a random time, so that transactions that lost against each other do not meet again."""
        if isinstance(error, psycopg.errors.LockNotAvailable):
            # It has waited LOCK_MILLISECONDS already. The group goes on waiting, unless the one before did.
            if attempt == LOCK_ATTEMPTS or (attempt == 1 and self.fault):
                raise error
            self.refuse_waiting(error)
        elif attempt == TRANSIENT_ATTEMPTS:
            raise error
        await asyncio.sleep(random.uniform(0, 0.02 * 2**attempt))  # noqa: S311 - hides nothing

    async def _learn_devices(self, group: list[Pending]) -> None:
        if without_rows := [pending for pending in group if not pending.rows]:
            await self._session.run(self._ids.learn, [pending.batch for pending in without_rows])
            for pending in without_rows:
                self._ids.reject_unknown(pending.batch)
                pending.rows = rows_of(pending.batch, self._ids)

    async def _settle(self) -> None:
        try:
            await self._session.run(self._session.settle)
        except UNAVAILABLE:
            raise
        except psycopg.Error as error:
            # The readings are stored, and the next group tries again.
            _log.warning("registers_unsettled", error=str(error))

    async def _keep_rejected(self, group: list[Pending]) -> None:
        for source in Source:
            of_source = [pending for pending in group if pending.source is source]
            concerned = [pending for pending in of_source if pending.batch.rejected or pending.conflicting]
            if concerned:
                readings = [reading for pending in concerned for reading in pending.to_quarantine()]
                for start in range(0, len(readings), KEPT_AT_ONCE):
                    kept = readings[start : start + KEPT_AT_ONCE]
                    committed_at = await self._session.run(keep_rejected, source, kept)
                for pending in concerned:
                    pending.committed_at = committed_at


def _fail(pending: Pending, error: BaseException) -> None:
    if not pending.answered.done():
        pending.answered.set_exception(error)
