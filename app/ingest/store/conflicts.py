"""Conflicts: a reading comes again for the same device and instant with other values. The first values stay."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from app.ingest.batch import RejectedReading, Row
from app.ingest.written import device_of, members_of
from app.telemetry.instant import EPOCH_US
from app.telemetry.reading import MeterReading, Stream, VehicleReading

CODE = "conflict"
"""The reason under which quarantine has such a reading. No receipt has it: the reading counts as a duplicate."""
# To quarantine 50,000 took 2.2 to 3.3 s, for which a group waits; 10,000 take 0.5 to 1.3.
MOST_KEPT = 10_000
"""Quarantine takes the first so many conflicts of a batch."""


class Differing(NamedTuple):
    """A reading as it came, and as it was stored before."""

    sent: MeterReading | VehicleReading
    stored: MeterReading | VehicleReading


def differing(stream: Stream, row: Row, found: Sequence[Any]) -> Differing:
    """Returns the conflict of a row.

    `found` has the device's external id, for a vehicle that of the meter in `row`, and the stored values in the order
    of the reading's fields.
    """
    ts_us = row[0] + EPOCH_US
    if stream is Stream.METER:
        meter_id, *stored = found
        return Differing(MeterReading(meter_id, ts_us, *row[2:]), MeterReading(meter_id, ts_us, *stored))
    vehicle_id, at_meter, *stored = found
    _, _, _, dc_milliwh, *others = row
    return Differing(
        VehicleReading(vehicle_id, ts_us, dc_milliwh, at_meter, *others), VehicleReading(vehicle_id, ts_us, *stored)
    )


def to_quarantine(conflict: Differing, index: int = 0, topic: str | None = None) -> RejectedReading:
    """Returns the reading as it goes to quarantine. Its payload is written anew: the body is gone by now."""
    sent, stored = map(members_of, conflict)
    stream, device = device_of(conflict.sent)
    values = ", ".join(f"{name} {value}" for name, value in stored.items() if name not in (f"{stream}Id", "timestamp"))
    message = f"The reading is stored with other values, which stay: {values}."
    return RejectedReading(index, CODE, None, message, stream, msgspec.json.encode(sent), device, topic)
