"""MQTT: messages -> decode_message -> store -> acknowledgement, which goes out only after COMMIT.

While a group is stored, the next messages gather, so that single readings become large transactions too. The broker
sends again what is not acknowledged, to this consumer or the next of its name; stored twice, it counts as a duplicate.
"""

import asyncio
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from itertools import accumulate

import psycopg
import structlog
from msgspec.structs import replace

from app.broker import Message, Session, shown_address
from app.errors import BodyTooLarge, Busy, InternalError, ServiceError, UnsupportedMediaType
from app.ingest import counters
from app.ingest.batch import PAYLOAD_LIMIT_BYTES, Batch, Receipt, RejectedReading, Source, warnings_of
from app.ingest.decode import MediaType, decode_batch
from app.ingest.http.body import MAX_BODY_BYTES
from app.ingest.store.writer import GROUP_READINGS, Writer
from app.ingest.topics import LONGEST_TOPIC, Topics, reject_unnamed
from app.loops import backoff_seconds
from app.settings import Settings
from app.telemetry.device_id import is_id
from app.telemetry.reading import Stream

# Undecoded messages may take this much; then the broker waits. Single readings reach the receive maximum first.
INBOX_BYTES = 64 * 1024 * 1024
# A message takes this much besides its payload and topic.
MESSAGE_BYTES = 500
# Decoding 64 KiB takes a millisecond, or 60 if the bytes are hostile.
LARGE_MESSAGE_BYTES = 64 * 1024
# For this long, nothing else runs in the event loop.
TURN_SECONDS = 0.005
# Acknowledging this many takes about as long.
MESSAGES_AT_ONCE = 250
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0

# These errors pass without a change to the message; all others, and OF_DATA among them, are due to its data.
PASSING = (Busy, psycopg.Error)
OF_DATA = (psycopg.DataError, psycopg.IntegrityError)

_log = structlog.get_logger()


