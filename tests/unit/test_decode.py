"""Bytes to readings: the accepted and the rejected ones, the reasons, and the cost of a hostile body."""

import json
import re
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from app.errors import BatchTooLarge, EmptyBatch, MalformedBody
from app.ingest.batch import PAYLOAD_LIMIT_BYTES, REJECTIONS, WARNINGS, Batch, RejectedReading
from app.ingest.decode import MAX_READINGS, MediaType, decode_batch
from app.ingest.names import FIELDS, SYNONYMS
from app.telemetry.reading import MeterReading, Stream, VehicleReading

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
NOW_US = 1_777_636_800_000_000
JSON, NDJSON, MSGPACK = MediaType

METER = {"meterId": "M1", "timestamp": "2026-05-01T12:00:00Z", "kwhConsumedAc": 0.4227, "voltage": 230.1}
VEHICLE = {
    "vehicleId": "V1",
    "meterId": "M1",
    "timestamp": "2026-05-01T12:00:00Z",
    "kwhDeliveredDc": 0.36,
    "soc": 55.5,
    "batteryTemp": -3.25,
}
METER_REGISTER = {"meterId": "M1", "timestamp": "2026-05-01T12:00:00Z", "kwhRegisterAc": 20_957.4227}
VEHICLE_REGISTER = {"vehicleId": "V1", "timestamp": "2026-05-01T12:00:00Z", "kwhRegisterDc": 850}


def decode(body: bytes | Any, media_type: MediaType = JSON, stream: Stream | None = None) -> Batch:
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return decode_batch(body, media_type, now_us=NOW_US, stream=stream)


def rejection(reading: Any, stream: Stream | None = None) -> tuple[str, str | None]:
    """Returns code and field of the only reading; the fast path and the path that takes bodies apart must agree."""
    alone = decode([reading], stream=stream).rejected
    beside = decode([reading, 1], stream=stream).rejected[:1]
    assert alone == beside
    assert alone[0].message == REJECTIONS[alone[0].code]
    return alone[0].code, alone[0].field


def warning(reading: Any, stream: Stream | None = None) -> tuple[str, str]:
    """Returns code and field of the only warning about the only reading, which must be stored without that field."""
    batch = decode([reading], stream=stream)
    (dropped,) = batch.warnings
    assert dropped.message == WARNINGS[dropped.code]
    batch.warnings = []
    bare = {name: value for name, value in reading.items() if FIELDS[name] != dropped.field}
    assert batch == decode([bare], stream=stream)
    assert [(one.index, one.code) for one in decode([1, reading], stream=stream).warnings] == [(1, dropped.code)]
    return dropped.code, dropped.field


def faults(batch: Batch) -> list[tuple[str, str | None]]:
    rejected = [(reading.code, reading.field) for reading in batch.rejected]
    return rejected + [(dropped.code, dropped.field) for dropped in batch.warnings]


def without(reading: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in reading.items() if name not in names}


def test_a_meter_reading_in_stored_units() -> None:
    assert decode(METER) == Batch(1, [MeterReading("M1", NOW_US, 422_700, 23_010)], [], [])


def test_a_vehicle_reading_in_stored_units() -> None:
    assert decode([VEHICLE]) == Batch(1, [], [VehicleReading("V1", NOW_US, 360_000, "M1", 5_550, -325)], [])


def test_a_reading_has_a_register_in_the_place_of_a_difference() -> None:
    meter, vehicle = MeterReading("M1", NOW_US, None, None, 20_957_422_700), VehicleReading("V1", NOW_US, None)
    assert decode(METER_REGISTER | {"kwhConsumedAc": None}) == Batch(1, [meter], [], [])
    assert decode([VEHICLE_REGISTER]).vehicle == [msgspec.structs.replace(vehicle, register_milliwh=850_000_000)]
    for text in "20957.4227", " 20957.42270 ":
        assert decode(METER_REGISTER | {"kwhRegisterAc": text}) == decode(METER_REGISTER)
    for wrong in ("20957,4", True, [1]):
        assert rejection(METER_REGISTER | {"kwhRegisterAc": wrong}) == ("malformed", "kwhRegisterAc")
    assert rejection(METER | {"kwh_register_ac": "1"}) == ("both_energy_forms", "kwhRegisterAc")
    assert rejection(VEHICLE | {"kwhRegisterDc": 0}) == ("both_energy_forms", "kwhRegisterDc")
    assert rejection(without(METER_REGISTER, "kwhRegisterAc")) == ("missing_field", "kwhConsumedAc")


