"""Batches over HTTP in every form and encoding: their receipts, and which readings are stored or rejected."""

import asyncio
import gzip
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import psycopg
import pytest

from app.ingest.batch import REJECTIONS, WARNINGS
from app.ingest.decode import MAX_READINGS
from app.settings import Settings
from tests.fixtures.sending import Reading, map_vehicle, meter, minutes_ago, performance, problem, send, stamp, vehicle
from tests.fixtures.service import service

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

in_one_loop = pytest.mark.asyncio(loop_scope="module")

JSON, NDJSON, MSGPACK = "application/json", "application/x-ndjson", "application/msgpack"
COUNTS = ("received", "inserted", "duplicates", "conflicts", "late")


def ndjson(readings: list[Reading]) -> bytes:
    return b"\n\n".join(msgspec.json.encode(reading) for reading in readings) + b"\n"


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {"identity": bytes, "gzip": gzip.compress, "zstd": zstd.compress}
BATCHES: dict[str, tuple[str, Callable[[list[Reading]], bytes]]] = {
    "array": (JSON, msgspec.json.encode),
    "lines": (NDJSON, ndjson),
    "msgpack": (MSGPACK, msgspec.msgpack.encode),
}
SINGLES: dict[str, tuple[str, Callable[[Reading], bytes]]] = {
    "object": (JSON, msgspec.json.encode),
    "line": (NDJSON, msgspec.json.encode),
    "msgpack map": (MSGPACK, msgspec.msgpack.encode),
}


async def post(
    client: httpx.AsyncClient, body: bytes, media_type: str = JSON, encoding: str = "", path: str = "/v1/telemetry"
) -> httpx.Response:
    headers = {"Content-Type": media_type} | ({"Content-Encoding": encoding} if encoding else {})
    return await client.post(path, content=body, headers=headers)


def counts(receipt: dict[str, Any]) -> tuple[int, ...]:
    """Returns received, inserted, duplicates, conflicts and late, and checks that they add up."""
    assert receipt["received"] == receipt["inserted"] + receipt["duplicates"] + len(receipt["rejected"])
    assert receipt["conflicts"] <= receipt["duplicates"]
    assert receipt["late"] <= receipt["inserted"]
    return tuple(receipt[name] for name in COUNTS)


def rows(connection: psycopg.Connection, query: str) -> list[Any]:
    return connection.execute(query.encode()).fetchall()


@in_one_loop
async def test_every_form_and_encoding_of_a_batch_gives_the_same_receipt(shared_client: httpx.AsyncClient) -> None:
    at, receipts = minutes_ago(3), []
    for form, (media_type, encode) in BATCHES.items():
        for encoding, compress in ENCODINGS.items():
            name = f"forms-{form}-{encoding}"
            readings = [
                meter(at, meter_id=name, voltage=230.5),
                vehicle(at, -1, vehicle_id=name, meterId=name),
                vehicle(at, vehicle_id=name, meterId=name, soc=101, batteryTemp=-3.25),
                meter(at, meter_id=name, voltage=230.5),
            ]
            answer = await post(shared_client, compress(encode(readings)), media_type, encoding)
            assert answer.status_code == httpx.codes.OK, answer.text
            receipt = answer.json()
            assert counts(receipt) == (4, 2, 1, 0, 0)
            receipts.append(receipt | {"committedAt": ""})
    assert [receipt for receipt in receipts if receipt != receipts[0]] == []
    assert receipts[0]["rejected"] == [
        {
            "index": 1,
            "code": "energy_out_of_range",
            "field": "kwhDeliveredDc",
            "message": REJECTIONS["energy_out_of_range"],
        }
    ]
    assert receipts[0]["warnings"] == [
        {"index": 2, "code": "soc_out_of_range", "field": "soc", "message": WARNINGS["soc_out_of_range"]}
    ]


@in_one_loop
async def test_every_form_and_encoding_of_one_reading_gives_the_same_receipt(shared_client: httpx.AsyncClient) -> None:
    at = minutes_ago(3)
    for form, (media_type, encode) in SINGLES.items():
        for encoding, compress in ENCODINGS.items():
            name = f"single-{form.replace(' ', '-')}-{encoding}"
            answer = await post(shared_client, compress(encode(meter(at, meter_id=name))), media_type, encoding)
            assert answer.status_code == httpx.codes.OK, answer.text
            assert counts(answer.json()) == (1, 1, 0, 0, 0)


