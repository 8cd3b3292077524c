"""Every error gives one problem document, with the request's id, and nothing that belongs in the log."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import psycopg
import pytest
import structlog

from app import database
from app.ingest.batch import Receipt
from app.settings import Settings
from tests.fixtures.sending import map_vehicle, meter, minutes_ago, problem, vehicle
from tests.fixtures.service import free_port, service

TELEMETRY, MAPPING, STATES = "/v1/telemetry", "/v1/ingestion/mapping", "/v1/analytics/vehicles/states"
PERFORMANCE = "/v1/analytics/performance/V1"
JSON = {"content-type": "application/json"}

# Each row has the status, code, method, path, and the rest of the request.
REFUSED: list[tuple[int, str, str, str, dict[str, Any]]] = [
    (404, "not_found", "GET", "/nowhere", {}),
    (404, "not_found", "GET", "/v1/analytics/performance/", {}),
    (404, "not_found", "POST", "/v1/telemetry/other", {"json": {}}),
    (404, "no_charging_data", "GET", PERFORMANCE, {}),
    (405, "method_not_allowed", "GET", TELEMETRY, {}),
    (405, "method_not_allowed", "DELETE", MAPPING, {}),
    (405, "method_not_allowed", "POST", "/health/live", {}),
    (400, "malformed_body", "POST", TELEMETRY, {"content": b"[{", "headers": JSON}),
    (400, "empty_batch", "POST", TELEMETRY, {"json": []}),
    (400, "malformed_body", "POST", MAPPING, {"content": b"{", "headers": JSON}),
    (400, "invalid_parameter", "POST", MAPPING, {"json": {}}),
    (400, "invalid_parameter", "GET", MAPPING, {}),
    (400, "invalid_parameter", "GET", STATES, {"params": {"limit": 0}}),
    (400, "invalid_parameter", "GET", PERFORMANCE, {"params": {"hours": "abc"}}),
    (400, "invalid_time_range", "GET", PERFORMANCE, {"params": {"hours": 0}}),
    (413, "body_too_large", "POST", TELEMETRY, {"content": b" " * 17_000_000, "headers": JSON}),
    (413, "batch_too_large", "POST", TELEMETRY, {"content": b"[" + b"1," * 60_000 + b"1]", "headers": JSON}),
    (415, "unsupported_media_type", "POST", TELEMETRY, {"content": b"", "headers": {"content-type": "text/csv"}}),
    (415, "unsupported_media_type", "POST", TELEMETRY, {"content": b"", "headers": JSON | {"content-encoding": "br"}}),
    (415, "unsupported_media_type", "POST", TELEMETRY, {"content": b"{}"}),
    (415, "unsupported_media_type", "POST", MAPPING, {"content": b"{}"}),
    (403, "cross_site", "POST", TELEMETRY, {"json": {}, "headers": {"origin": "null"}}),
    (421, "misdirected_request", "GET", PERFORMANCE, {"headers": {"host": "evil.example"}}),
    (422, "all_rejected", "POST", TELEMETRY, {"json": {}}),
]


async def test_every_refusal_is_a_problem_document(client: httpx.AsyncClient) -> None:
    for status, code, method, path, content in REFUSED:
        answer = await client.request(method, path, **content)
        document = problem(answer, status, code)
        assert document["title"].endswith(".")
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
        assert document.keys() - {"type", "title", "status", "code", "detail"} == (
            {field.encode_name for field in msgspec.structs.fields(Receipt)}
            if code == "all_rejected"
            else {"vehicleId", "asOf"}
            if code == "no_charging_data"
            else set()
        )


async def test_a_conflict_is_a_problem_document(client: httpx.AsyncClient) -> None:
    for meter_id in "M1", "M2":
        answer = await map_vehicle(
            client, "V1", meter_id, validFrom="2026-01-01T00:00:00Z", validTo="2026-01-02T00:00:00Z"
        )
    problem(answer, 409, "mapping_overlap")


async def test_a_method_that_is_not_allowed_names_those_that_are(client: httpx.AsyncClient) -> None:
    for method, path, allowed in (
        ("GET", TELEMETRY, {"POST", "OPTIONS"}),
        ("DELETE", MAPPING, {"GET", "POST", "OPTIONS"}),
        ("PUT", PERFORMANCE, {"GET", "OPTIONS"}),
        ("POST", "/schema", {"GET", "OPTIONS"}),
    ):
        answer = await client.request(method, path)
        problem(answer, 405, "method_not_allowed")
        assert {name.strip() for name in answer.headers["allow"].split(",")} - {"HEAD"} == allowed


async def test_a_parameter_that_is_wrong_is_named(client: httpx.AsyncClient) -> None:
    for path, params, name in (
        (PERFORMANCE, {"hours": "abc"}, "hours"),
        (PERFORMANCE, {"from": "noon"}, "from"),
        (STATES, {"limit": "0"}, "limit"),
        (MAPPING, {}, "vehicleId"),
    ):
        refused = problem(await client.get(path, params=params), 400, "invalid_parameter")
        assert name in refused["detail"], refused


async def test_a_parameter_that_a_call_does_not_know_is_refused(client: httpx.AsyncClient) -> None:
    for path, query, detail in (
        ("/v1/analytics/efficiency", "hours=1", "hours: Unknown parameter; allowed: by, worst, from, to, site."),
        (PERFORMANCE, "Hours=1&From=x&to=", "From, Hours: Unknown parameter; allowed: from, to, hours."),
        (MAPPING, "vehicle_id=V1", "vehicle_id: Unknown parameter; allowed: vehicleId, meterId."),
        # This error comes from a dependency.
        (
            "/v1/analytics/fleet/series",
            "bucket=1h&from=2026-01-01T00:00:00Z&Z=1",
            "Z: Unknown parameter; allowed: from, to, hours, bucket, maxPoints, tz, site.",
        ),
    ):
        assert problem(await client.get(f"{path}?{query}"), 400, "invalid_parameter")["detail"] == detail
    for hostile in "%FF", "%00", "%ED%A0%80", "x" * 4_000, "":
        problem(await client.get(f"{PERFORMANCE}?{hostile}=1"), 400, "invalid_parameter")
    # Probes and gateways in the field add parameters to calls that take none.
    for path in "/health/live", "/metrics", "/v1/analytics/freshness", "/":
        assert (await client.get(f"{path}?t=1")).status_code == httpx.codes.OK
    assert (await client.post(f"{TELEMETRY}?token=1", json=meter(minutes_ago(1)))).status_code == httpx.codes.OK


async def test_what_is_wrong_with_a_parameter_is_said_without_names_of_types(client: httpx.AsyncClient) -> None:
    for path, query, detail in (
        ("alerts", "open=yes", "open: Expected true or false."),
        (
            "alerts",
            "kind=foo",
            "kind: Expected one of low_efficiency, impossible_efficiency, frozen_meter, frozen_vehicle, no_data, "
            "implausible_energy.",
        ),
        ("alerts", "limit=0", "limit: Expected a number >= 1."),
        ("efficiency", "by=fleet", "by: Expected one of vehicle, meter."),
        ("fleet/series", "bucket=1s", "bucket: Expected one of 1m, 1h, 1d, 1mo, auto."),
        ("fleet/series", "hours=1.5", "hours: Expected a whole number."),
    ):
        refused = problem(await client.get(f"/v1/analytics/{path}?{query}"), 400, "invalid_parameter")
        assert refused["detail"] == detail


async def test_request_ids_are_returned_when_sane_and_replaced_when_hostile(client: httpx.AsyncClient) -> None:
    for path in "/health/live", "/nowhere", TELEMETRY:
        for sane in "a", "trace.1:2_3-4", "x" * 64:
            assert (await client.get(path, headers={"X-Request-ID": sane})).headers["x-request-id"] == sane
        for hostile in "", "x" * 65, "a b", 'a"b', "a\u00ff", "<script>", "a;b":
            answer = await client.get(path, headers=[(b"X-Request-ID", hostile.encode("latin-1"))])
            assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


@pytest.fixture
async def away() -> AsyncIterator[httpx.AsyncClient]:
    """Runs a service whose database is not there."""
    async with service(Settings(database_url=f"postgresql://127.0.0.1:{free_port()}/nowhere")) as client:
        yield client


async def test_without_its_database_it_says_so_and_when_to_come_again(away: httpx.AsyncClient) -> None:
    answers = [
        await away.get(f"/v1/analytics/{path}")
        for path in (
            *("performance/V1", "vehicles/V1/coverage", "vehicles/states", "alerts", "efficiency", "freshness"),
            *("meters/M1/series", "vehicles/V1/series", "fleet/series", "meters/M1/readings", "vehicles/V1/readings"),
        )
    ]
    answers += [await away.get(f"{MAPPING}?vehicleId=V1")]
    answers += [await away.post(TELEMETRY, json=[meter(minutes_ago(1)), vehicle(minutes_ago(1))])]
    answers += [await map_vehicle(away, "V1", "M1")]
    for answer in answers:
        document = problem(answer, 503, "away")
        assert int(answer.headers["retry-after"]) > 0
        assert "127.0.0.1" not in json.dumps(document)
    ready = await away.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "away")


async def test_a_text_that_the_database_cannot_hold_is_no_id(client: httpx.AsyncClient) -> None:
    for path in f"{MAPPING}?vehicleId=%00", "/v1/analytics/alerts?vehicleId=%00", f"{STATES}?after=%00":
        refused = problem(await client.get(path), 400, "invalid_parameter")
        assert refused["detail"] == "A text holds a character that no id has."


async def test_a_pool_without_a_free_connection_is_503_and_when_to_come_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_CONNECT_TIMEOUT_S", 0.5)
    async with service(Settings(database_url=database_url, pool_max_size=1)) as client:
        with psycopg.connect(database_url) as other:
            other.execute("LOCK TABLE vehicle_state IN ACCESS EXCLUSIVE MODE")
            asked = [asyncio.create_task(client.get(STATES)) for _ in range(2)]
            (refused,), _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert sorted([(await task).status_code for task in asked]) == [200, 503]
    answer = refused.result()
    assert problem(answer, 503, "busy")["detail"] == "All database connections are in use."
    assert int(answer.headers["retry-after"]) > 0


async def test_a_full_queue_is_503_and_when_to_come_again(database_url: str) -> None:
    batch = json.dumps([meter(minutes_ago(1))] * 30_000).encode()
    async with service(Settings(database_url=database_url, queue_max_readings=50_000)) as client:
        with psycopg.connect(database_url) as other:
            other.execute("LOCK TABLE meter_reading IN ACCESS EXCLUSIVE MODE")
            sent = [asyncio.create_task(client.post(TELEMETRY, content=batch, headers=JSON)) for _ in range(4)]
            refused, _ = await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
        answers = [await task for task in sent]
    for answer in (task.result() for task in refused):
        problem(answer, 503, "busy")
        assert int(answer.headers["retry-after"]) > 0
    assert {answer.status_code for answer in answers} == {200, 503}


async def test_a_bug_is_500_without_detail_and_a_traceback_in_the_log(
    client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    connection.execute("ALTER TABLE vehicle_state RENAME COLUMN soc_centipercent TO renamed")
    with structlog.testing.capture_logs() as log:
        answer = await client.get(STATES, headers={"X-Request-ID": "trace-500"})
    document = problem(answer, 500, "internal_error")
    assert document["detail"] == document["title"] == "Something went wrong in the service; its log has the request id."
    assert answer.headers["x-request-id"] == "trace-500"
    assert "soc_centipercent" not in answer.text
    error, request = log
    assert (error["event"], error["log_level"]) == ("unexpected_error", "error")
    assert isinstance(error["exc_info"], Exception)
    assert "soc_centipercent" in str(error["exc_info"])
    assert (request["event"], request["status"], request["log_level"]) == ("request", 500, "warning")
    assert (await client.get("/v1/analytics/meters/states")).status_code == httpx.codes.OK


async def test_a_batch_that_meets_a_bug_is_500_and_the_writer_goes_on(
    client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    # In a thread: the service's loops, which go on in this event loop, may hold a lock on the table for a moment.
    rename = "ALTER TABLE meter_state RENAME COLUMN {} TO {}"
    await asyncio.to_thread(connection.execute, rename.format("voltage_centiv", "renamed").encode())
    with structlog.testing.capture_logs() as log:
        problem(await client.post(TELEMETRY, json=meter(minutes_ago(1))), 500, "internal_error")
    # The watch looks at the database meanwhile.
    events = [line["event"] for line in log if line["event"] != "finding"]
    assert events == ["unexpected_error", "request"]
    await asyncio.to_thread(connection.execute, rename.format("renamed", "voltage_centiv").encode())
    again = await client.post(TELEMETRY, json=meter(minutes_ago(1)))
    assert (again.status_code, again.json()["inserted"]) == (200, 1)