def test_nothing_is_dropped_of_a_reading_that_is_rejected() -> None:
    meter = METER_REGISTER | {"kwhRegisterAc": -1, "voltage": -1}
    vehicle = VEHICLE_REGISTER | {"kwhRegisterDc": -1, "soc": 255, "batteryTemp": -127}
    for reading, field in (meter, "kwhRegisterAc"), (vehicle, "kwhRegisterDc"):
        assert faults(decode(reading)) == [("register_out_of_range", field)]


def test_both_streams_in_one_batch() -> None:
    batch = decode([METER, VEHICLE, METER])
    assert (batch.received, len(batch.meter), len(batch.vehicle)) == (3, 2, 1)


def test_optional_numbers_may_be_absent_or_null() -> None:
    bare = decode([without(METER, "voltage"), without(VEHICLE, "soc", "batteryTemp", "meterId")])
    assert bare == decode([METER | {"voltage": None}, VEHICLE | {"soc": None, "batteryTemp": None, "meterId": None}])
    assert bare.meter[0].voltage_centiv is None
    assert bare.vehicle[0] == VehicleReading("V1", NOW_US, 360_000)


def test_unknown_fields_and_those_of_the_other_stream_are_ignored() -> None:
    assert decode([METER | {"soc": 500, "firmware": {"a": [1]}}]) == decode([METER])
    assert decode([METER | {"soc": "x", "kwhDeliveredDc": []}]) == decode([METER])
    assert decode([METER | {"n" * 200: 1} | {f"unknown{n}": n for n in range(2_000)}]) == decode([METER])


def test_a_null_vehicle_id_makes_a_meter_reading() -> None:
    assert decode([METER | {"vehicleId": None}]) == decode([METER])
    assert warning(METER | {"vehicleId": None, "voltage": "x"}) == ("malformed", "voltage")


def test_the_route_may_force_the_stream() -> None:
    assert decode([METER | {"vehicleId": 7}], stream=Stream.METER) == decode([METER])
    assert rejection(METER, Stream.VEHICLE) == ("missing_field", "vehicleId")
    assert decode([1], stream=Stream.VEHICLE).rejected[0].stream is Stream.VEHICLE


@pytest.mark.parametrize("field", SYNONYMS)
def test_a_field_may_have_the_names_that_it_has_in_files(field: str) -> None:
    reading = next(one for one in (METER, VEHICLE, METER_REGISTER, VEHICLE_REGISTER) if field in one)
    snake = re.sub("([A-Z])", r"_\1", field).lower()
    for name in (snake, snake.upper(), field.upper(), *SYNONYMS[field]):
        renamed = without(reading, field) | {name: reading[field]}
        for among in ([renamed], [renamed, renamed], [renamed, reading], [renamed, 1]):
            batch = decode(among)
            assert batch.warnings == []
            assert (batch.meter or batch.vehicle)[0] == (decode(reading).meter or decode(reading).vehicle)[0]
        assert decode(json.dumps(renamed).encode(), NDJSON) == decode(reading)
        assert decode(msgspec.msgpack.encode(renamed), MSGPACK) == decode(reading)


def test_a_field_s_own_name_takes_precedence_over_others() -> None:
    assert decode(METER | {"time": "noon", "ts": 1, "meter": "M2", "volts": 1}) == decode(METER)
    assert decode(METER | {"timestamp": None, "ts": METER["timestamp"]}) == decode(METER)


def test_of_two_other_names_for_one_field_none_counts() -> None:
    anonymous = without(METER, "meterId")
    assert rejection(anonymous | {"meter": "M1", "meter_id": "M1"}) == ("ambiguous", "meterId")
    assert decode(anonymous | {"meter": "M1", "meter_id": None}) == decode(METER)
    assert warning(without(METER, "voltage") | {"volt": 230, "volts": 230}) == ("ambiguous", "voltage")


