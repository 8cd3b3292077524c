"""Bytes to readings: one typed decode of the whole body, then the checks.

Only a body that the typed decode refuses is taken apart, so that one bad reading never blocks its neighbours.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from math import inf
from typing import Any

import msgspec
from msgspec import Raw

from app.errors import BatchTooLarge, EmptyBatch, MalformedBody
from app.telemetry.reading import MeterReading, Stream, VehicleReading

MAX_READINGS = 50_000
MAX_AHEAD_US = 5 * 60 * 1_000_000
MAX_AGE_US = 7 * 24 * 3600 * 1_000_000

# An element taken apart costs 65 bytes, so 8 million of `[1,1,…` would cost 520 MB before they could be counted.
# There are at most as many as commas; 16 MiB of readings have one comma in 20 bytes or more, 840,000 at most.
_MAX_COMMAS_TAKEN_APART = 1_000_000

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
}
"""Why a reading is refused: code and public sentence, in the order of the checks; the first that fails counts."""


class MediaType(StrEnum):
    """The forms that a batch may have."""

    JSON = "application/json"
    NDJSON = "application/x-ndjson"
    MSGPACK = "application/msgpack"


class Rejected(msgspec.Struct):
    """A reading that was refused.

    `index` is its position in the batch, `code` and `message` come from `REJECTIONS`, `field` is the JSON name.
    `stream` is None when it cannot be told; `payload` holds the reading's own bytes as received.
    """

    index: int
    code: str
    field: str | None
    message: str
    stream: Stream | None
    payload: bytes


class Batch(msgspec.Struct):
    """The readings of one body; `received` counts all of them, `rejected` is in order of index."""

    received: int
    meter: list[MeterReading]
    vehicle: list[VehicleReading]
    rejected: list[Rejected]


class _Wire(msgspec.Struct, rename="camel", gc=False):
    # Without a default for the timestamp, `[{},{},…` fails at its first element instead of filling the memory.
    timestamp: datetime | None
    vehicle_id: str | None = None
    meter_id: str | None = None
    kwh_consumed_ac: float | None = None
    kwh_delivered_dc: float | None = None
    voltage: float | None = None
    soc: float | None = None
    battery_temp: float | None = None


_WIRE_FIELDS = {field.name: field for field in msgspec.structs.fields(_Wire)}
_Parts = msgspec.defstruct("_Parts", [(name, Raw, Raw()) for name in _WIRE_FIELDS], rename="camel", gc=False)
_FIELDS_OF = {
    Stream.METER: ("timestamp", "meter_id", "kwh_consumed_ac", "voltage"),
    Stream.VEHICLE: ("timestamp", "vehicle_id", "meter_id", "kwh_delivered_dc", "soc", "battery_temp"),
}

# msgspec lets UnicodeDecodeError through; its own errors are ValueErrors too.
_UNDECODABLE = (ValueError, RecursionError)


class _Form:
    """The decoders of one encoding."""

    def __init__(
        self, decoder: type[msgspec.json.Decoder[Any]] | type[msgspec.msgpack.Decoder[Any]], null: bytes
    ) -> None:
        self.one = decoder(_Wire)
        self.many = decoder(list[_Wire])
        self.one_apart = decoder(Raw)
        self.many_apart = decoder(list[Raw])
        self.parts: Any = decoder(_Parts)
        self.fields = {name: decoder(field.type) for name, field in _WIRE_FIELDS.items()}
        self.absent = (b"", null)


_JSON = _Form(msgspec.json.Decoder, b"null")
_MSGPACK = _Form(msgspec.msgpack.Decoder, b"\xc0")

_SIGNIFICANT = re.compile(rb"[^ \t\r\n]")
_LINE = re.compile(rb"[^ \t\r\n][^\n]*")


def decode_batch(body: bytes, media_type: MediaType, *, now_us: int, stream: Stream | None = None) -> Batch:
    """Decode a body and check its readings against the clock `now_us` (microseconds since 1970-01-01 UTC).

    `stream` is the stream of all readings; without it those that have a `vehicleId` are vehicle readings.
    Raises MalformedBody, EmptyBatch and BatchTooLarge.
    """
    form = _MSGPACK if media_type is MediaType.MSGPACK else _JSON
    elements: Sequence[bytes | Raw] = ()
    many = False
    if media_type is MediaType.NDJSON:
        elements = _lines(body)
        wires = _decode_each(elements, form, stream)
    else:
        many = _is_array(body, media_type)
        try:
            wires = form.many.decode(body) if many else [form.one.decode(body)]
        except _UNDECODABLE:
            if many and form is _JSON and body.count(b",") > _MAX_COMMAS_TAKEN_APART:
                raise BatchTooLarge("The batch holds too many elements to be taken apart.") from None
            elements = _take_apart(body, form, many=many)
            wires = _decode_each(elements, form, stream)
    if not wires:
        raise EmptyBatch
    if len(wires) > MAX_READINGS:
        raise BatchTooLarge
    batch = _check_each(wires, now_us, stream)
    if batch.rejected:
        elements = elements or _take_apart(body, form, many=many)
        for rejected in batch.rejected:
            rejected.payload = bytes(elements[rejected.index])
    return batch


def _is_array(body: bytes, media_type: MediaType) -> bool:
    if media_type is MediaType.MSGPACK:
        return _is_msgpack_array(body)
    first = _SIGNIFICANT.search(body)
    if first is None:
        raise EmptyBatch
    if first[0] not in (b"[", b"{"):
        raise MalformedBody("The body must be an object or an array of objects.")
    return first[0] == b"["


def _is_msgpack_array(body: bytes) -> bool:
    if not body:
        raise EmptyBatch
    head = body[0]
    if 0x80 <= head <= 0x8F or head in (0xDE, 0xDF):
        return False
    if 0x90 <= head <= 0x9F:
        return True
    if head not in (0xDC, 0xDD):
        raise MalformedBody("The body must be a map or an array of maps.")
    if int.from_bytes(body[1 : 3 if head == 0xDC else 5]) > MAX_READINGS:
        raise BatchTooLarge
    return True


def _lines(body: bytes) -> list[bytes]:
    lines: list[bytes] = []
    for line in _LINE.finditer(body):
        if len(lines) == MAX_READINGS:
            raise BatchTooLarge
        lines.append(line[0].rstrip(b" \t\r"))
    return lines


def _take_apart(body: bytes, form: _Form, *, many: bool) -> list[Raw]:
    try:
        elements = form.many_apart.decode(body) if many else [form.one_apart.decode(body)]
    except RecursionError:
        raise MalformedBody("The body is nested too deeply.") from None
    except ValueError as error:
        raise MalformedBody(f"{error}.") from None
    if len(elements) > MAX_READINGS:
        raise BatchTooLarge
    return elements


def _decode_each(elements: Sequence[bytes | Raw], form: _Form, stream: Stream | None) -> list[_Wire | Rejected]:
    return [_decode_one(index, element, form, stream) for index, element in enumerate(elements)]


def _decode_one(index: int, element: bytes | Raw, form: _Form, stream: Stream | None) -> _Wire | Rejected:
    try:
        wire: _Wire = form.one.decode(element)
    except _UNDECODABLE:
        return _decode_parts(index, element, form, stream)
    return wire


def _decode_parts(index: int, element: bytes | Raw, form: _Form, stream: Stream | None) -> _Wire | Rejected:
    try:
        parts = form.parts.decode(element)
    except _UNDECODABLE:
        return _rejected(index, "malformed", None, stream)
    if stream is None:
        stream = Stream.METER if bytes(parts.vehicle_id) in form.absent else Stream.VEHICLE
    values = {}
    for name in _FIELDS_OF[stream]:
        value = bytes(getattr(parts, name))
        try:
            values[name] = None if value in form.absent else form.fields[name].decode(value)
        except _UNDECODABLE:
            if not _is_huge_number(name, value):
                return _rejected(index, "malformed", _WIRE_FIELDS[name].encode_name, stream)
            values[name] = inf
    return _Wire(**values)


def _is_huge_number(name: str, value: bytes) -> bool:
    # JSON's 1e999; in MessagePack these first bytes are small integers, which always decode.
    return _WIRE_FIELDS[name].type == float | None and value[:1] in b"-0123456789"


class _Refused(Exception):
    def __init__(self, code: str, field: str) -> None:
        self.code = code
        self.field = field


def _rejected(index: int, code: str, field: str | None, stream: Stream | None) -> Rejected:
    return Rejected(index, code, field, REJECTIONS[code], stream, b"")


def _check_each(wires: Sequence[_Wire | Rejected], now_us: int, stream: Stream | None) -> Batch:
    batch = Batch(len(wires), [], [], [])
    for index, wire in enumerate(wires):
        if isinstance(wire, Rejected):
            batch.rejected.append(wire)
            continue
        of = stream or (Stream.METER if wire.vehicle_id is None else Stream.VEHICLE)
        try:
            if of is Stream.METER:
                batch.meter.append(_meter_reading(wire, now_us))
            else:
                batch.vehicle.append(_vehicle_reading(wire, now_us))
        except _Refused as refused:
            batch.rejected.append(_rejected(index, refused.code, refused.field, of))
    return batch


def _meter_reading(wire: _Wire, now_us: int) -> MeterReading:
    return MeterReading(
        _checked_id(wire.meter_id, "meterId"),
        _microseconds(wire.timestamp, now_us),
        _scaled(_required(wire.kwh_consumed_ac, "kwhConsumedAc"), _AC),
        None if wire.voltage is None else _scaled(wire.voltage, _VOLTAGE),
    )


def _vehicle_reading(wire: _Wire, now_us: int) -> VehicleReading:
    return VehicleReading(
        vehicle_id=_checked_id(wire.vehicle_id, "vehicleId"),
        meter_id=None if wire.meter_id is None else _checked_id(wire.meter_id, "meterId"),
        ts_us=_microseconds(wire.timestamp, now_us),
        dc_milliwh=_scaled(_required(wire.kwh_delivered_dc, "kwhDeliveredDc"), _DC),
        soc_centipercent=None if wire.soc is None else _scaled(wire.soc, _SOC),
        battery_temp_centic=None if wire.battery_temp is None else _scaled(wire.battery_temp, _BATTERY_TEMP),
    )


_is_id = re.compile(r"[A-Za-z0-9._:-]{1,64}").fullmatch


def _checked_id(value: str | None, field: str) -> str:
    if value is None:
        raise _Refused("missing_field", field)
    if not _is_id(value):
        raise _Refused("invalid_id", field)
    return value


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _microseconds(timestamp: datetime | None, now_us: int) -> int:
    if timestamp is None:
        raise _Refused("missing_field", "timestamp")
    if timestamp.tzinfo is None:
        raise _Refused("timestamp_without_zone", "timestamp")
    since = timestamp - _EPOCH
    ts_us = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if ts_us > now_us + MAX_AHEAD_US:
        raise _Refused("in_the_future", "timestamp")
    if ts_us < now_us - MAX_AGE_US:
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
    if not quantity.low <= value <= quantity.high:
        raise _Refused(quantity.code, quantity.field)
    product = value * quantity.factor
    nearest = round(product)
    if abs(product - nearest) < 0.499999:
        return nearest
    # The product errs by less than 3e-7, so only here can it fall on the wrong side of the half. The double's
    # shortest decimal is what the client wrote, up to 15 digits.
    return round(Decimal(repr(value)) * quantity.factor)
