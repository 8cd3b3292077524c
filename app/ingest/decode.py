"""Bytes to readings: one typed decode of the whole body, then the checks (check.py).

Only a body that the typed decode cannot read is taken apart, so that one bad reading never blocks its neighbours.
"""

import json
import re
from collections.abc import Sequence
from enum import StrEnum
from math import inf
from typing import Any

import msgspec
from msgspec import Raw

from app.errors import BatchTooLarge, EmptyBatch, MalformedBody
from app.ingest.batch import PAYLOAD_LIMIT_BYTES, Batch, RejectedReading, reject
from app.ingest.check import MAX_AGE_US, Wire, check_each
from app.telemetry.reading import Stream

MAX_READINGS = 50_000

# Decoding 50,000 readings takes 0.1 to 0.3 s, during which no other batch would be answered, so larger bodies go to a
# thread; for smaller ones a thread is not worth it.
LARGE_BODY_BYTES = 512 * 1024

# An element taken apart costs 65 bytes, so the 8 million of `[1,1,…` would cost 520 MB before they could be counted.
# Elements are at most as many as commas; in 16 MiB of readings, one byte in 20 at most is a comma: 840,000.
_MAX_COMMAS_TAKEN_APART = 1_000_000


class MediaType(StrEnum):
    """The media types that a batch may have."""

    JSON = "application/json"
    NDJSON = "application/x-ndjson"
    MSGPACK = "application/msgpack"


_WIRE_FIELDS = {field.name: field for field in msgspec.structs.fields(Wire)}
_Members = msgspec.defstruct("_Members", [(name, Raw, Raw()) for name in _WIRE_FIELDS], rename="camel", gc=False)
_FIELDS_OF = {
    Stream.METER: ("meter_id", "timestamp", "kwh_consumed_ac", "voltage"),
    Stream.VEHICLE: ("vehicle_id", "meter_id", "timestamp", "kwh_delivered_dc", "soc", "battery_temp"),
}
"""The device's own id comes first, so that a rejection for any other field names the device."""

# msgspec lets UnicodeDecodeError through; its own errors are ValueErrors too.
UNDECODABLE = (ValueError, RecursionError)


class _Form:
    """The decoders of one encoding."""

    def __init__(
        self, decoder: type[msgspec.json.Decoder[Any]] | type[msgspec.msgpack.Decoder[Any]], null: bytes
    ) -> None:
        self.one = decoder(Wire)
        self.many = decoder(list[Wire])
        self.one_apart = decoder(Raw)
        self.many_apart = decoder(list[Raw])
        self.members: Any = decoder(_Members)
        self.fields = {name: decoder(field.type) for name, field in _WIRE_FIELDS.items()}
        self.absent = (b"", null)


JSON = _Form(msgspec.json.Decoder, b"null")
_MSGPACK = _Form(msgspec.msgpack.Decoder, b"\xc0")

_SIGNIFICANT = re.compile(rb"[^ \t\r\n]")
_WRITTEN = re.compile(r"[^ \t\r\n]")
_LINE = re.compile(rb"[^ \t\r\n][^\n]*")


def decode_batch(
    body: bytes,
    media_type: MediaType,
    *,
    now_us: int,
    stream: Stream | None = None,
    device_id: str | None = None,
    max_age_us: int = MAX_AGE_US,
) -> Batch:
    """Decodes a body and checks its readings against the clock `now_us` (microseconds since 1970-01-01 UTC).

    `stream` is the stream of all readings; without it, readings with a `vehicleId` are vehicle readings. `device_id` is
    the stream's device for readings that name none. Raises MalformedBody, EmptyBatch and BatchTooLarge.
    """
    form = _MSGPACK if media_type is MediaType.MSGPACK else JSON
    elements: Sequence[bytes | Raw] = ()
    many = False
    if media_type is MediaType.NDJSON:
        elements = _lines(body)
        wires = _decode_each(elements, form, stream)
    else:
        many = _is_array(body, media_type)
        try:
            wires = form.many.decode(body) if many else [form.one.decode(body)]
        except UNDECODABLE:
            if many and form is JSON and body.count(b",") > _MAX_COMMAS_TAKEN_APART:
                raise BatchTooLarge("The batch holds too many elements to be taken apart.") from None
            elements = _take_apart(body, form, many=many)
            wires = _decode_each(elements, form, stream)
    if not wires:
        raise EmptyBatch
    if len(wires) > MAX_READINGS:
        raise BatchTooLarge
    if stream is not None and device_id is not None:
        _name_device(wires, stream, device_id)
    batch = check_each(wires, now_us, stream, oldest_us=now_us - max_age_us)
    if batch.rejected:
        elements = elements or _take_apart(body, form, many=many)
        for reading in batch.rejected:
            reading.payload = bytes(elements[reading.index])[:PAYLOAD_LIMIT_BYTES]
    return batch