def test_an_object_under_another_name_is_no_value_of_the_field() -> None:
    assert decode(METER | {"vehicle": {"make": "X"}, "volts": [230, 231]}) == decode(METER)
    assert decode(msgspec.msgpack.encode(METER | {"vehicle": {"make": "X"}}), MSGPACK) == decode(METER)
    assert rejection(without(METER, "meterId") | {"meter": {"id": "M1"}}) == ("missing_field", "meterId")


def test_a_reading_of_more_than_64_kib_is_read_by_the_fields_own_names() -> None:
    long = METER | {"samples": [1] * 50_000}
    assert decode([long]) == decode([METER])
    assert decode([long | {"kwhConsumedAc": "0.4227"}]) == decode([METER])
    assert rejection(without(long, "meterId") | {"meter": "M1"}) == ("missing_field", "meterId")


@pytest.mark.parametrize("text", ["0.4227", " 0.4227 ", "+.4227", "4227e-4", "0000.42270"])
def test_a_number_may_be_written_as_text(text: str) -> None:
    for reading in (METER | {"kwhConsumedAc": text}, METER | {"kwhConsumedAc": text, "voltage": "230.1"}):
        assert decode(reading) == decode(METER)
        assert decode([reading, METER]) == decode([METER, METER])
        assert decode(msgspec.msgpack.encode(reading), MSGPACK) == decode(METER)


@pytest.mark.parametrize("text", ["", " ", "0,4227", "0.4 kWh", "0x1", "nan", "inf", "1_0", "--1", ".", "1e", "\u0661"])
def test_other_texts_are_no_numbers(text: str) -> None:
    assert rejection(METER | {"kwhConsumedAc": text}) == ("malformed", "kwhConsumedAc")
    assert warning(METER | {"voltage": text}) == ("malformed", "voltage")


@pytest.mark.parametrize(
    ("number", "ts_us"),
    [
        (1_777_636_800, NOW_US),
        (1_777_636_800_000, NOW_US),
        (1_777_636_800_000_000, NOW_US),
        (1_777_636_800_000_000_000, NOW_US),
        (1_777_636_799.5, NOW_US - 500_000),
        (1_777_636_799.999999, NOW_US - 1),
        (1_777_636_799_999.999, NOW_US - 1),
        (1_777_636_799_999_999.5, NOW_US),  # half to even
        (1_777_636_799_999_999_500, NOW_US),
        (1_777_636_799_999_998_500, NOW_US - 2),
        (1.7776368e9, NOW_US),
    ],
)
def test_a_timestamp_may_be_a_number_of_any_of_the_four_units(number: float, ts_us: int) -> None:
    for written in (number, repr(number)):
        reading = METER | {"timestamp": written}
        for batch in (decode(reading), decode([reading]), decode(msgspec.msgpack.encode(reading), MSGPACK)):
            assert batch.rejected == []
            assert batch.meter[0].ts_us == ts_us


@pytest.mark.parametrize(
    ("field", "text", "scaled"),
    [
        ("kwhConsumedAc", "0.0000025", 2),
        ("kwhConsumedAc", "0.0000035", 4),
        ("kwhConsumedAc", "0.4227", 422_700),
        ("kwhConsumedAc", "999.9999995", 1_000_000_000),
        ("kwhConsumedAc", "1000", 1_000_000_000),
        ("kwhConsumedAc", "-0.0", 0),
        ("kwhConsumedAc", "1e-400", 0),
        ("voltage", "230.005", 23_000),
        ("voltage", "230.015", 23_002),
        ("voltage", "1.005", 100),
        ("voltage", "1e2", 10_000),
    ],
)
def test_numbers_are_rounded_half_even_as_written(field: str, text: str, scaled: int) -> None:
    body = json.dumps(METER | {field: "@"}).replace('"@"', text).encode()
    reading = decode(body).meter[0]
    assert (reading.ac_milliwh if field == "kwhConsumedAc" else reading.voltage_centiv) == scaled