@in_one_loop
async def test_the_content_type_may_have_parameters(shared_client: httpx.AsyncClient) -> None:
    body = json.dumps(meter(minutes_ago(1), meter_id="content-type")).encode()
    for given in "Application/JSON; charset=utf-8", "application/json;charset=UTF-8", " application/json ; a=b":
        assert counts((await post(shared_client, body, given)).json())[0] == 1


@in_one_loop
async def test_the_aliases_take_both_streams(shared_client: httpx.AsyncClient) -> None:
    for n, path in enumerate(("/v1/telemetry", "/v1/ingest", "/v1/ingestion")):
        at = minutes_ago(n)
        mixed = [meter(at, meter_id="alias"), vehicle(at, vehicle_id="alias", meterId="alias")]
        assert counts(await send(shared_client, mixed, path)) == (2, 2, 0, 0, 0)


@in_one_loop
async def test_a_reading_of_the_other_stream_is_rejected_on_a_stream_route(shared_client: httpx.AsyncClient) -> None:
    at = minutes_ago(1)
    for path, wrong, field in (
        ("/v1/telemetry/meter", vehicle(at, vehicle_id="stream"), "meterId"),
        ("/v1/telemetry/vehicle", meter(at, meter_id="stream"), "vehicleId"),
    ):
        refused = problem(await shared_client.post(path, json=wrong), 422, "all_rejected")
        assert [(one["code"], one["field"]) for one in refused["rejected"]] == [("missing_field", field)]
    assert (await send(shared_client, meter(at, meter_id="stream"), "/v1/telemetry/meter"))["inserted"] == 1
    assert (await send(shared_client, vehicle(at, vehicle_id="stream"), "/v1/telemetry/vehicle"))["inserted"] == 1


@in_one_loop
async def test_each_rejected_reading_is_named_with_its_reason(shared_client: httpx.AsyncClient) -> None:
    at = minutes_ago(1)
    now = datetime.now(UTC)
    cases: list[tuple[Any, str, str | None]] = [
        (meter(at, meter_id="reasons") | {"kwhConsumedAc": "much"}, "malformed", "kwhConsumedAc"),
        (7, "malformed", None),
        ({"meterId": "reasons", "timestamp": stamp(at)}, "missing_field", "kwhConsumedAc"),
        ({"meterId": "reasons", "kwhConsumedAc": 1}, "missing_field", "timestamp"),
        (meter(at, meter_id="a b"), "invalid_id", "meterId"),
        (vehicle(at, vehicle_id="reasons", meterId="x" * 65), "invalid_id", "meterId"),
        (meter(at, meter_id="reasons") | {"timestamp": "2026-05-01T12:00:00"}, "timestamp_without_zone", "timestamp"),
        (meter(now + timedelta(minutes=6), meter_id="reasons"), "in_the_future", "timestamp"),
        (meter(now - timedelta(days=7, seconds=5), meter_id="reasons"), "too_old", "timestamp"),
        (meter(at, 1000.1, meter_id="reasons"), "energy_out_of_range", "kwhConsumedAc"),
        (vehicle(at, -0.1, vehicle_id="reasons"), "energy_out_of_range", "kwhDeliveredDc"),
        (vehicle(at, vehicle="reasons", VIN="reasons") | {"vehicleId": None}, "ambiguous", "vehicleId"),
        (meter(at, meter_id="reasons") | {"kwhRegisterAc": 5}, "both_energy_forms", "kwhRegisterAc"),
        (
            {"vehicleId": "reasons", "timestamp": stamp(at), "kwhRegisterDc": 1e10},
            "register_out_of_range",
            "kwhRegisterDc",
        ),
    ]
    good = meter(now + timedelta(minutes=4), meter_id="reasons")
    answer = await shared_client.post("/v1/telemetry", json=[reading for reading, _, _ in cases] + [good])
    assert answer.status_code == httpx.codes.OK
    receipt = answer.json()
    assert counts(receipt) == (15, 1, 0, 0, 0)
    assert receipt["rejected"] == [
        {"index": index, "code": code, "field": field, "message": REJECTIONS[code]}
        for index, (_, code, field) in enumerate(cases)
    ]
    # Only MQTT has topics. Devices are counted when the reading is stored: see tests/e2e/test_devices.py.
    assert {code for _, code, _ in cases} == REJECTIONS.keys() - {"no_device_in_topic", "too_many_new_devices"}


