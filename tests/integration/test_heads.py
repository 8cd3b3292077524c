"""HEAD works wherever GET does."""

import httpx

from app.dashboard.assets import BASE
from app.dashboard.live import MAX_LISTENERS
from tests.fixtures.engines import on_plain
from tests.fixtures.sending import meter, minutes_ago, send, vehicle

PASSING = {"x-request-id", "content-length"}
"""The length too: it is that of an answer of another moment."""


@on_plain
async def test_head_is_answered_as_get_without_a_body(client: httpx.AsyncClient) -> None:
    at = minutes_ago(1)
    await send(client, [meter(at), vehicle(at, meterId="M1")])
    calls = [
        path.replace("{vehicle_id}", "V1").replace("{meter_id}", "M1")
        for path, methods in (await client.get("/schema")).json()["paths"].items()
        if "get" in methods
    ]
    assert len(calls) >= 20
    # GET of the live events has no end.
    calls.remove("/v1/analytics/fleet/live")
    for path in *calls, "/", "/schema", f"{BASE}/style.css", "/nowhere", "/v1/analytics/performance/V9":
        head, get = await client.head(path), await client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        shown = [{name: value for name, value in one.headers.items() if name not in PASSING} for one in (head, get)]
        assert shown[0] == shown[1], path
    wrong = await client.head("/v1/analytics/alerts?wrong=1")
    assert wrong.status_code == httpx.codes.BAD_REQUEST


@on_plain
async def test_head_of_an_answer_without_an_end_ends_and_leaves_no_listener(client: httpx.AsyncClient) -> None:
    for _ in range(MAX_LISTENERS + 1):
        head = await client.head("/v1/analytics/fleet/live")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"].startswith("text/event-stream")


@on_plain
async def test_the_methods_of_a_path_name_head(client: httpx.AsyncClient) -> None:
    answer = await client.post("/health/live")
    assert answer.status_code == httpx.codes.METHOD_NOT_ALLOWED
    assert {name.strip() for name in answer.headers["allow"].split(",")} == {"GET", "HEAD", "OPTIONS"}
    head = await client.head("/v1/telemetry")
    assert (head.status_code, head.content) == (405, b"")
    assert "GET" not in head.headers["allow"]