@pytest.mark.parametrize(
    ("reading", "field", "low", "high", "step", "code"),
    [
        (METER, "kwhConsumedAc", 0, 1000, 1e-6, "energy_out_of_range"),
        (METER, "voltage", 0, 1000, 0.01, "voltage_out_of_range"),
        (VEHICLE, "kwhDeliveredDc", 0, 1000, 1e-6, "energy_out_of_range"),
        (METER_REGISTER, "kwhRegisterAc", 0, 1_000_000_000, 1e-6, "register_out_of_range"),
        (VEHICLE_REGISTER, "kwhRegisterDc", 0, 1_000_000_000, 1e-6, "register_out_of_range"),
        (VEHICLE, "soc", 0, 100, 0.01, "soc_out_of_range"),
        (VEHICLE, "batteryTemp", -60, 150, 0.01, "battery_temp_out_of_range"),
    ],
)
def test_ranges_are_inclusive_and_hold_after_rounding(
    reading: dict[str, Any], field: str, low: int, high: int, step: float, code: str
) -> None:
    for bound, outwards in ((low, -step), (high, step)):
        exact = decode([reading | {field: bound}])
        assert exact.rejected == []
        for noise in (1e-12, 1e-9, 0.4 * step):
            assert decode([reading | {field: bound + noise * outwards}]) == exact
    fault = rejection if code in REJECTIONS else warning
    for outside in (low - 0.6 * step, high + 0.6 * step, low - 1, high + 1, 1e300, -1e300):
        assert fault(reading | {field: outside}) == (code, field)
    for infinite in (b"1e999", b"-1e999", b"9" * 400, b'"1e999"'):
        body = json.dumps([reading | {field: "@"}]).encode().replace(b'"@"', infinite)
        assert faults(decode(body)) == [(code, field)]
    for not_finite in (float("nan"), float("inf")):
        body = msgspec.msgpack.encode(reading | {field: not_finite})
        assert faults(decode(body, MSGPACK)) == [(code, field)]


@pytest.mark.parametrize("field", ["meterId", "timestamp", "kwhConsumedAc"])
def test_a_meter_reading_needs_id_timestamp_and_energy(field: str) -> None:
    assert rejection(without(METER, field)) == ("missing_field", field)
    assert rejection(METER | {field: None}) == ("missing_field", field)


@pytest.mark.parametrize("field", ["timestamp", "kwhDeliveredDc"])
def test_a_vehicle_reading_needs_timestamp_and_energy(field: str) -> None:
    assert rejection(without(VEHICLE, field)) == ("missing_field", field)


@pytest.mark.parametrize("field", ["vehicleId", "meterId"])
def test_ids_are_1_to_64_of_a_small_alphabet(field: str) -> None:
    for good in ("a", "A-Za.z_0:9", "x" * 64, "DE*ABC*E1234*1", "user@site", "NL-ABC-E1+2", "a."):
        assert decode([VEHICLE | {field: good}]).rejected == []
    for bad in ("", ".", "..", ".a", "-1", "+a", "@a", ".\n", "x" * 65, "a b", "a\n", "ä", "a/b", "\u0661", "\x00"):
        assert rejection(VEHICLE | {field: bad}) == ("invalid_id", field)


@pytest.mark.parametrize("field", list(VEHICLE))
@pytest.mark.parametrize("wrong", [True, [], {}, "not a number"])
def test_a_field_of_a_wrong_type_is_named(field: str, wrong: Any) -> None:
    if isinstance(wrong, str) and field.endswith("Id"):
        wrong = 1
    fault = warning if field in ("soc", "batteryTemp") else rejection
    assert fault(VEHICLE | {field: wrong}) == ("malformed", field)


@pytest.mark.parametrize("element", [1, None, "x", [], [METER], True])
def test_an_element_that_is_no_object_is_rejected_alone(element: Any) -> None:
    batch = decode([METER, element, VEHICLE])
    assert (len(batch.meter), len(batch.vehicle)) == (1, 1)
    assert batch.rejected == [
        RejectedReading(1, "malformed", None, REJECTIONS["malformed"], None, json.dumps(element).encode())
    ]


