"""The checks of a reading: from what a client wrote to the units of the store, or to a refusal with its code."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache

import msgspec

from app.telemetry.reading import MeterReading, Stream, VehicleReading

# What quarantine keeps of a reading: a refused one may be as large as the whole body.
PAYLOAD_LIMIT_BYTES = 64 * 1024
MAX_ID_CHARACTERS = 64
MAX_AHEAD_US = 5 * 60 * 1_000_000
MAX_AGE_US = 7 * 24 * 3600 * 1_000_000

REJECTIONS = {
    "malformed": "The reading is not an object, or the field has a wrong type or format.",
    "missing_field": "The field is required.",
    "invalid_id": "An id is 1 to 64 of the characters A-Z, a-z, 0-9, '.', '_', ':' and '-'.",
    "timestamp_without_zone": "The timestamp names no time zone.",
    "in_the_future": "The timestamp lies more than 5 minutes ahead.",
    "too_old": "The timestamp lies more than 7 days back.",
    "energy_out_of_range": "Energy must lie between 0 and 1000 kWh.",
    "voltage_out_of_range": "Voltage must lie between 0 and 1000 V.",
    "soc_out_of_range": "The state of charge must lie between 0 and 100 percent.",
    "battery_temp_out_of_range": "The battery temperature must lie between -60 and 150 °C.",
    "too_many_new_devices": "The device is new, and too many new devices were registered within the hour.",
}
"""Why a reading is refused: code and public sentence, in the order of the checks; the first that fails counts.

