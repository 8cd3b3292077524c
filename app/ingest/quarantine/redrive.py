"""Rejected readings driven again: decode_batch -> store -> old days refreshed -> out of the quarantine.

Killed in between, a row stays; driving it again finds its readings to be duplicates, and refreshes their days.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg

from app.errors import ServiceError
from app.ingest.batch import REJECTIONS, Batch, Source, reject
from app.ingest.check import MAX_AGE_US
from app.ingest.decode import MediaType, decode_batch
from app.ingest.quarantine.rows import Kept, Wanted, fetch_after, settle
from app.ingest.store.writer import Writer
from app.telemetry.reading import Stream

# At 64 KiB each, 32 MB at most are in memory.
PAGE_ROWS = 500
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_US = 24 * 3600 * 1_000_000
# Refresh policies see to what is younger (check.MAX_AGE_US).
REFRESHED_DAYS = 7


class Redriven(msgspec.Struct):
    """What became of the rows so far."""

    rows: int = 0
    stored: int = 0
    duplicates: int = 0
    rejected: Counter[str] = msgspec.field(default_factory=Counter)


async def redrive(
    connection: psycopg.AsyncConnection,
    url: str,
    wanted: Wanted,
    *,
    oldest: datetime,
    refresh_day: Callable[[datetime], None],
) -> AsyncIterator[Redriven]:
    """Drives the rows again, page by page in the order of their ids; yields the counts after each page.

    A reading is judged by today's rules and by the clock of its first arrival: what was too old or in the future then
    stays so, and what was young enough then is not too old now, unless it is older than `oldest`. New devices are
    registered without a limit. `refresh_day`, called in a thread, refreshes a UTC day that the policies would not.
    """
    writer = Writer(url, queue_max_readings=1, new_devices_per_hour=None)
    running = asyncio.create_task(writer.run())
    done = Redriven()
    last_id = 0
    try:
        while page := await fetch_after(connection, wanted, last_id, limit=PAGE_ROWS):
            last_id = page[-1].id
            judged = [decode_again(kept, oldest) for kept in page]
            await _store(writer, [batch for batch in judged if isinstance(batch, Batch)], refresh_day, done)
            stored = [kept.id for kept, outcome in zip(page, judged, strict=True) if isinstance(outcome, Batch)]
            refused = [kept for kept in judged if isinstance(kept, Kept)]
            await settle(connection, stored, refused)
            done.rows += len(page)
            done.rejected.update(kept.code for kept in refused)
            yield done
    finally:
        writer.close()
        await running


async def _store(writer: Writer, batches: list[Batch], refresh_day: Callable[[datetime], None], done: Redriven) -> None:
    if not batches:
        return
    meter = [reading for batch in batches for reading in batch.meter]
    vehicle = [reading for batch in batches for reading in batch.vehicle]
    receipt = await writer.store(Batch(len(meter) + len(vehicle), meter, vehicle, []), Source.HTTP)
    for day in sorted(_days_without_refresh([r.ts_us for r in meter] + [r.ts_us for r in vehicle])):
        await asyncio.to_thread(refresh_day, day)
    done.stored += receipt.inserted
    done.duplicates += receipt.duplicates


def decode_again(kept: Kept, oldest: datetime) -> Batch | Kept:
    """Its readings, or the row with the reason for which it is refused now."""
    first = kept.payload.lstrip()[:1]
    is_array = first == b"[" or first in _MSGPACK_ARRAYS
    if is_array and kept.source != Source.MQTT:
        # A reading that was an array. Over MQTT the whole payload is kept, which may be a batch.
        return kept
    now_us = (kept.first_at - EPOCH) // timedelta(microseconds=1)
    try:
        batch = decode_batch(
            kept.payload,
            MediaType.MSGPACK if first >= b"\x80" else MediaType.JSON,
            now_us=now_us,
            stream=Stream(kept.stream) if kept.stream else None,
            device_id=kept.device,
            # History may be as old as `oldest`, and so may what a broker has kept while no consumer was connected.
            max_age_us=MAX_AGE_US if kept.source == Source.HTTP else now_us,
        )
    except ServiceError:
        return kept
    instants = [reading.ts_us for reading in batch.meter] + [reading.ts_us for reading in batch.vehicle]
    if instants and min(instants) < oldest.timestamp() * 1_000_000:
        batch.rejected.append(reject(0, "too_old", "timestamp", None))
    if not batch.rejected:
        return batch
    reason = batch.rejected[0]
    if (reason.code, reason.field) == (kept.code, kept.field):
        return kept
    return msgspec.structs.replace(kept, code=reason.code, field=reason.field, message=REJECTIONS[reason.code])


_MSGPACK_ARRAYS = {bytes([head]) for head in (*range(0x90, 0xA0), 0xDC, 0xDD)}


def _days_without_refresh(instants: list[int]) -> set[datetime]:
    limit = (datetime.now(UTC) - timedelta(days=REFRESHED_DAYS) - EPOCH) // timedelta(microseconds=1)
    return {EPOCH + timedelta(days=ts_us // DAY_US) for ts_us in instants if ts_us < limit}