@pytest.mark.parametrize(
    ("timestamp", "ts_us"),
    [
        ("2026-05-01T12:00:00Z", NOW_US),
        ("2026-05-01t12:00:00z", NOW_US),
        ("2026-05-01 12:00:00+00:00", NOW_US),
        ("2026-05-01T14:00:00+02:00", NOW_US),
        ("2026-04-30T12:01:00-23:59", NOW_US),
        ("2026-05-01T11:59:59.999999Z", NOW_US - 1),
        ("2026-05-01T12:05:00Z", NOW_US + 300_000_000),
        ("2026-04-24T12:00:00Z", NOW_US - 7 * 86_400_000_000),
    ],
)
def test_timestamps_become_exact_microseconds(timestamp: str, ts_us: int) -> None:
    assert decode([METER | {"timestamp": timestamp}]).meter[0].ts_us == ts_us


@pytest.mark.parametrize(
    ("timestamp", "code"),
    [
        ("2026-05-01T12:00:00", "timestamp_without_zone"),
        ("2026-05-01T12:05:00.000001Z", "in_the_future"),
        ("9999-12-31T23:59:59-23:59", "in_the_future"),
        ("2026-04-24T11:59:59.999999Z", "too_old"),
        ("0001-01-01T00:00:00+23:59", "too_old"),
        ("2026-05-01", "malformed"),
        ("2026-13-01T12:00:00Z", "malformed"),
        ("2026-05-01T12:00:00+24:00", "malformed"),
        ("now", "malformed"),
        (True, "malformed"),
        (-1, "malformed"),
        (1e20, "malformed"),
        ("1e99999999999999999999", "malformed"),
        (0, "too_old"),
        (46_143.5, "too_old"),  # a date as spreadsheets count it
        (2_000_000_000, "in_the_future"),
    ],
)
def test_timestamps_that_are_rejected(timestamp: str | float, code: str) -> None:
    assert rejection(METER | {"timestamp": timestamp}) == (code, "timestamp")


def test_msgpack_takes_its_own_timestamps() -> None:
    body = msgspec.msgpack.encode([METER | {"timestamp": NOW - timedelta(microseconds=1)}])
    assert decode(body, MSGPACK).meter[0].ts_us == NOW_US - 1


def test_the_first_failing_check_counts() -> None:
    everything = {"vehicleId": "", "meterId": "", "timestamp": "2020-01-01T00:00:00", "kwhDeliveredDc": -1, "soc": -1}
    repaired = [
        ("invalid_id", "vehicleId", "V1"),
        ("invalid_id", "meterId", "M1"),
        ("timestamp_without_zone", "timestamp", "2020-01-01T00:00:00Z"),
        ("too_old", "timestamp", "2026-05-01T12:00:00Z"),
        ("energy_out_of_range", "kwhDeliveredDc", 1),
    ]
    assert rejection(everything | {"kwhDeliveredDc": "x"}) == ("malformed", "kwhDeliveredDc")
    for code, field, good in repaired:
        assert decode([everything]).warnings == []
        assert rejection(everything) == (code, field)
        everything[field] = good
    assert warning(everything) == ("soc_out_of_range", "soc")


def test_a_message_never_echoes_what_the_client_wrote() -> None:
    for reading in (METER | {"meterId": "<script>" * 99}, METER | {"timestamp": "<script>" * 99}):
        assert "<script>" not in decode([reading]).rejected[0].message


def test_every_code_can_happen() -> None:
    bad: list[Any] = [
        1,
        {},
        METER | {"meterId": ""},
        METER | {"timestamp": "2026-05-01T12:00:00"},
        METER | {"timestamp": "2027-05-01T12:00:00Z"},
        METER | {"timestamp": "2025-05-01T12:00:00Z"},
        METER | {"kwhConsumedAc": -1},
        METER | {"kwhRegisterAc": 1},
        METER | {"kwhConsumedAc": None, "kwhRegisterAc": -1},
        without(METER, "meterId") | {"meter": "M1", "METER_ID": "M1"},
    ]
    # Only MQTT has topics, and the registry is asked only when the readings are stored.
    assert {r.code for r in decode(bad).rejected} == set(REJECTIONS) - {"no_device_in_topic", "too_many_new_devices"}
    doubtful = [METER | {"voltage": -1}, VEHICLE | {"soc": -1}, VEHICLE | {"batteryTemp": -61}, VEHICLE | {"soc": "?"}]
    doubtful.append(without(METER, "voltage") | {"volt": 230, "volts": 230})
    assert {dropped.code for dropped in decode(doubtful).warnings} == set(WARNINGS)


