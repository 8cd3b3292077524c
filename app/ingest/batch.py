"""The types that all ways in share: a batch, its rejected readings, and the receipt that answers it."""

from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from app.telemetry.device_id import ID_RULE, is_id
from app.telemetry.reading import MeterReading, Stream, VehicleReading

# Quarantine stores this much of a rejected reading, which may be as large as the whole body.
PAYLOAD_LIMIT_BYTES = 64 * 1024

REJECTIONS = {
    "malformed": "The reading is not an object, or the field has a wrong type or format.",
    "ambiguous": "Two members stand for the field: name it by its own name.",
    "missing_field": "The field is required.",
    "no_device_in_topic": "Neither the reading nor its topic names a device: write {id} in WATTLINE_MQTT_METER_TOPIC "
    "or WATTLINE_MQTT_VEHICLE_TOPIC for the level that does.",
    "invalid_id": ID_RULE,
    "timestamp_without_zone": "The timestamp names no time zone.",
    "in_the_future": "The timestamp lies more than 5 minutes ahead.",
    "too_old": "The timestamp lies more than 7 days back.",
    "both_energy_forms": "A reading has either the energy since the previous reading or a register, not both.",
    "energy_out_of_range": "Energy must lie between 0 and 1000 kWh.",
    "register_out_of_range": "A register must lie between 0 and 1,000,000,000 kWh.",
    "too_many_new_devices": "The device is new, and too many new devices were registered within the hour.",
}
"""The reasons for a rejection: code and public sentence, in the order of the checks; the first that applies counts.

The last is found only when the reading is stored.
"""

WARNINGS = {
    "malformed": "The field has a wrong type or format.",
    "ambiguous": REJECTIONS["ambiguous"],
    "voltage_out_of_range": "Voltage must lie between 0 and 1000 V.",
    "soc_out_of_range": "The state of charge must lie between 0 and 100 percent.",
    "battery_temp_out_of_range": "The battery temperature must lie between -60 and 150 °C.",
}
"""The reasons for dropping an optional member and storing the reading without it."""


class Source(StrEnum):
    """The way in that a reading took."""

    HTTP = "http"
    MQTT = "mqtt"
    IMPORT = "import"


class RejectedReading(msgspec.Struct):
    """A rejected reading, as it goes to quarantine.

    `index` is its position in the batch, `code` and `message` come from `REJECTIONS`, `field` is the JSON name.
    `stream` is None when it is not known, and so is `device`, the name that the reading gives; `payload` holds the
    reading's own bytes as received, cut at PAYLOAD_LIMIT_BYTES. `topic` is the MQTT topic, which may name the device.
    """

    index: int
    code: str
    field: str | None
    message: str
    stream: Stream | None
    payload: bytes
    device: str | None = None
    topic: str | None = None


def reject(
    index: int, code: str, field: str | None, stream: Stream | None, device: str | None = None
) -> RejectedReading:
    """Returns a rejected reading without its payload, which only the decoder has; drops a `device` that is no id."""
    named = device if device and is_id(device) else None
    return RejectedReading(index, code, field, REJECTIONS[code], stream, b"", named)


class Dropped(msgspec.Struct, frozen=True):
    """An optional member that was dropped: the reading's position in the batch, the field, and the reason.

    `code` and `message` come from `WARNINGS`.
    """

    index: int
    code: str
    field: str
    message: str


class Batch(msgspec.Struct):
    """The readings of one body; `received` counts all of them. `rejected` and `warnings` are in order of index.

    With readings of both streams, `of_vehicle` has a 1 at the index of each vehicle reading. `topics` holds the MQTT
    topics by index.
    """

    received: int
    meter: list[MeterReading]
    vehicle: list[VehicleReading]
    rejected: list[RejectedReading]
    of_vehicle: bytes = b""
    topics: list[str] = []
    warnings: list[Dropped] = []


def indices_of(batch: Batch) -> list[int]:
    """Returns the index of each reading that is not rejected: those of meters, then those of vehicles."""
    indices = sorted(set(range(batch.received)) - {reading.index for reading in batch.rejected})
    if batch.of_vehicle:
        indices.sort(key=batch.of_vehicle.__getitem__)
    return indices


def warnings_of(batch: Batch) -> list[Dropped]:
    """Returns the warnings about readings that were stored; of a stored batch, more may have been rejected since."""
    rejected = {reading.index for reading in batch.rejected}
    return [dropped for dropped in batch.warnings if dropped.index not in rejected]


Row = tuple[Any, ...]
"""A reading in the order of its COPY's columns, as the store has it: `ts` first, the device's id second."""

StreamRows = dict[Stream, list[Row]]


class Rejection(msgspec.Struct, frozen=True):
    """The reason for a rejection: its position in the batch, a stable code, the field at fault, a sentence."""

    index: int
    code: str
    field: str | None
    message: str


class Conflict(msgspec.Struct, frozen=True):
    """A duplicate whose values differ: its position in the batch, and the stored reading with its members."""

    index: int
    stored: dict[str, Any]


class Receipt(msgspec.Struct, frozen=True, rename="camel"):
    """The outcome of a batch; received = inserted + duplicates + rejected.

    `conflicts` counts duplicates whose values differ from the stored ones, and `conflicting` names those that go to
    quarantine; an answer over HTTP has the first 100. `late` counts the inserted readings that are more than 10 minutes
    old. `committed_at` is the database's clock at the end of the last transaction. `warnings` names the optional
    members that were dropped; their readings are stored.
    """

    received: int
    inserted: int
    duplicates: int
    conflicts: int
    late: int
    rejected: list[Rejection]
    committed_at: datetime
    warnings: list[Dropped] = []
    conflicting: list[Conflict] = []
