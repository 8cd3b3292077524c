"""Server-sent events: their contents, their cost, and that no listener holds the service up."""

import asyncio
import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from app.dashboard import live
from app.dashboard.live import Hub
from app.database import create_pool
from app.ops.server import STOP_SECONDS
from tests.fixtures.engines import on_plain
from tests.fixtures.sending import meter, minutes_ago, problem, vehicle
from tests.fixtures.service import Process, serving
from tests.fixtures.waiting import DEADLINE_S

PATH = "/v1/analytics/fleet/live"
PERIOD_S = live._PERIOD_S
Event = tuple[str, Any]


def events(lines: Iterator[str]) -> Iterator[Event]:
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_a_reading_is_told_to_all_who_listen(server_process: Process) -> None:
    now = minutes_ago(0)
    readings = [meter(now, 1.0), vehicle(now, 0.9, soc=42.5)]
    with httpx.stream("GET", server_process.base_url + PATH, timeout=DEADLINE_S) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = events(answer.iter_lines())
        name, fleet = next(told)
        assert (name, fleet["devicesExpected"], fleet["minutes"]["t"]) == ("fleet", 0, [])
        server_process.post("/v1/telemetry", json=readings).raise_for_status()
        states = next(data for name, data in told if name == "states")
        assert [(state["vehicleId"], state["soc"], state["kwhDeliveredDc"]) for state in states] == [("V1", 42.5, 0.9)]
        fleet = next(data for name, data in told if name == "fleet")
    assert (fleet["devicesReporting"], fleet["devicesExpected"]) == (2, 2)
    # A minute is too short for an efficiency or a power.
    assert {name: fleet["minutes"][name] for name in ("acKwh", "dcKwh", "efficiencyRatio", "acKw")} == {
        "acKwh": [1.0],
        "dcKwh": [0.9],
        "efficiencyRatio": [None],
        "acKw": [None],
    }


@on_plain
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_open_streams_do_not_hold_up_the_end(number: int, server_process: Process) -> None:
    with ExitStack() as stack:
        streams = []
        for _ in range(5):
            answer = stack.enter_context(httpx.stream("GET", server_process.base_url + PATH, timeout=DEADLINE_S))
            streams.append(events(answer.iter_lines()))
        for stream in streams:
            assert next(stream)[0] == "fleet"
        started = time.monotonic()
        server_process.signal_all(number)
        for stream in streams:
            assert {name for name, _ in stream} <= {"fleet"}
        assert server_process.await_end() == 0
        assert time.monotonic() - started < STOP_SECONDS


# Events of a megabyte come more often: the system's buffer for a connection is full within a second or two.
LARGE = """
from app.dashboard import live
encoded = live._encoded
live._encoded = lambda name, data: b":" + b"x" * 1_000_000 + b"\\n" + encoded(name, data)
live._PERIOD_S = 0.2
"""


@on_plain
def test_a_listener_that_does_not_read_does_not_hold_up_the_end(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LARGE, encoding="utf-8")
    with serving(database_url, PYTHONPATH=str(tmp_path)) as process, socket.socket() as stalled:
        stalled.connect(("127.0.0.1", process.port))
        stalled.sendall(f"GET {PATH} HTTP/1.1\r\nHost: wattline\r\n\r\n".encode())
        time.sleep(2.5)  # by then it hangs, with fewer events waiting than it may have
        started = time.monotonic()
        process.popen.send_signal(signal.SIGTERM)
        assert process.await_end() == 0
        assert time.monotonic() - started < STOP_SECONDS


async def next_event(stream: AsyncIterator[bytes]) -> dict[str, Any]:
    """Returns the next events that come together, by name."""
    while (message := await anext(stream)).startswith(b"retry"):
        pass
    return dict(events(iter(message.decode().splitlines())))


@pytest.fixture
async def hub(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    monkeypatch.setattr(live, "_PERIOD_S", 0.02)
    pool = create_pool(database_url, 4)
    hub = Hub(pool)
    yield hub
    hub.close()
    await pool.dispose()


@on_plain
async def test_a_change_of_an_alert_is_told(hub: Hub, connection: psycopg.Connection) -> None:
    async with aclosing(hub.listen()) as stream:
        assert set(await next_event(stream)) == {"fleet"}
        connection.execute("""
            INSERT INTO alert_transition (transition, kind, stream, device_id, opened, evidence)
            VALUES ('opened', 'no_data', 'meter', 1, now(), '{}')
        """)
        async with asyncio.timeout(DEADLINE_S):
            while "alerts" not in (told := await next_event(stream)):
                pass
        assert told["alerts"] == {"transition": 1}


@on_plain
async def test_what_is_committed_is_told_in_the_next_round_but_one(hub: Hub, connection: psycopg.Connection) -> None:
    """The event therefore comes within three seconds."""
    assert PERIOD_S == 1.0
    async with aclosing(hub.listen()) as stream:
        await next_event(stream)
        connection.execute("INSERT INTO vehicle (external_id) VALUES ('V1')")
        connection.execute("INSERT INTO vehicle_state (vehicle_id, ts, dc_milliwh) VALUES (1, now(), 1)")
        # One event may have been computed before the commit, and one may have waited to be heard.
        told = [await next_event(stream) for _ in range(3)]
    assert sum("states" in each for each in told) == 1


@on_plain
async def test_one_task_asks_for_all_and_only_while_someone_listens(hub: Hub) -> None:
    async with aclosing(hub.listen()) as first, aclosing(hub.listen()) as second:
        await next_event(first)
        await next_event(second)
        asking = [task for task in asyncio.all_tasks() if "_ask_forever" in repr(task)]
        assert len(asking) == 1
    async with asyncio.timeout(DEADLINE_S):
        await asking[0]


@on_plain
async def test_a_slow_listener_is_sent_away_and_the_others_stay(hub: Hub) -> None:
    async with aclosing(hub.listen()) as slow, aclosing(hub.listen()) as quick:
        await anext(slow)
        await next_event(slow)
        for _ in range(3 * live._MAX_WAITING):
            await next_event(quick)
        async with asyncio.timeout(DEADLINE_S):
            assert [message async for message in slow] == []
        await next_event(quick)


@on_plain
async def test_listeners_are_bounded(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_LISTENERS", 0)
    problem(await client.get(PATH), 503, "busy")


@on_plain
async def test_changed_states_come_in_bounded_parts(
    hub: Hub, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MAX_STATES", 2)
    async with aclosing(hub.listen()) as stream:
        await next_event(stream)
        connection.execute("""
            INSERT INTO vehicle (external_id) SELECT 'V' || n FROM generate_series(1, 5) AS n;
            INSERT INTO vehicle_state (vehicle_id, ts, dc_milliwh) SELECT id, now(), 1 FROM vehicle
        """)
        parts: list[list[str]] = []
        async with asyncio.timeout(DEADLINE_S):
            while len(parts) < 3:
                told = await next_event(stream)
                parts += [[state["vehicleId"] for state in told["states"]]] if "states" in told else []
    assert parts == [["V1", "V2"], ["V3", "V4"], ["V5"]]


async def test_a_database_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_PERIOD_S", 0.02)
    pool = create_pool("host=127.0.0.1 port=1", 1)
    hub = Hub(pool)
    async with aclosing(hub.listen()) as stream:
        for _ in range(2):
            told = await next_event(stream)
            assert told["problem"]["code"] == "away"
    await pool.dispose()