def test_the_payload_is_the_readings_own_bytes() -> None:
    good, bad = json.dumps(METER).encode(), b'{"timestamp" :  null,"x":"\\u00e4\xc3\xa4"}'
    assert [r.payload for r in decode(b" [ " + good + b", " + bad + b" ]").rejected] == [bad]
    assert [r.payload for r in decode(b"  " + bad + b"\n").rejected] == [bad]
    assert [r.payload for r in decode(good + b"\r\n " + bad + b" \r\n", NDJSON).rejected] == [bad]
    packed = msgspec.msgpack.encode(VEHICLE | {"kwhDeliveredDc": -1})
    assert [r.payload for r in decode(b"\x92" + packed + b"\xc0", MSGPACK).rejected] == [packed, b"\xc0"]


def test_a_long_unknown_array_beside_a_rejected_reading_is_no_large_batch() -> None:
    batch = decode([METER | {"samples": [1] * 1_100_000}, METER | {"kwhConsumedAc": -1}])
    assert (len(batch.meter), [r.index for r in batch.rejected]) == (1, [1])


def test_bad_utf8_rejects_only_its_reading() -> None:
    bad = json.dumps(METER | {"meterId": "@"}).encode().replace(b"@", b"\xff")
    batch = decode(b"[" + bad + b"," + json.dumps(METER).encode() + b"]")
    assert (len(batch.meter), batch.rejected[0].field, batch.rejected[0].payload) == (1, "meterId", bad)


def test_ndjson_counts_lines_that_are_not_blank() -> None:
    line = json.dumps(METER).encode()
    batch = decode(b"\n\r\n \t\n" + line + b"\r\n\n{]\n[]\n" + line, NDJSON)
    assert (batch.received, len(batch.meter)) == (4, 2)
    assert [(r.index, r.code, r.payload) for r in batch.rejected] == [(1, "malformed", b"{]"), (2, "malformed", b"[]")]


def test_a_deeply_nested_line_is_rejected_alone() -> None:
    batch = decode(json.dumps(METER).encode() + b"\n" + b"[" * 100_000, NDJSON)
    assert (len(batch.meter), [r.code for r in batch.rejected]) == (1, ["malformed"])


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"", JSON),
        (b" \r\n\t", JSON),
        (b"[]", JSON),
        (b" [ ] ", JSON),
        (b"", NDJSON),
        (b"\n \n\r\n", NDJSON),
        (b"", MSGPACK),
        (b"\x90", MSGPACK),
        (b"\xdc\0\0", MSGPACK),
        (b"\xdd\0\0\0\0", MSGPACK),
    ],
)
def test_an_empty_batch_is_an_error(body: bytes, media_type: MediaType) -> None:
    with pytest.raises(EmptyBatch):
        decode(body, media_type)


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"1", JSON),
        (b'"x"', JSON),
        (b"null", JSON),
        (b"[1", JSON),
        (b"[1,]", JSON),
        (b"{}{}", JSON),
        (b"[]x", JSON),
        (b'{"timestamp":', JSON),
        (b"\xef\xbb\xbf[]", JSON),
        (b"[" * 100_000 + b"]" * 100_000, JSON),
        (b'{"a":' * 100_000, JSON),
        (b"\x01", MSGPACK),
        (b"\xa1a", MSGPACK),
        (b"\xc1", MSGPACK),
        (b"\x91", MSGPACK),
        (b"\x90\x01", MSGPACK),
        (b"\xdd\0\0", MSGPACK),
        (b"\x80\x80", MSGPACK),
        (b"\x91" * 100_000, MSGPACK),
        (b"\x91\xdb\xff\xff\xff\xff", MSGPACK),
    ],
)
def test_a_body_that_cannot_be_decoded_is_an_error(body: bytes, media_type: MediaType) -> None:
    with pytest.raises(MalformedBody) as caught:
        decode(body, media_type)
    assert len(caught.value.detail) < 200


def in_form(element: bytes, count: int, media_type: MediaType) -> bytes:
    if media_type is MSGPACK:
        return b"\xdd" + count.to_bytes(4) + element * count
    return b"[" + b",".join([element] * count) + b"]" if media_type is JSON else b"\n".join([element] * count)


