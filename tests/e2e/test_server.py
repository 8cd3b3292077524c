"""`wattline serve` as a process of its own: its answers, its costs, and its end."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from app.dashboard.assets import BASE
from app.migrate import migrate
from app.ops.server import STOP_SECONDS
from app.postgres.embedded import running
from tests.fixtures.database import available_engines
from tests.fixtures.engines import on_plain
from tests.fixtures.sending import meter, minutes_ago, problem, vehicle
from tests.fixtures.service import Process, serving
from tests.fixtures.waiting import DEADLINE_S, eventually

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1024 * 1024
JSON = {"Content-Type": "application/json"}


def post(process: Process, content: Any, **headers: str) -> httpx.Response:
    named = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return process.post("/v1/telemetry", content=content, headers=named)


def gzip_bomb(mebibytes: int) -> bytes:
    """Returns one gzip member of that many MiB of zeros, which repeats one self-contained block."""
    deflate = zlib.compressobj(9, wbits=31)
    header = deflate.compress(bytes(MIB)) + deflate.flush(zlib.Z_FULL_FLUSH)
    block = deflate.compress(bytes(MIB)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return header + block * (mebibytes - 1)


def zstd_bomb(mebibytes: int) -> bytes:
    frame: bytes = zstd.compress(bytes(128 * MIB))
    return frame * (mebibytes // 128)


@on_plain
def test_the_page_and_its_files_answer_head_as_get_without_a_body(server_process: Process) -> None:
    with httpx.Client(base_url=server_process.base_url, timeout=DEADLINE_S) as browser:
        for path in "/", f"{BASE}/style.css":
            # One connection is used: a body that was sent by mistake would be taken for the next answer.
            head, get = browser.head(path), browser.get(path)
            assert (head.status_code, head.content, get.status_code) == (200, b"", 200)
            passing = {"date", "x-request-id"}
            assert {name: value for name, value in head.headers.items() if name not in passing} == {
                name: value for name, value in get.headers.items() if name not in passing
            }


@on_plain
def test_a_body_that_is_too_large_is_answered_and_not_cut_off(server_process: Process, tmp_path: Path) -> None:
    for megabytes in (18, 60):
        body = b"[" + b" " * (megabytes * 1_000_000)
        problem(post(server_process, body), 413, "body_too_large")
        chunked = (body[start : start + MIB] for start in range(0, len(body), MIB))
        problem(post(server_process, chunked), 413, "body_too_large")
        problem(post(server_process, body, content_type="text/plain"), 415, "unsupported_media_type")
        assert _curl(server_process, body, tmp_path) == (413, "body_too_large")


def _curl(process: Process, body: bytes, directory: Path) -> tuple[int, str]:
    if shutil.which("curl") is None:
        return 413, "body_too_large"
    (directory / "body").write_bytes(body)
    command = [
        *("curl", "--silent", "--show-error", "--noproxy", "*", "--write-out", "\n%{http_code}"),
        *("--header", "Content-Type: application/json", "--data-binary", f"@{directory / 'body'}"),
        f"{process.base_url}/v1/telemetry",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    document, status = shown.rsplit("\n", 1)
    return int(status), json.loads(document)["code"]


@on_plain
def test_compression_bombs_are_refused_in_bounded_memory(server_process: Process) -> None:
    assert post(server_process, b"[]").status_code == httpx.codes.BAD_REQUEST
    before = server_process.peak_memory_bytes()
    for encoding, bomb in ("gzip", gzip_bomb(10_240)), ("zstd", zstd_bomb(10_240)):
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(lambda _: post(server_process, bomb, content_encoding=encoding), range(2)))  # noqa: B023
        for answer in answers:
            problem(answer, 413, "body_too_large")
    assert server_process.peak_memory_bytes() - before < 100 * MIB


# A batch waits for a lock for a moment only, so a trigger holds it.
HOLD = """
    CREATE TABLE held AS SELECT 1;
    CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            WHILE EXISTS (SELECT FROM held) LOOP PERFORM pg_sleep(0.01); END LOOP;
            RETURN NULL;
        END $$;
    CREATE TRIGGER hold AFTER INSERT ON meter_state EXECUTE FUNCTION hold();
