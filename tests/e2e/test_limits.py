"""Limits that hold together: whatever a crowd of clients does, others are answered, and memory is bounded."""

import gzip
import json
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from select import select

import httpx
import psycopg
import pytest

from tests.fixtures.crowd import answered, connected, descriptors, descriptors_of, get, send_head
from tests.fixtures.engines import on_plain
from tests.fixtures.sending import meter, minutes_ago
from tests.fixtures.service import Process, serving
from tests.fixtures.waiting import eventually

pytestmark = on_plain

JSON = {"Content-Type": "application/json"}
LIMIT_BYTES = 400_000_000
CLIENT_DESCRIPTORS = 8_192


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    with descriptors(CLIENT_DESCRIPTORS):
        yield


def send(process: Process, minutes: float) -> int:
    """Sends one reading; returns the status."""
    return process.post("/v1/telemetry", content=json.dumps(meter(minutes_ago(minutes))), headers=JSON).status_code


def codes(answers: list[bytes]) -> Counter[tuple[int, str]]:
    """Counts answers that are errors, by status and code."""
    return Counter((int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])["code"]) for answer in answers)


def test_1200_bodies_that_stall_and_1100_clients_shut_nobody_out(
    database_url: str, connection: psycopg.Connection
) -> None:
    with ExitStack() as running:
        with descriptors(1024):
            process = running.enter_context(serving(database_url))
        before = descriptors_of(process)
        with connected(process, 1200) as stalled, connected(process, 1100) as kept:
            for client in stalled:
                send_head(client)
            assert {get(client) for client in kept} == {200}
            assert [send(process, minutes) for minutes in (10, 20, 30)] == [200] * 3
            for path in "/health/live", "/health/ready", "/v1/analytics/freshness":
                assert process.get(path).status_code == httpx.codes.OK
            assert codes([answered(client) for client in stalled]) == {(408, "body_too_slow"): 1200}
            assert {get(client) for client in kept} == {200}
        eventually(lambda: descriptors_of(process) <= before + 10)
        assert send(process, 40) == httpx.codes.OK
        assert connection.execute("SELECT count(*) FROM meter_reading").fetchone() == (4,)


def test_a_full_service_answers_health_and_makes_room(database_url: str) -> None:
    with (
        serving(database_url, WATTLINE_MAX_CONNECTIONS="200") as process,
        connected(process, 190) as idle,
        connected(process, 300) as stalled,
    ):
        for client in stalled:
            send_head(client)
        # Those that have waited longest make room for the others, and idle ones for all.
        assert process.get("/health/live").status_code == httpx.codes.OK
        assert process.get("/health/ready").status_code == httpx.codes.OK
        assert send(process, 1) == httpx.codes.OK
        eventually(lambda: len(select(idle, [], [], 0)[0]) >= 90)
        stalled[-1].sendall(b" " * 999)
        assert stalled[-1].recv(65_536).startswith(b"HTTP/1.1 400 ")
        ended = codes([answered(client) for client in stalled[:-1]])
        assert set(ended) <= {(408, "body_too_slow"), (503, "busy")}


@pytest.mark.parametrize("idle_seconds", ["1", "75"])
def test_an_idle_connection_is_kept_as_long_as_the_setting_says(idle_seconds: str, database_url: str) -> None:
    with serving(database_url, WATTLINE_KEEP_ALIVE_SECONDS=idle_seconds) as process, connected(process, 1) as (client,):
        assert get(client) == httpx.codes.OK
        if idle_seconds == "1":
            assert client.recv(1) == b""
        else:
            client.settimeout(2)
            with pytest.raises(TimeoutError):
                client.recv(1)
            assert get(client) == httpx.codes.OK


def test_16_batches_of_nothing_but_rejected_readings_need_less_than_400_mb(server_process: Process) -> None:
    batch = gzip.compress(json.dumps([{"timestamp": None, "n": n % 7} for n in range(50_000)]).encode())

    def post(_: int) -> httpx.Response:
        return server_process.post("/v1/telemetry", content=batch, headers=JSON | {"Content-Encoding": "gzip"})

    with ThreadPoolExecutor(16) as clients:
        answers = Counter(answer.json()["code"] for answer in clients.map(post, range(16)))
    assert set(answers) <= {"all_rejected", "busy"}
    assert answers["all_rejected"] > 0
    assert server_process.peak_memory_bytes() < LIMIT_BYTES
    assert post(0).json()["code"] == "all_rejected"


def test_40_large_bodies_that_stall_need_less_than_400_mb(server_process: Process) -> None:
    sent = b" " * 15_900_000

    def stall(client: socket.socket) -> bytes:
        with suppress(OSError):  # the service has answered before it read all
            send_head(client, len(sent) + 100)
            client.sendall(sent)
        return answered(client)

    with connected(server_process, 40) as stalled, ThreadPoolExecutor(40) as clients:
        answers = [clients.submit(stall, client) for client in stalled]
        eventually(lambda: any(answer.done() for answer in answers))
        # Large bodies leave room for small ones.
        assert send(server_process, 1) == httpx.codes.OK
        assert server_process.get("/health/ready").status_code == httpx.codes.OK
        ended = codes([answer.result() for answer in answers])
    assert set(ended) == {(408, "body_too_slow"), (503, "busy")}
    assert server_process.peak_memory_bytes() < LIMIT_BYTES
    whole = json.dumps(meter(minutes_ago(2))).encode() + sent
    assert server_process.post("/v1/telemetry", content=whole, headers=JSON).status_code == httpx.codes.OK