The last is found only when the reading is stored.
"""


class Rejected(msgspec.Struct):
    """A reading that was refused.

    `index` is its position in the batch, `code` and `message` come from `REJECTIONS`, `field` is the JSON name.
    `stream` is None when it cannot be told, and so is `device`, the name that the reading gives; `payload` holds the
    reading's own bytes as received, cut at PAYLOAD_LIMIT_BYTES. `topic` is that of MQTT, which may name the device.
    """

    index: int
    code: str
    field: str | None
    message: str
    stream: Stream | None
    payload: bytes
    device: str | None = None
    topic: str | None = None


class Batch(msgspec.Struct):
    """The readings of one body; `received` counts all of them, `rejected` is in order of index.

    Where it has readings of both streams, `of_vehicle` has a 1 at the index of each vehicle reading.
    """

    received: int
    meter: list[MeterReading]
    vehicle: list[VehicleReading]
    rejected: list[Rejected]
    of_vehicle: bytes = b""


class Wire(msgspec.Struct, rename="camel", gc=False):
    """A reading of either stream as clients write it: kWh, volt, percent, degrees Celsius."""

    # Without a default for the timestamp, `[{},{},…` fails at its first element instead of filling the memory.
    timestamp: datetime | None
    vehicle_id: str | None = None
    meter_id: str | None = None
    kwh_consumed_ac: float | None = None
    kwh_delivered_dc: float | None = None
    voltage: float | None = None
    soc: float | None = None
    battery_temp: float | None = None


_ID = re.compile(r"[A-Za-z0-9._:-]+")


class _Refused(Exception):
    def __init__(self, code: str, field: str) -> None:
        self.code = code
        self.field = field


def rejected(index: int, code: str, field: str | None, stream: Stream | None, device: str | None = None) -> Rejected:
    """A refusal without the payload, which only the decoder has. A `device` that is no id is left out."""
    return Rejected(index, code, field, REJECTIONS[code], stream, b"", device if device and _is_id(device) else None)


def check_each(wires: Sequence[Wire | Rejected], now_us: int, stream: Stream | None, *, oldest_us: int) -> Batch:
    """The readings that pass, and those refused now or before.

    Against the clock `now_us`, as in `decode_batch`; what is older than `oldest_us` is `too_old`.
    """
    batch = Batch(len(wires), [], [], [])
    newest_us = now_us + MAX_AHEAD_US
    for index, wire in enumerate(wires):
        if isinstance(wire, Rejected):
            batch.rejected.append(wire)
            continue
        of = stream or (Stream.METER if wire.vehicle_id is None else Stream.VEHICLE)
        try:
            if of is Stream.METER:
                batch.meter.append(_meter_reading(wire, oldest_us, newest_us))
            else:
                batch.vehicle.append(_vehicle_reading(wire, oldest_us, newest_us))
        except _Refused as refused:
            device = wire.meter_id if of is Stream.METER else wire.vehicle_id
            batch.rejected.append(rejected(index, refused.code, refused.field, of, device))
    if batch.meter and batch.vehicle:
        batch.of_vehicle = bytes(isinstance(wire, Wire) and wire.vehicle_id is not None for wire in wires)
    return batch


def _meter_reading(wire: Wire, oldest_us: int, newest_us: int) -> MeterReading:
    return MeterReading(
        _checked_id(wire.meter_id, "meterId"),
        _microseconds(wire.timestamp, oldest_us, newest_us),
        _scaled(_required(wire.kwh_consumed_ac, "kwhConsumedAc"), _AC),
        None if wire.voltage is None else _scaled(wire.voltage, _VOLTAGE),
    )


def _vehicle_reading(wire: Wire, oldest_us: int, newest_us: int) -> VehicleReading:
    return VehicleReading(
        vehicle_id=_checked_id(wire.vehicle_id, "vehicleId"),
        meter_id=None if wire.meter_id is None else _checked_id(wire.meter_id, "meterId"),
        ts_us=_microseconds(wire.timestamp, oldest_us, newest_us),
        dc_milliwh=_scaled(_required(wire.kwh_delivered_dc, "kwhDeliveredDc"), _DC),
        soc_centipercent=None if wire.soc is None else _scaled(wire.soc, _SOC),
        battery_temp_centic=None if wire.battery_temp is None else _scaled(wire.battery_temp, _BATTERY_TEMP),
    )


# Ids come again with each reading. The cache is bounded, and so is what enters it: MAX_ID_CHARACTERS.
@lru_cache(maxsize=32_768)
def _is_id(value: str) -> bool:
    return _ID.fullmatch(value) is not None


def _checked_id(value: str | None, field: str) -> str:
    if value is None:
        raise _Refused("missing_field", field)
    if len(value) > MAX_ID_CHARACTERS or not _is_id(value):
        raise _Refused("invalid_id", field)
    return value


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _microseconds(timestamp: datetime | None, oldest_us: int, newest_us: int) -> int:
    if timestamp is None:
        raise _Refused("missing_field", "timestamp")
    if timestamp.tzinfo is None:
        raise _Refused("timestamp_without_zone", "timestamp")
    since = timestamp - _EPOCH
    ts_us = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if ts_us > newest_us:
        raise _Refused("in_the_future", "timestamp")
    if ts_us < oldest_us:
        raise _Refused("too_old", "timestamp")
    return ts_us


class _Quantity(msgspec.Struct, frozen=True):
    field: str
    code: str
    low: float
    high: float
    factor: int


_AC = _Quantity("kwhConsumedAc", "energy_out_of_range", 0, 1000, 1_000_000)
_DC = _Quantity("kwhDeliveredDc", "energy_out_of_range", 0, 1000, 1_000_000)
_VOLTAGE = _Quantity("voltage", "voltage_out_of_range", 0, 1000, 100)
_SOC = _Quantity("soc", "soc_out_of_range", 0, 100, 100)
_BATTERY_TEMP = _Quantity("batteryTemp", "battery_temp_out_of_range", -60, 150, 100)


def _required(value: float | None, field: str) -> float:
    if value is None:
        raise _Refused("missing_field", field)
    return value


def _scaled(value: float, quantity: _Quantity) -> int:
    product = value * quantity.factor
    if not quantity.low <= value <= quantity.high:
        raise _Refused(quantity.code, quantity.field)
    nearest = round(product)
    if -0.499999 < product - nearest < 0.499999:
        return nearest
    # The product errs by less than 3e-7, so only here can it fall on the wrong side of the half. The double's
    # shortest decimal is what the client wrote, up to 15 digits.
    return round(Decimal(repr(value)) * quantity.factor)