def _name_device(wires: Sequence[Wire | RejectedReading], stream: Stream, device_id: str) -> None:
    field = "meter_id" if stream is Stream.METER else "vehicle_id"
    for wire in wires:
        if isinstance(wire, Wire) and getattr(wire, field) is None:
            setattr(wire, field, device_id)


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


def _take_apart(body: bytes, form: _Form, *, many: bool) -> Sequence[bytes | Raw]:
    elements: Sequence[bytes | Raw]
    try:
        elements = form.many_apart.decode(body) if many else [form.one_apart.decode(body)]
    except RecursionError:
        raise MalformedBody("The body is nested too deeply.") from None
    except ValueError as error:
        if not (many and form is JSON):
            raise MalformedBody(f"{error}.") from None
        elements = _split_array(body, error)
    if len(elements) > MAX_READINGS:
        raise BatchTooLarge
    return elements


def _split_array(body: bytes, failure: ValueError) -> list[bytes]:
    """Splits a JSON array that msgspec cannot even skip over, because of NaN or half a surrogate pair.

    Python's json writes and reads both; one such reading must not cost a gateway its other readings.
    """
    elements: list[bytes] = []
    try:
        text = body.decode()
        scan = json.JSONDecoder().raw_decode
        end = text.index("[")
        while text[end] != "]" or not elements:
            start = _next_character(text, end + 1)
            _, end = scan(text, start)
            elements.append(text[start:end].encode())
            end = _next_character(text, end)
            if text[end] not in ",]":
                raise failure
        if _WRITTEN.search(text, end + 1):
            raise failure
    except RecursionError:
        raise MalformedBody("The body is nested too deeply.") from None
    except (ValueError, IndexError):
        raise MalformedBody(f"{failure}.") from None
    return elements


def _next_character(text: str, position: int) -> int:
    found = _WRITTEN.search(text, position)
    return found.start() if found else len(text)


def _decode_each(elements: Sequence[bytes | Raw], form: _Form, stream: Stream | None) -> list[Wire | RejectedReading]:
    return [decode_one(index, element, form, stream) for index, element in enumerate(elements)]


def decode_one(index: int, element: bytes | Raw, form: _Form, stream: Stream | None) -> Wire | RejectedReading:
    """Decodes one reading; a rejection names the member at fault."""
    try:
        wire: Wire = form.one.decode(element)
    except UNDECODABLE:
        return _decode_members(index, element, form, stream)
    return wire


def _decode_members(index: int, element: bytes | Raw, form: _Form, stream: Stream | None) -> Wire | RejectedReading:
    try:
        members = form.members.decode(element)
    except UNDECODABLE:
        return reject(index, "malformed", None, stream)
    if stream is None:
        stream = Stream.METER if bytes(members.vehicle_id) in form.absent else Stream.VEHICLE
    values: dict[str, Any] = {}
    for name in _FIELDS_OF[stream]:
        value = bytes(getattr(members, name))
        try:
            values[name] = None if value in form.absent else form.fields[name].decode(value)
        except UNDECODABLE:
            if not _is_huge_number(name, value):
                device = values.get(_FIELDS_OF[stream][0])
                return reject(index, "malformed", _WIRE_FIELDS[name].encode_name, stream, device)
            values[name] = inf
    return Wire(**values)


def _is_huge_number(name: str, value: bytes) -> bool:
    # JSON allows 1e999; in MessagePack these first bytes are small integers, which always decode.
    return _WIRE_FIELDS[name].type == float | None and value[:1] in b"-0123456789"
