"""Requests beyond the limit, and bodies that do not arrive."""

import asyncio
import json
from typing import Any

import pytest

from app.errors import BodyTooSlow
from app.ops import connections as connections_module
from app.ops.connections import Connections, connection_limit
from app.settings import Settings


async def read_all(_: Any, receive: Any, send: Any) -> None:
    """An application that reads the body, and answers nothing."""
    while (await receive())["more_body"]:
        pass


async def never() -> Any:
    await asyncio.Event().wait()


def scope(port: int, path: str = "/v1/telemetry") -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": path, "headers": [], "client": ("127.0.0.1", str(port))}


async def ask(app: Any, port: int, path: str = "/v1/telemetry", receive: Any = never) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope(port, path), receive, send)
    return sent


async def test_requests_beyond_seven_of_eight_connections_are_refused_but_for_health() -> None:
    async def wait(scope: Any, _: Any, send: Any) -> None:
        if scope["path"] == "/v1/telemetry":
            await asyncio.Event().wait()

    app = Connections(16).limited(wait)
    waiting = [asyncio.create_task(ask(app, port)) for port in range(14)]
    await asyncio.sleep(0)
    start, body = await ask(app, 14)
    headers = dict(start["headers"])
    assert (start["status"], headers[b"connection"], headers[b"retry-after"]) == (503, b"close", b"1")
    assert json.loads(body["body"])["code"] == "busy"
    assert await ask(app, 15, "/health/live") == []
    waiting.pop().cancel()
    await asyncio.sleep(0)
    admitted = asyncio.create_task(ask(app, 14))
    await asyncio.sleep(0)
    assert not admitted.done()
    for task in (*waiting, admitted):
        task.cancel()


async def test_the_body_that_has_been_silent_for_longest_makes_room_for_a_new_one() -> None:
    app = Connections(8).limited(read_all)
    spoken = asyncio.Event()

    async def speaking() -> Any:
        if spoken.is_set():
            await asyncio.Event().wait()
        spoken.set()
        return {"type": "http.request", "body": b"[", "more_body": True}

    bodies = [asyncio.create_task(ask(app, 0))]
    await asyncio.sleep(0)
    bodies += [asyncio.create_task(ask(app, 1, receive=speaking))]
    bodies += [asyncio.create_task(ask(app, port)) for port in range(2, 5)]
    done, others = await asyncio.wait(bodies, timeout=0.5)
    assert done == {bodies[0]}
    assert isinstance(bodies[0].exception(), BodyTooSlow)
    for task in others:
        task.cancel()


async def test_a_body_that_is_ending_by_itself_makes_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "BODY_SECONDS", 0.01)
    app = Connections(3).limited(read_all)
    ending = asyncio.Event()

    async def end_slowly() -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await asyncio.sleep(0.1)

    first = asyncio.create_task(ask(app, 0, receive=end_slowly))
    await ending.wait()
    results = await asyncio.gather(first, ask(app, 1), return_exceptions=True)
    assert [type(result) for result in results] == [BodyTooSlow, BodyTooSlow]


async def test_a_body_may_take_longer_while_it_comes_fast_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(connections_module, "BODY_BYTES_PER_SECOND", 1_000)
    app = Connections(8).limited(read_all)

    def dripping(size: int, count: int) -> Any:
        left = iter(range(count - 1, -1, -1))

        async def receive() -> Any:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": bytes(size), "more_body": next(left) > 0}

        return receive

    await ask(app, 0, receive=dripping(100, 20))
    with pytest.raises(BodyTooSlow):
        await ask(app, 1, receive=dripping(1, 20))


def test_the_limit_leaves_file_descriptors_for_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for descriptors, limit in ((100_000, 4_000), (1_024, 896), (100, 50)):
        monkeypatch.setattr("app.ops.connections.resource.getrlimit", lambda _: (descriptors, 100_000))  # noqa: B023
        assert connection_limit(Settings()) == limit
