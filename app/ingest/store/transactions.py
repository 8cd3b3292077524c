"""The split of batches into transactions: a pure function of the batches and the clock."""

import asyncio
from collections import defaultdict
from typing import NamedTuple

from app.ingest.batch import (
    Batch,
    Conflict,
    Receipt,
    RejectedReading,
    Rejection,
    Row,
    Source,
    StreamRows,
    indices_of,
)
from app.ingest.check import MAX_AHEAD_US
from app.ingest.store.conflicts import MOST_KEPT, Differing, to_quarantine
from app.ingest.store.device_ids import DeviceIds
from app.ingest.store.session import Stored
from app.ingest.written import members_of
from app.telemetry.instant import DAY_US, EPOCH_US, HOUR_US, LATE_US, instant
from app.telemetry.reading import Stream


class Pending:
    """A batch in flight, and the outcome of its readings so far."""

    def __init__(self, batch: Batch, source: Source) -> None:
        self.batch = batch
        self.source = source
        self.rows: StreamRows = {}
        self.answered: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self.inserted = self.duplicates = self.late = 0
        self.conflicting: dict[Row, Differing] = {}
        self.committed_at = 0

    def receipt(self) -> Receipt:
        """Returns the receipt; all of the batch's rows must be committed."""
        conflicts = self.conflicts()
        conflicting = [Conflict(index, members_of(conflict.stored)) for index, conflict in conflicts[:MOST_KEPT]]
        rejected = [Rejection(r.index, r.code, r.field, r.message) for r in self.batch.rejected]
        return Receipt(
            self.batch.received,
            self.inserted,
            self.duplicates,
            len(conflicts),
            self.late,
            rejected,
            instant(self.committed_at),
            conflicting=conflicting,
        )

    def to_quarantine(self) -> list[RejectedReading]:
        """Returns the rejected readings, and the first MOST_KEPT conflicts."""
        topics = self.batch.topics
        conflicts = [
            to_quarantine(conflict, index, topics[index] if topics else None)
            for index, conflict in self.conflicts()[:MOST_KEPT]
        ]
        return self.batch.rejected + conflicts

    def conflicts(self) -> list[tuple[int, Differing]]:
        """Returns the conflicts with their indices in the batch, in order."""
        if not self.conflicting:
            return []
        rows = [row for stream in Stream for row in self.rows[stream]]
        indexed = zip(indices_of(self.batch), rows, strict=True)
        return sorted((index, self.conflicting[row]) for index, row in indexed if row in self.conflicting)


class Slice(NamedTuple):
    """The rows of one batch in one transaction."""

    pending: Pending
    rows: StreamRows


class Transaction(NamedTuple):
    """The rows stored at once; `first` and `last` bound their instants."""

    late: bool
    first: int
    last: int
    slices: list[Slice]

    def rows(self) -> StreamRows:
        """Returns the rows of all batches, in the order of the batches, without streams that have no rows."""
        of_all = {stream: [row for one in self.slices for row in one.rows[stream]] for stream in Stream}
        return {stream: rows for stream, rows in of_all.items() if rows}

    def days(self) -> range:
        """Returns the UTC days that the transaction may touch, counted from 2000-01-01."""
        return range(self.first // DAY_US, self.last // DAY_US + 1)

    def credit(self, stored: Stored) -> None:
        """Gives each batch its share of the outcome."""
        for one in self.slices:
            one.pending.committed_at = stored.at
        for stream, outcome in stored.outcomes.items():
            position = 0
            for pending, rows in self.slices:
                span = range(position, position := position + len(rows[stream]))
                inserted = sum(map(outcome.inserted.__contains__, span))
                pending.inserted += inserted
                pending.late += inserted if self.late else 0
                pending.duplicates += len(span) - inserted
                if found := outcome.conflicting:
                    of_batch = rows[stream]
                    pending.conflicting |= {of_batch[n - span.start]: found[n] for n in span if n in found}


def split(group: list[Pending], now_us: int) -> list[Transaction]:
    """Splits a group: one transaction for the readings up to 10 minutes old, then one for each UTC hour of late ones.

    On TimescaleDB, an old and a new row in one transaction invalidate the aggregates over the whole span between them.
    """
    now = now_us - EPOCH_US
    fresh = Transaction(False, now - LATE_US, now + MAX_AHEAD_US, [])
    late: dict[int, dict[Pending, Slice]] = defaultdict(dict)
    for pending in group:
        rows = pending.rows
        young = {stream: [row for row in rows[stream] if row[0] >= fresh.first] for stream in Stream}
        if any(young.values()):
            fresh.slices.append(Slice(pending, young))
        for stream in Stream:
            if len(young[stream]) < len(rows[stream]):
                for row in rows[stream]:
                    if row[0] < fresh.first:
                        empty = Slice(pending, {every: [] for every in Stream})
                        late[row[0] // HOUR_US].setdefault(pending, empty).rows[stream].append(row)
    hours = [
        Transaction(True, hour * HOUR_US, (hour + 1) * HOUR_US - 1, list(slices.values()))
        for hour, slices in sorted(late.items())
    ]
    return [fresh, *hours] if fresh.slices else hours


def rows_of(batch: Batch, ids: DeviceIds) -> StreamRows:
    """Returns the batch's readings in the order of COPY's columns. Raises KeyError for a device without a known id."""
    meter, vehicle = ids.meter, ids.vehicle
    return {
        Stream.METER: [
            (r.ts_us - EPOCH_US, meter[r.meter_id], r.ac_milliwh, r.voltage_centiv, r.register_milliwh)
            for r in batch.meter
        ],
        Stream.VEHICLE: [
            (
                r.ts_us - EPOCH_US,
                vehicle[r.vehicle_id],
                meter[r.meter_id] if r.meter_id else None,
                r.dc_milliwh,
                r.soc_centipercent,
                r.battery_temp_centic,
                r.register_milliwh,
            )
            for r in batch.vehicle
        ],
    }
