"""The memory that all batches take together, each from the first byte of its body until its receipt is made."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import Busy
from app.ingest.batch import Batch

# Measured as resident memory, from the decode to the answer: 50,000 readings take 20 MB, rejected ones up to 95 MB with
# their payloads, and those with two dropped members 80 MB.
READING_BYTES = 500
REJECTED_BYTES = 1_400
DROPPED_BYTES = 600

MEMORY_BYTES = 128 * 1024 * 1024

# Batches above this size leave a quarter of the memory to smaller ones, so that large bodies which stall cannot shut
# out the batches that nearly all senders send.
LARGE_BYTES = 2 * 1024 * 1024


class Memory:
    """The budget. It grows with the number of readings that may wait for the writer."""

    def __init__(self, queue_max_readings: int) -> None:
        self._limit = max(MEMORY_BYTES, queue_max_readings * READING_BYTES * 4 // 3)
        self._taken = 0
        #: Held while a large body is decoded: two at once would need twice the memory, and be no faster.
        self.decoding = asyncio.Lock()

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """Yields the share of one batch, which is given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            share.give_back()

    def resize(self, share: "Share", size: int) -> None:
        """Sets a share's size in bytes. Raises Busy if it grows and there is no room."""
        limit = self._limit if size <= LARGE_BYTES else self._limit * 3 // 4
        if size > share.size and self._taken - share.size + size > limit:
            raise Busy("The bodies of other requests take all the memory that there is for them; send the batch again.")
        self._taken += size - share.size
        share.size = size


class Share:
    """The part of the memory that one batch takes, `size` bytes."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.size = 0

    def take(self, size: int) -> None:
        """Grows to that many bytes, if it is smaller. Raises Busy if there is no room."""
        if size > self.size:
            self._memory.resize(self, size)

    def give_back(self) -> None:
        """Shrinks to nothing."""
        self._memory.resize(self, 0)

    def hold(self, batch: Batch) -> None:
        """Takes what the decoded batch needs, in place of its body. Raises Busy if there is no room."""
        rejected = sum(REJECTED_BYTES + len(reading.payload) for reading in batch.rejected)
        size = READING_BYTES * batch.received + rejected + DROPPED_BYTES * len(batch.warnings)
        self._memory.resize(self, size)