"""
HELD = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database())"


@contextmanager
def storing_is_held(connection: psycopg.Connection) -> Iterator[None]:
    connection.execute(HOLD)
    yield
    connection.execute("DELETE FROM held")


@pytest.mark.parametrize("stop", ["SIGTERM to the server", "SIGINT to the whole group"])
def test_batches_in_flight_are_finished_before_the_server_stops(
    stop: str, server_process: Process, database_url: str, connection: psycopg.Connection
) -> None:
    batches = [[meter(minutes_ago(n), meter_id=f"M{batch}") for n in range(5)] for batch in range(8)]
    with ThreadPoolExecutor(len(batches)) as pool:
        with storing_is_held(connection):
            answers = [pool.submit(post, server_process, json.dumps(batches[0]))]
            eventually(lambda: connection.execute(HELD).fetchone() == (True,))
            answers += [pool.submit(post, server_process, json.dumps(batch)) for batch in batches[1:]]
            eventually(lambda: "\nwattline_readings_waiting 35.0\n" in server_process.get("/metrics").text)
            if stop.startswith("SIGTERM"):
                server_process.popen.send_signal(signal.SIGTERM)
            else:
                server_process.signal_all(signal.SIGINT)
            time.sleep(0.5)
            assert not any(answer.done() for answer in answers)
        receipts = [answer.result().json() for answer in answers]
    assert [receipt["inserted"] for receipt in receipts] == [5] * 8
    assert connection.execute("SELECT count(*) FROM meter_reading").fetchone() == (40,)
    assert server_process.await_end() == 0


@on_plain
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_connection_does_not_hold_up_the_end(number: int, server_process: Process) -> None:
    with socket.create_connection(("127.0.0.1", server_process.port)), httpx.Client(timeout=DEADLINE_S) as client:
        assert client.get(f"{server_process.base_url}/health/live").status_code == httpx.codes.OK
        started = time.monotonic()
        server_process.signal_all(number)
        assert server_process.await_end() == 0
        assert time.monotonic() - started < STOP_SECONDS


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Makes a directory in /tmp itself: where root has no user namespaces, `nobody` could not enter pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="wattline-test-"))
    yield path
    shutil.rmtree((path / "postgres").resolve(), ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)


def test_a_database_that_goes_away_is_503_until_it_is_back(data_dir: Path) -> None:
    pg_bin = available_engines()["plain"].bin
    readings = json.dumps([meter(minutes_ago(2)), vehicle(minutes_ago(2), meterId="M1")])
    with ExitStack() as database:
        url = database.enter_context(running(data_dir, pg_bin=pg_bin))
        migrate(url)
        with serving(url, WATTLINE_LOG_LEVEL="error") as process:
            assert post(process, readings).json()["inserted"] == 2
            database.close()
            assert_away(process, readings)
            with running(data_dir) as again:
                assert again == url
                eventually(lambda: post(process, readings).status_code == httpx.codes.OK)
                assert post(process, readings).json()["duplicates"] == 2
                for path in ("/v1/analytics/performance/V1", "/v1/analytics/meters/states", "/health/ready"):
                    assert process.get(path).status_code == httpx.codes.OK


def assert_away(process: Process, readings: str) -> None:
    mapping = json.dumps({"vehicleId": "V1", "meterId": "M1"})
    answers = [post(process, readings)]
    answers += [
        process.get(path)
        for path in (
            "/v1/analytics/performance/V1",
            "/v1/analytics/vehicles/states",
            "/v1/analytics/freshness",
            "/v1/ingestion/mapping?vehicleId=V1",
        )
    ]
    answers += [process.post("/v1/ingestion/mapping", content=mapping, headers=JSON)]
    for answer in answers:
        problem(answer, 503, "away")
        assert int(answer.headers["retry-after"]) > 0
    ready = process.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "away")
    assert process.get("/health/live").json()["status"] == "ok"


@on_plain
def test_each_request_is_one_json_line_with_its_id(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr, serving(database_url, stderr=stderr, WATTLINE_LOG_LEVEL="info") as process:
        sent = [
            process.get("/health/live", headers={"X-Request-ID": "trace-1"}),
            process.get("/nowhere?secret=1", headers={"X-Request-ID": "trace-2"}),
            httpx.put(f"{process.base_url}/v1/telemetry", headers={"X-Request-ID": "trace-3"}, timeout=DEADLINE_S),
            post(process, b"[" + b" " * 17 * MIB, x_request_id="trace-4"),
            process.get("/nowhere", headers={"X-Request-ID": 'no"such\\id'}),
        ]
    assert [answer.headers["x-request-id"] for answer in sent[:4]] == ["trace-1", "trace-2", "trace-3", "trace-4"]
    replaced = sent[4].headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", replaced)

    logged = [line for line in map(json.loads, log.read_text().splitlines()) if line["event"] != "finding"]
    lines = {line["request_id"]: line for line in logged}
    shown = [
        tuple(lines[name][field] for field in ("event", "method", "path", "status"))
        for name in ("trace-1", "trace-2", "trace-3", "trace-4", replaced)
    ]
    assert shown == [
        ("request", "GET", "/health/live", 200),
        ("request", "GET", "/nowhere", 404),
        ("request", "PUT", "/v1/telemetry", 405),
        ("request", "POST", "/v1/telemetry", 413),
        ("request", "GET", "/nowhere", 404),
    ]
    assert all(isinstance(line["milliseconds"], float) and line["milliseconds"] >= 0 for line in lines.values())
    assert len(lines) == len(logged)


@on_plain
def test_a_client_that_goes_away_in_the_middle_of_its_body_is_no_bug(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr, serving(database_url, stderr=stderr, WATTLINE_LOG_LEVEL="info") as process:
        for path in "/v1/telemetry", "/v1/ingestion/mapping":
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000"
            with socket.create_connection(("127.0.0.1", process.port)) as client:
                client.sendall(f"{head}\r\nExpect: 100-continue\r\n\r\n".encode())
                assert client.recv(100).startswith(b"HTTP/1.1 100 ")  # the service has begun to read
                client.sendall(b"[{")
            eventually(lambda: f'"path": "{path}"' in log.read_text())  # noqa: B023
        assert process.get("/health/live").status_code == httpx.codes.OK
    events = {json.loads(line)["event"] for line in log.read_text().splitlines()}
    assert events - {"finding"} == {"request"}  # the watch looks at the database meanwhile


def raw_answer(process: Process, request: bytes) -> bytes:
    """Returns all that the server sends to a client which sends just these bytes."""
    with socket.create_connection(("127.0.0.1", process.port), DEADLINE_S) as client:
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(MIB), b""))


@on_plain
def test_a_request_without_host_is_served_and_what_is_no_http_is_refused(server_process: Process) -> None:
    for request in b"GET /health/live HTTP/1.0\r\n\r\n", b"GET /health/live HTTP/1.1\r\nConnection: close\r\n\r\n":
        assert b" 200 OK\r\n" in raw_answer(server_process, request)
    # The server refuses this itself, without a body that a browser could take for anything.
    for path in b'/?a="', b"/?a=<", b"/<":
        request = b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        head, _, body = raw_answer(server_process, request).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert body == b""
    assert server_process.get("/health/live", params={"a": '"<'}).status_code == httpx.codes.OK


@on_plain
def test_a_client_that_sends_a_large_batch_to_another_host_gets_the_answer(server_process: Process) -> None:
    # http.client sends all of a body before it reads anything: of a server that does not read it, it sees no answer.
    for headers, status in ({"Host": "evil.example"}, 421), ({"Origin": "null"}, 403), ({}, 415):
        connection = HTTPConnection("127.0.0.1", server_process.port, timeout=DEADLINE_S)
        connection.request("POST", "/v1/telemetry", b"[" + b" " * 15 * MIB, headers)
        assert connection.getresponse().status == status
        connection.close()


@on_plain
def test_a_worker_ends_with_its_killed_parent_and_frees_the_port(server_process: Process) -> None:
    server_process.popen.kill()
    server_process.popen.wait()

    def is_free() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", server_process.port)) != 0

    eventually(is_free)
