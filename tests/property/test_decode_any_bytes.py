"""Any bytes give a batch or one of the errors that a client may see, and wrapping readings changes nothing."""

import gzip
import json
import random
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.errors import BatchTooLarge, BodyTooLarge, EmptyBatch, MalformedBody, UnsupportedMediaType
from app.ingest.batch import REJECTIONS, Batch
from app.ingest.decode import MediaType, decode_batch
from app.ingest.http.body import read_body
from app.ingest.http.memory import Memory
from app.ingest.names import SYNONYMS
from app.telemetry.reading import Stream

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
NOW_US = 1_777_636_800_000_000
EXPECTED = (MalformedBody, EmptyBatch, BatchTooLarge)

ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:*+@~-]{0,63}", fullmatch=True)
instants = st.integers(-7 * 86_400_000_000, 300_000_000).map(
    lambda us: (NOW + timedelta(microseconds=us)).isoformat().replace("+00:00", "Z")
)


def numbers(low: float, high: float) -> st.SearchStrategy[Any]:
    return st.floats(low, high) | st.integers(int(low), int(high))


def reading(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    unknown = {"firmware": st.text(max_size=5) | st.lists(st.integers(-9, 9), max_size=3)}
    nullable = {name: st.none() | values for name, values in optional.items()}
    return st.fixed_dictionaries({"timestamp": instants, **required}, optional=nullable | unknown)


def with_either(difference: str, register: str, required: dict[str, Any], optional: dict[str, Any]) -> Any:
    differences = reading({**required, difference: numbers(0, 1000)}, optional)
    return differences | reading({**required, register: numbers(0, 1_000_000_000)}, optional)


meter_readings = with_either("kwhConsumedAc", "kwhRegisterAc", {"meterId": ids}, {"voltage": numbers(0, 1000)})
vehicle_readings = with_either(
    *("kwhDeliveredDc", "kwhRegisterDc", {"vehicleId": ids}),
    {"meterId": ids, "soc": numbers(0, 100), "batteryTemp": numbers(-60, 150)},
)
good_readings = meter_readings | vehicle_readings

any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)
wild_values = any_json | ids | instants | st.datetimes().map(datetime.isoformat) | st.datetimes().map(lambda t: f"{t}Z")
spoilt_readings = st.builds(
    lambda reading, name, value: {**reading, name: value},
    good_readings,
    st.sampled_from([*SYNONYMS]),
    wild_values,
)
readings = st.lists(good_readings | spoilt_readings | any_json, max_size=6)


def encoded(values: list[Any], media_type: MediaType) -> bytes:
    if media_type is MediaType.MSGPACK:
        return msgspec.msgpack.encode(values)
    lines = [json.dumps(value).encode() for value in values]
    return b"\n".join(lines) if media_type is MediaType.NDJSON else b"[" + b",".join(lines) + b"]"


@st.composite
def nearly_valid(draw: st.DrawFn, media_type: MediaType) -> bytes:
    """Returns an encoded batch in which a few places were cut, doubled or overwritten."""
    values = [value for value in draw(readings) if media_type is not MediaType.MSGPACK or packable(value)]
    body = bytearray(encoded(values, media_type))
    fragments = [
        b"",
        b"1e999",
        b"\xff",
        b'"',
        b"\\ud800",
        b"[" * 9,
        b"{",
        b"}",
        b",",
        b"\n",
        b"null",
        b"NaN",
        b"\xdd\xff",
    ]
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        body[start : start + draw(st.integers(0, 9))] = draw(st.sampled_from(fragments) | st.binary(max_size=4))
    return bytes(body)


def packable(value: Any) -> bool:
    try:
        msgspec.msgpack.encode(value)
    except (OverflowError, UnicodeEncodeError):
        return False
    return True


media_types = st.sampled_from(MediaType)
bodies = media_types.flatmap(lambda m: st.tuples(st.just(m), st.binary(max_size=200) | nearly_valid(m)))
streams = st.sampled_from([None, *Stream])


def decode(body: bytes, media_type: MediaType, stream: Stream | None = None) -> Batch:
    return decode_batch(body, media_type, now_us=NOW_US, stream=stream)


def assert_adds_up(batch: Batch) -> None:
    assert batch.received == len(batch.meter) + len(batch.vehicle) + len(batch.rejected)
    assert [r.index for r in batch.rejected] == sorted({r.index for r in batch.rejected})
    assert all(0 <= r.index < batch.received and r.payload for r in batch.rejected)
    assert all(r.message == REJECTIONS[r.code] for r in batch.rejected)


@settings(max_examples=500)
@given(bodies, streams)
@example((MediaType.JSON, b'[{"timestamp":"9999-12-31T23:59:59.9999999Z"}]'), None)
@example((MediaType.JSON, b'{"timestamp":"2026-05-01T12:00:00Z","meterId":"\xff"}'), None)
@example((MediaType.MSGPACK, b"\x81\xa9timestamp\xc7\x0c\xff" + b"\xff" * 12), None)
@example((MediaType.MSGPACK, b"\x81\xa9timestamp\xd7\xff" + b"\x00" * 8), None)
def test_any_bytes_give_a_batch_or_a_known_error(body: tuple[MediaType, bytes], stream: Stream | None) -> None:
    try:
        batch = decode(body[1], body[0], stream)
    except EXPECTED:
        return
    assert_adds_up(batch)