class Consumer:
    """Takes readings from the broker while `run()` runs, and hands them to the writer."""

    def __init__(self, settings: Settings, writer: Writer) -> None:
        self._writer = writer
        self._topics = Topics(settings)
        share = f"$share/{settings.mqtt_share_group}/" if settings.mqtt_share_group else ""
        self._session = Session(settings, [share + pattern for pattern in self._topics.filters], self._arrived)
        self._inbox: deque[Message] = deque()
        self._inbox_bytes = 0
        self._group_readings = GROUP_READINGS
        self._pauses = 0
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        broker = shown_address(settings)
        counters.MQTT_CONNECTED.labels(broker).set_function(lambda: self._session.subscribed)
        counters.MQTT_STORE_WAITS.labels(broker).set_function(lambda: self._pauses > 0)
        self._stored = counters.MQTT_MESSAGES.labels(broker)
        self._quarantined = counters.MQTT_QUARANTINED.labels(broker)

    async def run(self) -> None:
        """Runs until `close()`; a group in the store is then stored and acknowledged, the rest stays at the broker."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._session.run())
            while not self._closing.is_set():
                if self._inbox:
                    await self._store(await self._take_group())
                else:
                    self._wake.clear()
                    await self._wake.wait()
            self._session.close()

    def close(self) -> None:
        """Stops taking messages."""
        self._closing.set()
        self._wake.set()

    def _arrived(self, message: Message) -> None:
        self._inbox.append(message)
        self._inbox_bytes += _size(message)
        if self._inbox_bytes > INBOX_BYTES:
            self._session.hold_back()
        self._wake.set()

    async def _take_group(self) -> list[tuple[Message, Batch]]:
        """Decodes the messages that have arrived, up to what the writer stores in one transaction."""
        group: list[tuple[Message, Batch]] = []
        readings = 0
        turn_ends = time.monotonic() + TURN_SECONDS
        while self._inbox and readings < self._group_readings:
            message = self._inbox.popleft()
            self._inbox_bytes -= _size(message)
            if len(message.payload) > LARGE_MESSAGE_BYTES:
                batch = await asyncio.to_thread(decode_message, message, self._topics)
            else:
                batch = decode_message(message, self._topics)
            group.append((message, batch))
            readings += batch.received
            if time.monotonic() > turn_ends:
                await asyncio.sleep(0)
                turn_ends = time.monotonic() + TURN_SECONDS
        if self._inbox_bytes <= INBOX_BYTES:
            self._session.go_on()
        return group

    async def _store(self, group: list[tuple[Message, Batch]]) -> None:
        """Stores and acknowledges, however long the database is away, unless the consumer is closed first.

        A group that fails is stored in halves: it is too much for a slow database, or one message fails on its data.
        That message then fails no other and does not come back for ever.
        """
        while not self._closing.is_set():
            batch = merged(group)
            try:
                receipt = await self._writer.store(batch, Source.MQTT)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with a message, the consumer outlives it
                passes = isinstance(error, PASSING) and not isinstance(error, OF_DATA)
                if passes or len(group) == 1:
                    await self._pause(error)
                if len(group) > 1:
                    self._group_readings = max(self._group_readings // 2, 1)
                    await self._store(group[: len(group) // 2])
                    await self._store(group[len(group) // 2 :])
                    return
                if not passes:
                    ((message, _),) = group
                    _log.error("mqtt_message_failed", topic=message.topic, exc_info=error)
                    group = [(message, rejected_message(message, InternalError(), None, None, limit=None))]
            else:
                self._pauses = 0
                self._group_readings = min(2 * self._group_readings, GROUP_READINGS)
                self._count(group, receipt)
                counters.count_warnings(warnings_of(batch))
                for start in range(0, len(group), MESSAGES_AT_ONCE):
                    self._session.acknowledge(message for message, _ in group[start : start + MESSAGES_AT_ONCE])
                    await asyncio.sleep(0)
                return

    def _count(self, group: list[tuple[Message, Batch]], receipt: Receipt) -> None:
        ends = list(accumulate(batch.received for _, batch in group))
        self._stored.inc(len(group))
        indices = [reading.index for reading in receipt.rejected] + [reading.index for reading in receipt.conflicting]
        self._quarantined.inc(len({bisect_right(ends, index) for index in indices}))

    async def _pause(self, error: Exception) -> None:
        seconds = backoff_seconds(self._pauses, first=FIRST_PAUSE_SECONDS, longest=LONGEST_PAUSE_SECONDS)
        _log.warning("mqtt_store_waits", reason=str(error), retry_seconds=seconds)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)
        self._pauses += 1


def _named(device_id: str | None) -> str | None:
    return device_id if device_id and is_id(device_id) else None


def _size(message: Message) -> int:
    return len(message.payload) + len(message.topic) + MESSAGE_BYTES


def decode_message(message: Message, topics: Topics) -> Batch:
    """Decodes a message in any form that HTTP takes; an unreadable payload becomes one rejected reading."""
    stream, device_id = topics.of(message.topic)
    try:
        if len(message.payload) > MAX_BODY_BYTES:
            raise BodyTooLarge
        batch = decode_batch(
            message.payload, _media_type(message), now_us=time.time_ns() // 1000, stream=stream, device_id=device_id
        )
    except ServiceError as error:
        return rejected_message(message, error, stream, device_id)
    if stream is not None and device_id is None:
        reject_unnamed(batch, stream)
    for reading in batch.rejected:
        reading.device = reading.device or _named(device_id)
        reading.topic = message.topic[:LONGEST_TOPIC]
    return batch


def _media_type(message: Message) -> MediaType:
    """Returns the type that the publisher names; without one, a first byte that begins no text means MessagePack."""
    if message.content_type is None:
        return MediaType.MSGPACK if message.payload[:1] >= b"\x80" else MediaType.JSON
    given = message.content_type.partition(";")[0].strip().lower()
    try:
        return MediaType(given)
    except ValueError:
        raise UnsupportedMediaType(f"The content type must be one of {', '.join(MediaType)}.") from None


def rejected_message(
    message: Message,
    error: ServiceError,
    stream: Stream | None,
    device_id: str | None,
    *,
    limit: int | None = PAYLOAD_LIMIT_BYTES,
) -> Batch:
    """Returns a batch with one rejected reading: the message itself, cut at the limit."""
    device, topic = _named(device_id), message.topic[:LONGEST_TOPIC]
    reading = RejectedReading(0, error.code, None, error.detail, stream, message.payload[:limit], device, topic)
    return Batch(1, [], [], [reading])


def merged(group: Iterable[tuple[Message, Batch]]) -> Batch:
    """Merges the batches into one, with all readings in their order and with their indices in it."""
    whole = Batch(0, [], [], [])
    for message, batch in group:
        whole.topics += [message.topic[:LONGEST_TOPIC]] * batch.received
        whole.rejected += [replace(reading, index=whole.received + reading.index) for reading in batch.rejected]
        whole.warnings += [replace(dropped, index=whole.received + dropped.index) for dropped in batch.warnings]
        whole.received += batch.received
        whole.of_vehicle += batch.of_vehicle or bytes([bool(batch.vehicle)]) * batch.received
        whole.meter += batch.meter
        whole.vehicle += batch.vehicle
    return whole