@in_one_loop
@pytest.mark.parametrize("name", ["DE*ABC*E1234*1", "AA:BB:CC:DD:EE:FF", "NL-ABC-E1+2", "user@site~1"])
async def test_an_id_of_the_trade_is_the_same_at_every_call(shared_client: httpx.AsyncClient, name: str) -> None:
    at = minutes_ago(2)
    await send(shared_client, [meter(at, meter_id=name), vehicle(at, vehicle_id=name, meterId=name)])
    mapping = (await map_vehicle(shared_client, name, name)).json()
    assert mapping == {"vehicleId": name, "meterId": name, "validFrom": None, "validTo": None}
    get = shared_client.get
    assert (await get("/v1/ingestion/mapping", params={"vehicleId": name})).json() == [mapping]
    assert (await performance(shared_client, quote(name, safe="")))["vehicleId"] == name
    for stream in ("meters", "vehicles"):
        for path in (name, quote(name, safe="")):
            assert (await get(f"/v1/analytics/{stream}/{path}/series?hours=1")).json()["id"] == name
            exported = await get(f"/v1/analytics/{stream}/{path}/readings?hours=1")
            assert exported.headers["content-disposition"] == f'attachment; filename="{name}-readings.csv"'
            assert name in exported.text.splitlines()[1].split(",")
    (after,) = (await get("/v1/analytics/meters/states", params={"after": name[:-1], "limit": 1})).json()
    assert after["meterId"] == name