async def chunked(body: bytes, seed: int) -> AsyncIterator[bytes]:
    dice = random.Random(seed)
    while body:
        size = dice.randint(1, 50)
        yield body[:size]
        body = body[size:]


compressions = st.sampled_from([bytes, gzip.compress, zstd.compress])


@settings(max_examples=500)
@given(bodies, st.sampled_from(["", "identity", "gzip", "zstd", "br", "gzip, gzip"]), compressions, st.data())
async def test_any_content_encoding_gives_a_body_or_a_known_error(
    body: tuple[MediaType, bytes], content_encoding: str, compression: Any, data: st.DataObject
) -> None:
    sent = bytearray(compression(body[1]))
    if sent and data.draw(st.booleans()):
        start = data.draw(st.integers(0, len(sent) - 1))
        sent[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        with Memory(0).share() as share:
            chunks = chunked(bytes(sent), data.draw(st.integers(0, 99)))
            received = await read_body(chunks, share, content_encoding=content_encoding, content_length=None)
        assert_adds_up(decode(received, body[0]))
    except (*EXPECTED, BodyTooLarge, UnsupportedMediaType):
        pass


@settings(max_examples=300)
@given(st.lists(good_readings | spoilt_readings, min_size=1, max_size=8).filter(packable), streams)
def test_the_three_forms_of_the_same_readings_decode_alike(values: list[Any], stream: Stream | None) -> None:
    plain, lines, packed = (decode(encoded(values, form), form, stream) for form in MediaType)
    for rejected in (*plain.rejected, *lines.rejected, *packed.rejected):
        rejected.payload = b""
    assert plain == lines == packed


def snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def in_unit(timestamp: str, microseconds: int) -> int | str:
    """Returns the timestamp in a unit of so many microseconds, if it can be written so."""
    us = (datetime.fromisoformat(timestamp) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    return timestamp if us % microseconds else us // microseconds


@st.composite
def respelled(draw: st.DrawFn, reading: dict[str, Any]) -> dict[str, Any]:
    """Returns the reading with other names, numbers as text and timestamps as numbers."""
    spelled: dict[str, Any] = {}
    for name, value in reading.items():
        if name == "timestamp":
            us = draw(st.sampled_from([1_000_000, 1_000, 1]))
            value = draw(st.sampled_from([value, in_unit(value, us), str(in_unit(value, us))]))
        elif isinstance(value, int | float):
            value = draw(st.sampled_from([value, repr(value), f" {value!r}"]))
        names = [name, snake(name), name.upper(), *SYNONYMS.get(name, ())]
        spelled[draw(st.sampled_from(names)) if name in SYNONYMS else name] = value
    return spelled


@settings(max_examples=300)
@given(st.data(), st.lists(good_readings, min_size=1, max_size=4), media_types, streams)
def test_other_spellings_mean_the_same(
    data: st.DataObject, values: list[Any], form: MediaType, stream: Stream | None
) -> None:
    spelled = [data.draw(respelled(reading)) for reading in values]
    batch, expected = (decode(encoded(written, form), form, stream) for written in (spelled, values))
    for rejected in (*batch.rejected, *expected.rejected):
        rejected.payload = b""
    assert batch == expected


@settings(max_examples=300)
@given(st.lists(good_readings, min_size=1, max_size=6), st.lists(spoilt_readings | any_json, max_size=4), st.randoms())
def test_a_bad_reading_never_changes_its_neighbours(good: list[Any], others: list[Any], dice: random.Random) -> None:
    expected = decode(encoded(good, MediaType.JSON), MediaType.JSON)
    assert expected.rejected == []
    bad = [b"1e999", b'{"timestamp":"\xff"}']
    for other in others:
        alone = encoded([other], MediaType.JSON)
        try:
            if decode(alone, MediaType.JSON).rejected:
                bad.append(alone[1:-1])
        except MalformedBody:
            continue
    elements = [json.dumps(reading).encode() for reading in good]
    places = []
    for element in bad:
        places.append(dice.randint(0, len(elements)))
        elements.insert(places[-1], element)
    batch = decode(b"[" + b",".join(elements) + b"]", MediaType.JSON)
    assert (batch.meter, batch.vehicle) == (expected.meter, expected.vehicle)
    assert [r.payload for r in batch.rejected] == [e for e in elements if e in bad]


@st.composite
def decimals(draw: st.DrawFn, high: int, digits: int) -> Decimal:
    """Returns numbers as clients write them, every second one exactly between two stored numbers."""
    if draw(st.booleans()):
        return (draw(st.integers(0, high * 10**digits - 1)) + Decimal("0.5")).scaleb(-digits)
    places = draw(st.integers(0, 12))
    return Decimal(draw(st.integers(0, high * 10**places))).scaleb(-places)


@settings(max_examples=600)
@given(decimals(1000, 6), decimals(1000, 2))
def test_numbers_are_the_written_decimal_rounded_half_even(energy: Decimal, voltage: Decimal) -> None:
    body = b'{"meterId":"M","timestamp":"2026-05-01T12:00:00Z","kwhConsumedAc":%b,"voltage":%b}' % (
        str(energy).encode(),
        str(voltage).encode(),
    )
    (reading,) = decode(body, MediaType.JSON).meter
    assert reading.ac_milliwh == (energy * 10**6).quantize(Decimal(1), ROUND_HALF_EVEN)
    assert reading.voltage_centiv == (voltage * 100).quantize(Decimal(1), ROUND_HALF_EVEN)