@pytest.mark.parametrize("media_type", MediaType)
@pytest.mark.parametrize("reading", [METER, {}])
def test_50_000_readings_are_a_batch_and_one_more_is_not(media_type: MediaType, reading: dict[str, Any]) -> None:
    element = (msgspec.msgpack if media_type is MSGPACK else msgspec.json).encode(reading)
    assert decode(in_form(element, MAX_READINGS, media_type), media_type).received == MAX_READINGS
    with pytest.raises(BatchTooLarge):
        decode(in_form(element, MAX_READINGS + 1, media_type), media_type)


SIZE = 16 * 1024 * 1024


@pytest.mark.parametrize(
    ("prefix", "element", "suffix", "media_type"),
    [
        (b"[", b"1,", b"1]", JSON),
        (b"[", b"{},", b"1]", JSON),
        (b"[[", b"1,", b"1]]", JSON),
        (b"[", b'{"timestamp":null},', b"{}]", JSON),
        (b"[", b'{"timestamp":"2020-01-01T00:00:00+01:00"},', b"1]", JSON),
        (b"[", b'{"t":"aaaaaaaa"},', b"1]", JSON),
        (b'{"timestamp":1,"t":0', b',"aaaaa":1', b"}", JSON),
        (b'[{"timestamp":1,"t":0', b',"aaaaa":1', b"}]", JSON),
        (b'{"timestamp":null,"meterId":"', b"a", '😀"}'.encode(), JSON),
        (b"", b"[", b"", JSON),
        (b"", b"\n", b"1", NDJSON),
        (b"", b"1\n", b"", NDJSON),
        (b"\xdd\xff\xff\xff\xff", b"\x01", b"", MSGPACK),
        (b"\xdd\x00\xff\xff\xf0", b"\x01", b"", MSGPACK),
        (b"\x91\xdd\x00\xff\xff\xf0", b"\x01", b"", MSGPACK),
        (b"", b"\x91", b"", MSGPACK),
    ],
)
def test_a_hostile_body_costs_bounded_memory(
    prefix: bytes, element: bytes, suffix: bytes, media_type: MediaType
) -> None:
    body = prefix + element * ((SIZE - len(prefix) - len(suffix)) // len(element)) + suffix
    tracemalloc.start()
    try:
        decode(body, media_type)
    except (MalformedBody, BatchTooLarge):
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 120e6


def test_names_that_all_differ_cost_bounded_memory() -> None:
    at_once = [{f"{letter}{n:x}": 1 for n in range(1_500)} for letter in map(chr, range(0x4E00, 0x4E00 + 600))]
    body = json.dumps(at_once).encode()
    assert len(body) < SIZE
    tracemalloc.start()
    assert len(decode(body).rejected) == len(at_once)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6


@pytest.mark.parametrize("fault", ["NaN", "Infinity", '"\\ud800"'])
def test_what_is_no_json_costs_only_its_own_reading(fault: str) -> None:
    good = msgspec.json.encode(METER).decode()
    body = f' [ {good} ,{{"meterId": "M1", "timestamp": "2026-05-01T12:00:00Z", "kwhConsumedAc": {fault}}},{good}] '
    batch = decode(body.encode())
    assert (len(batch.meter), [(r.index, r.code) for r in batch.rejected]) == (2, [(1, "malformed")])
    assert fault.encode() in batch.rejected[0].payload


@pytest.mark.parametrize(
    "body", ["[NaN,", "[NaN", "[NaN}", "[NaN,]", "[NaN] 1", "[,NaN]", "[NaN 1]", "[NaN," + "[" * 100_000]
)
def test_an_array_broken_beside_a_fault_is_malformed(body: str) -> None:
    with pytest.raises(MalformedBody):
        decode(body.encode())


def test_what_quarantine_keeps_of_a_large_reading_is_cut() -> None:
    batch = decode(msgspec.json.encode([{"meterId": "x" * 10 * PAYLOAD_LIMIT_BYTES, "timestamp": "now"}]))
    assert len(batch.rejected[0].payload) == PAYLOAD_LIMIT_BYTES
