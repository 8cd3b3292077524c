"""Rejected readings driven again: decode_batch -> store -> refresh of old days -> removal from the quarantine.

A row stays if the process is killed in between; driving it again finds duplicates and refreshes their days.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta

import msgspec
import psycopg

from app.errors import ServiceError
from app.ingest.batch import REJECTIONS, Batch, Source, reject
from app.ingest.check import MAX_AGE_US
from app.ingest.decode import MediaType, decode_batch
from app.ingest.quarantine.rows import Filter, QuarantinedReading, fetch_after, settle
from app.ingest.store import conflicts
from app.ingest.store.writer import Writer
from app.ingest.topics import LONGEST_TOPIC, Topics, reject_unnamed
from app.telemetry.instant import DAY_US, EPOCH, EPOCH_US, instant
from app.telemetry.reading import Stream

# At 64 KiB each, they take 32 MB of memory at most.
PAGE_ROWS = 500


class Redriven(msgspec.Struct):
    """The outcome so far."""

    rows: int = 0
    stored: int = 0
    duplicates: int = 0
    rejected: Counter[str] = msgspec.field(default_factory=Counter)


async def redrive(
    connection: psycopg.AsyncConnection,
    url: str,
    matching: Filter,
    *,
    oldest: datetime,
    topics: Topics,
    refresh_day: Callable[[datetime], None],
) -> AsyncIterator[Redriven]:
    """Drives the rows again, page by page in the order of their ids; yields the counts after each page.

    A reading is judged by today's rules and by the clock of its first arrival: one that was too old or in the future
    then stays so, and one that was young enough is not too old now, unless it is older than `oldest`. A reading over
    MQTT whose device was not known is the device's that its topic names by `topics`. New devices are registered without
    a limit. `refresh_day`, called in a thread, refreshes a UTC day that the policies would not.
    """
    writer = Writer(url, queue_max_readings=1, new_devices_per_hour=None)
    running = asyncio.create_task(writer.run())
    done = Redriven()
    last_id = 0
    try:
        while page := await fetch_after(connection, matching, last_id, limit=PAGE_ROWS):
            last_id = page[-1].id
            judged = [decode_again(reading, oldest, topics) for reading in page]
            for source in Source:
                batches = [
                    outcome
                    for reading, outcome in zip(page, judged, strict=True)
                    if isinstance(outcome, Batch) and reading.source == source
                ]
                await _store(writer, batches, source, refresh_day, done)
            stored = [reading.id for reading, outcome in zip(page, judged, strict=True) if isinstance(outcome, Batch)]
            rejected = [outcome for outcome in judged if isinstance(outcome, QuarantinedReading)]
            await settle(connection, stored, rejected)
            done.rows += len(page)
            done.rejected.update(reading.code for reading in rejected)
            yield done
    finally:
        writer.close()
        await running


async def _store(
    writer: Writer, batches: list[Batch], source: Source, refresh_day: Callable[[datetime], None], done: Redriven
) -> None:
    if not batches:
        return
    meter = [reading for batch in batches for reading in batch.meter]
    vehicle = [reading for batch in batches for reading in batch.vehicle]
    receipt = await writer.store(Batch(len(meter) + len(vehicle), meter, vehicle, []), source)
    for day in sorted(_days_without_refresh([r.ts_us for r in meter] + [r.ts_us for r in vehicle])):
        await asyncio.to_thread(refresh_day, day)
    done.stored += receipt.inserted
    done.duplicates += receipt.duplicates


def decode_again(reading: QuarantinedReading, oldest: datetime, topics: Topics) -> Batch | QuarantinedReading:
    """Returns the batch that the row's payload makes, or the row with the reason for its rejection now.

    A conflict stays one: what is stored has not changed.
    """
    if reading.code == conflicts.CODE:
        return reading
    first = reading.payload.lstrip()[:1]
    is_array = first == b"[" or first in _MSGPACK_ARRAYS
    if is_array and reading.source != Source.MQTT:
        # The rejected reading was an array. From MQTT, quarantine has the whole payload, which may be a batch.
        return reading
    stream, device_id = Stream(reading.stream) if reading.stream else None, reading.device
    if device_id is None and reading.topic and len(reading.topic) < LONGEST_TOPIC:
        of_topic, named = topics.of(reading.topic)
        if stream in (None, of_topic):
            stream, device_id = of_topic, named
    now_us = (reading.first_at - EPOCH) // timedelta(microseconds=1) + EPOCH_US
    try:
        batch = decode_batch(
            reading.payload,
            MediaType.MSGPACK if first >= b"\x80" else MediaType.JSON,
            now_us=now_us,
            stream=stream,
            device_id=device_id,
            # History may be as old as `oldest`, and so may what a broker has held while no consumer was connected.
            max_age_us=MAX_AGE_US if reading.source == Source.HTTP else now_us,
        )
    except ServiceError:
        return reading
    if reading.source == Source.MQTT and stream is not None and device_id is None:
        reject_unnamed(batch, stream)
    instants = [one.ts_us for one in batch.meter] + [one.ts_us for one in batch.vehicle]
    if instants and min(instants) < oldest.timestamp() * 1_000_000:
        batch.rejected.append(reject(0, "too_old", "timestamp", None))
    if not batch.rejected:
        return batch
    reason = batch.rejected[0]
    if (reason.code, reason.field) == (reading.code, reading.field):
        return reading
    return msgspec.structs.replace(reading, code=reason.code, field=reason.field, message=REJECTIONS[reason.code])


_MSGPACK_ARRAYS = {bytes([head]) for head in (*range(0x90, 0xA0), 0xDC, 0xDD)}


def _days_without_refresh(instants: list[int]) -> set[datetime]:
    """Returns the UTC days of readings older than live ones may be, which the refresh policies do not reach."""
    oldest_us = time.time_ns() // 1000 - MAX_AGE_US
    return {instant((ts_us - EPOCH_US) // DAY_US * DAY_US) for ts_us in instants if ts_us < oldest_us}
