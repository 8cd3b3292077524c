"""The sending of a load test's batches on several connections, with counts of the answers."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime

from app.load.latency import Latencies
from app.load.service import CONNECTIONS, Outcome
from app.load.source import Batch, device_of
from app.simulator.devices import Reading

_PATIENCE_S = 60
_GRACE_S = 10
# A repeated reading comes at most five minutes after the first: among the last 200,000, at up to 600 readings/s.
_REMEMBERED_READINGS = 200_000


class Tally:
    """Counts of the readings sent: sent = acknowledged + rejected + unanswered.

    `of_device` counts the distinct readings that were acknowledged, which the service must have.
    """

    def __init__(self) -> None:
        self.sent = self.acknowledged = self.inserted = self.duplicates = 0
        self.rejected: Counter[str] = Counter()
        self.of_device: Counter[str] = Counter()
        self.committed_at: datetime | None = None
        self.latencies = Latencies()
        self._recent: set[tuple[str, str]] = set()
        self._before: set[tuple[str, str]] = set()

    @property
    def unanswered(self) -> int:
        return self.sent - self.acknowledged - self.rejected.total()

    def answered(self, readings: list[Reading], outcome: Outcome, latency_s: float) -> None:
        self.latencies.add(latency_s)
        self.rejected.update(outcome.rejected.values())
        self.acknowledged += len(readings) - len(outcome.rejected)
        self.inserted += outcome.inserted or 0
        self.duplicates += outcome.duplicates or 0
        if outcome.committed_at is not None:
            self.committed_at = max(outcome.committed_at, self.committed_at or outcome.committed_at)
        accepted = (reading for number, reading in enumerate(readings) if number not in outcome.rejected)
        new = {(device_of(reading), reading["timestamp"]) for reading in accepted} - self._recent - self._before
        self.of_device.update(device for device, _ in new)
        self._recent |= new
        if len(self._recent) > _REMEMBERED_READINGS:
            self._recent, self._before = set(), self._recent


class Run:
    """Sends batches when they are due, until there are no more, it is stopped, or one stays unanswered for a minute.

    A batch's latency counts from when it was due, even while all connections wait for an answer: a slow service shows
    as latency, never as a lower rate.
    """

    def __init__(
        self, send: Callable[[list[Reading]], Awaitable[Outcome]], tally: Tally, *, connections: int = CONNECTIONS
    ) -> None:
        self.stopped = asyncio.Event()
        self._send = send
        self._tally = tally
        self._connections = connections

    async def send_all(self, batches: Iterator[Batch]) -> None:
        """Sends the batches. Batches under way when it is stopped get ten more seconds."""
        self._start_s = time.monotonic()
        try:
            async with asyncio.timeout(None) as self._limit, asyncio.TaskGroup() as group:
                for _ in range(self._connections):
                    group.create_task(self._work(batches))
        except TimeoutError:
            pass

    def stop(self) -> None:
        """Stops sending batches; after a second call, batches under way are not awaited either."""
        grace_s = 0 if self.stopped.is_set() else _GRACE_S
        self._limit.reschedule(asyncio.get_running_loop().time() + grace_s)
        self.stopped.set()

    async def _work(self, batches: Iterator[Batch]) -> None:
        for batch in batches:
            due_s = time.monotonic() if batch.due_s is None else self._start_s + batch.due_s
            if await self._stopped_before(due_s):
                return
            self._tally.sent += len(batch.readings)
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    outcome = await self._send(batch.readings)
            except TimeoutError:
                if not self.stopped.is_set():
                    self.stop()
                return
            self._tally.answered(batch.readings, outcome, time.monotonic() - due_s)

    async def _stopped_before(self, due_s: float) -> bool:
        if due_s <= time.monotonic():
            return self.stopped.is_set()
        try:
            async with asyncio.timeout(due_s - time.monotonic()):
                return await self.stopped.wait()
        except TimeoutError:
            return False