async def test_an_optional_member_that_is_wrong_is_dropped_and_the_energy_kept(
    client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    at = minutes_ago(2)
    doubtful: list[tuple[Reading, list[tuple[str, str]]]] = [
        (meter(at, voltage=2314), [("voltage_out_of_range", "voltage")]),
        (meter(at, meter_id="M2", voltage="unavailable"), [("malformed", "voltage")]),
        (meter(at, meter_id="M3", voltage="230.5"), []),
        (vehicle(at, soc=255), [("soc_out_of_range", "soc")]),
        (vehicle(at, vehicle_id="V2", soc=[], battery_temp=-127),
         [("malformed", "soc"), ("battery_temp_out_of_range", "batteryTemp")]),
        (vehicle(at, -1, vehicle_id="V3", soc=255), []),
    ]  # fmt: skip
    answer = (await client.post("/v1/telemetry", json=[reading for reading, _ in doubtful])).json()
    assert counts(answer) == (6, 5, 0, 0, 0)
    assert answer["warnings"] == [
        {"index": index, "code": code, "field": field, "message": WARNINGS[code]}
        for index, (_, dropped) in enumerate(doubtful)
        for code, field in dropped
    ]
    assert rows(connection, "SELECT ac_milliwh, voltage_centiv FROM meter_reading ORDER BY meter_id") == [
        (500_000, None), (500_000, None), (500_000, 23_050)
    ]  # fmt: skip
    assert rows(connection, "SELECT dc_milliwh, soc_centipercent, battery_temp_centic FROM vehicle_reading") == [
        (450_000, None, None), (450_000, None, None)
    ]  # fmt: skip
    assert rows(connection, "SELECT code FROM quarantine") == [("energy_out_of_range",)]


async def test_of_a_reading_that_is_rejected_when_it_is_stored_nothing_else_is_said(database_url: str) -> None:
    async with service(Settings(database_url=database_url, new_devices_per_hour=1)) as client:
        await send(client, meter(minutes_ago(1)))
        batch = [meter(minutes_ago(2), voltage=-1), meter(minutes_ago(2), meter_id="M2", voltage=-1)]
        answer = (await client.post("/v1/telemetry", json=batch)).json()
    assert [one["index"] for one in answer["warnings"]] == [0]
    assert [(one["index"], one["code"]) for one in answer["rejected"]] == [(1, "too_many_new_devices")]


async def test_rejected_readings_are_kept_as_bytes_and_counted(
    client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    bad = b'{"meterId": "M1",  "kwhConsumedAc": -1, "timestamp": "2026-05-01T12:00:00Z"}'
    no_text = b'{"meterId": "\xff\xfe"}'
    for _ in range(2):
        answer = await post(client, b"[" + b", ".join([bad, no_text, bad]) + b"]")
        refused = problem(answer, 422, "all_rejected")
        assert counts(refused) == (3, 0, 0, 0, 0)
        assert [one["index"] for one in refused["rejected"]] == [0, 1, 2]
        assert datetime.fromisoformat(refused["committedAt"]) <= datetime.now(UTC)
    kept = "SELECT source, stream, code, field, message, payload, times, first_at < last_at FROM quarantine"
    assert rows(connection, f"{kept} ORDER BY code") == [
        ("http", "meter", "malformed", "meterId", REJECTIONS["malformed"], no_text, 2, True),
        ("http", "meter", "too_old", "timestamp", REJECTIONS["too_old"], bad, 4, True),
    ]
    assert rows(connection, "SELECT count(*) FROM meter_reading") == [(0,)]
    assert rows(connection, "SELECT count(*) FROM meter") == [(0,)]


async def test_the_first_value_of_a_key_stays(client: httpx.AsyncClient, connection: psycopg.Connection) -> None:
    at = minutes_ago(2)
    first = [meter(at, 0.5, voltage=230), vehicle(at, 0.4, soc=50, meterId="M1")]
    assert counts(await send(client, first)) == (2, 2, 0, 0, 0)
    assert counts(await send(client, first)) == (2, 0, 2, 0, 0)
    others = [
        meter(at, 0.6, voltage=230),
        meter(at, 0.5, voltage=231),
        meter(at, 0.5),
        vehicle(at, 0.4, soc=51, meterId="M1"),
        vehicle(at, 0.4, soc=50, meterId="M2"),
        vehicle(at, 0.4, soc=50, batteryTemp=20, meterId="M1"),
    ]
    assert counts(await send(client, [*others, *first])) == (8, 0, 8, 6, 0)
    assert rows(connection, "SELECT ac_milliwh, voltage_centiv FROM meter_reading") == [(500_000, 23_000)]
    stored = """
        SELECT dc_milliwh, soc_centipercent, battery_temp_centic, external_id
        FROM vehicle_reading JOIN meter ON meter.id = meter_id
    """
    assert rows(connection, stored) == [(400_000, 5_000, None, "M1")]
    state = "SELECT ts, ac_milliwh, voltage_centiv FROM meter_state"
    assert rows(connection, state) == [(at, 500_000, 23_000)]


@in_one_loop
async def test_of_two_with_one_key_in_a_batch_the_first_is_inserted(shared_client: httpx.AsyncClient) -> None:
    at = minutes_ago(2)
    twice = [vehicle(at, kwh, vehicle_id="twice") for kwh in (0.1, 0.2, 0.1)]
    assert counts(await send(shared_client, twice)) == (3, 1, 2, 1, 0)
    assert (await performance(shared_client, "twice"))["totalDcDelivery"] == 0.1


@in_one_loop
async def test_equal_instants_in_other_zones_are_one_key(shared_client: httpx.AsyncClient) -> None:
    at = minutes_ago(2)
    reading = meter(at, meter_id="zones")
    elsewhere = reading | {"timestamp": (at + timedelta(hours=5, minutes=30)).isoformat()[:19] + "+05:30"}
    assert counts(await send(shared_client, [reading, elsewhere])) == (2, 1, 1, 0, 0)


@in_one_loop
async def test_readings_older_than_ten_minutes_are_late(shared_client: httpx.AsyncClient) -> None:
    now = datetime.now(UTC)
    ages = [timedelta(minutes=-4), timedelta(minutes=9), timedelta(minutes=11), timedelta(hours=5)]
    ages += [timedelta(days=6, hours=23, minutes=59)]
    batch = [meter(now - age, meter_id="late") for age in ages]
    assert counts(await send(shared_client, batch)) == (5, 5, 0, 0, 3)
    assert counts(await send(shared_client, batch)) == (5, 0, 5, 0, 0)


@in_one_loop
async def test_an_undecodable_body_is_a_400(shared_client: httpx.AsyncClient) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    for body, media_type, encoding, code in (
        (b"", JSON, "", "empty_batch"),
        (b"  ", JSON, "", "empty_batch"),
        (b"[]", JSON, "", "empty_batch"),
        (b"\n \n", NDJSON, "", "empty_batch"),
        (b"", MSGPACK, "", "empty_batch"),
        (b"\x90", MSGPACK, "", "empty_batch"),
        (gzip.compress(b""), JSON, "gzip", "empty_batch"),
        (b"[{", JSON, "", "malformed_body"),
        (b'"text"', JSON, "", "malformed_body"),
        (b"[{}] x", JSON, "", "malformed_body"),
        (b"\xc1", MSGPACK, "", "malformed_body"),
        (deep, JSON, "", "malformed_body"),
        (b"\x91" * 100_000, MSGPACK, "", "malformed_body"),
        (b"[{}]", JSON, "gzip", "malformed_body"),
        (gzip.compress(b"[{}]")[:-3], JSON, "gzip", "malformed_body"),
        (b"[{}]", JSON, "zstd", "malformed_body"),
        (zstd.compress(b"[{}]")[:-3], JSON, "zstd", "malformed_body"),
    ):
        problem(await post(shared_client, body, media_type, encoding), 400, code)


@in_one_loop
async def test_more_than_50000_readings_are_a_413(shared_client: httpx.AsyncClient) -> None:
    reading = msgspec.json.encode(meter(minutes_ago(1), meter_id="many"))
    assert MAX_READINGS == 50_000
    body = b"[" + b",".join([reading] * (MAX_READINGS + 1)) + b"]"
    problem(await post(shared_client, body), 413, "batch_too_large")
    problem(await post(shared_client, b"\n".join([reading] * (MAX_READINGS + 1)), NDJSON), 413, "batch_too_large")
    problem(await post(shared_client, b"\xdd\xff\xff\xff\xff", MSGPACK), 413, "batch_too_large")
    states = (await shared_client.get("/v1/analytics/meters/states", params={"after": "man", "limit": 1})).json()
    assert [state["meterId"] for state in states] != ["many"]


@in_one_loop
async def test_a_body_above_16_mib_decoded_is_a_413(shared_client: httpx.AsyncClient) -> None:
    body = b"[" + b" " * (16 * 1024 * 1024)
    problem(await post(shared_client, body), 413, "body_too_large")
    problem(await post(shared_client, gzip.compress(body, 1), encoding="gzip"), 413, "body_too_large")
    problem(await post(shared_client, zstd.compress(body), encoding="zstd"), 413, "body_too_large")


@in_one_loop
async def test_other_content_types_and_encodings_are_a_415(shared_client: httpx.AsyncClient) -> None:
    body = json.dumps(meter(minutes_ago(1), meter_id="415")).encode()
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"):
        refused = problem(await post(shared_client, body, media_type), 415, "unsupported_media_type")
        assert JSON in refused["detail"]
    for encoding in ("br", "deflate", "gzip, gzip"):
        problem(await post(shared_client, body, encoding=encoding), 415, "unsupported_media_type")


async def test_the_receipt_comes_after_the_commit(client: httpx.AsyncClient, connection: psycopg.Connection) -> None:
    for n in range(5):
        before = datetime.now(UTC)
        receipt = await send(client, [meter(minutes_ago(n)), vehicle(minutes_ago(n), meterId="M1")])
        seen = rows(connection, "SELECT (SELECT count(*) FROM meter_reading), (SELECT count(*) FROM vehicle_reading)")
        assert seen == [(n + 1, n + 1)]
        committed = datetime.fromisoformat(receipt["committedAt"])
        assert committed.utcoffset() == timedelta(0)
        assert before <= committed <= datetime.now(UTC)


async def test_clients_at_once_store_each_reading_once(
    client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    readings = [meter(minutes_ago(n), meter_id=f"M{device}") for n in range(20) for device in range(5)]
    readings += [vehicle(minutes_ago(n), vehicle_id=f"V{n}") for n in range(50)]

    async def one(offset: int) -> list[tuple[int, ...]]:
        turned = readings[offset:] + readings[:offset]
        return [counts(await send(client, turned[start : start + 7])) for start in range(0, len(turned), 7)]

    receipts = [receipt for sent in await asyncio.gather(one(0), one(0), one(71)) for receipt in sent]
    assert sum(receipt[1] for receipt in receipts) == len(readings)
    assert sum(receipt[2] for receipt in receipts) == 2 * len(readings)
    assert sum(receipt[3] for receipt in receipts) == 0
    stored = "SELECT (SELECT count(*) FROM meter_reading) + (SELECT count(*) FROM vehicle_reading)"
    assert rows(connection, stored) == [(len(readings),)]
    assert rows(connection, "SELECT count(DISTINCT external_id), count(*) FROM vehicle") == [(50, 50)]
