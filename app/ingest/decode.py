"""Bytes to readings: one typed decode of the whole body, then the checks (check.py).

A body that the typed decode cannot read is taken apart, and its readings are decoded one by one (members.py): one bad
reading never blocks its neighbours.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum

from msgspec import Raw

from app.errors import BatchTooLarge, EmptyBatch, MalformedBody
from app.ingest.batch import PAYLOAD_LIMIT_BYTES, Batch, RejectedReading
from app.ingest.check import MAX_AGE_US, Wire, check_each
from app.ingest.members import JSON, MSGPACK, UNDECODABLE, Form, decode_alike, decode_one
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
    form = MSGPACK if media_type is MediaType.MSGPACK else JSON
    elements: Sequence[bytes | Raw] = ()
    wires: Sequence[Wire | RejectedReading]
    many = False
    if media_type is MediaType.NDJSON:
        elements = _lines(body)
        wires = [decode_one(index, element, form, stream) for index, element in enumerate(elements)]
    else:
        many = _is_array(body, media_type)
        try:
            wires = form.many.decode(body) if many else [form.one.decode(body)]
        except UNDECODABLE:
            if many and form is JSON and body.count(b",") > _MAX_COMMAS_TAKEN_APART:
                _refuse_many(body)
            elements = _take_apart(body, form, many=many)
            wires = (many and decode_alike(body, elements, form)) or [
                decode_one(index, element, form, stream) for index, element in enumerate(elements)
            ]
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
        if not isinstance(wire, RejectedReading) and getattr(wire, field) is None:
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


def _refuse_many(body: bytes) -> None:
    """Raises BatchTooLarge unless the commas prove to be within a few readings, such as in an array of samples."""
    with suppress(*UNDECODABLE):
        if len(JSON.many_loosely.decode(body)) <= MAX_READINGS:
            return
    raise BatchTooLarge("The batch holds too many elements to be taken apart.")


def _take_apart(body: bytes, form: Form, *, many: bool) -> Sequence[bytes | Raw]:
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
