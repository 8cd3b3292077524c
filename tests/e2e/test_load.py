"""`wattline load` against the real service: its figures equal the database's, even when things go wrong."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import psycopg
from click.testing import CliRunner

from app.cli import cli
from app.ops.refresh import refresh_aggregates
from app.settings import MQTT_URL
from tests.fixtures.broker import Broker, consuming
from tests.fixtures.commands import command
from tests.fixtures.engines import on_plain
from tests.fixtures.service import Process, free_port
from tests.fixtures.waiting import DEADLINE_S, eventually


def start(url: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "app.cli", "load", *arguments, "--url", url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(load: subprocess.Popen[str]) -> tuple[int, dict[str, str], str]:
    """Returns the exit status, the table by the names of its rows, and standard error."""
    with load:
        try:
            output, errors = load.communicate(timeout=100)
        finally:
            load.kill()
    return load.returncode, table_of(output), errors


def run(url: str, *arguments: str) -> tuple[int, dict[str, str], str]:
    """Runs a load test in this process, and in its main thread, since it listens to signals; returns the same."""
    ran = CliRunner().invoke(cli, ["load", *arguments, "--url", url], prog_name="wattline")
    return ran.exit_code, table_of(ran.stdout), ran.stderr


def table_of(output: str) -> dict[str, str]:
    return dict(re.findall(r"^ *(\S.*?) {2,}(\S.*?) *$", output, flags=re.MULTILINE))


def figures(table: dict[str, str], *names: str) -> list[int]:
    return [int(table[name].replace(",", "")) for name in names]


def milliseconds(value: str) -> float:
    return float(value.removesuffix(" ms").replace(",", ""))


def stored(connection: psycopg.Connection) -> tuple[int, ...]:
    row = connection.execute(
        "SELECT (SELECT count(*) FROM meter_reading), (SELECT count(*) FROM vehicle_reading)"
    ).fetchone()
    assert row is not None
    return row


def refusal(*arguments: str, url: str) -> str:
    refused = command("load", *arguments, "--url", url)
    assert (refused.returncode, refused.stdout) == (1, "")
    (line,) = refused.stderr.splitlines()
    return line


@on_plain
def test_each_kind_sends_its_readings_and_finds_them_all(
    server_process: Process, connection: psycopg.Connection
) -> None:
    before = 0
    for arguments, least in (
        (["single", "--devices", "3"], 6),
        (["full", "--devices", "40", "--batch", "7"], 80),
        (["load", "--devices", "20", "--rate", "500", "--minutes", "0.02", "--batch", "100"], 600),
        (["realistic", "--devices", "100", "--minutes", "0.02"], 1),
    ):
        status, table, errors = run(server_process.base_url, *arguments)
        assert (status, errors) == (0, ""), arguments
        sent, inserted, duplicates, distinct, found = figures(
            table, "sent", "inserted", "duplicates", "distinct, acknowledged", "of these in the service"
        )
        rows = sum(stored(connection)) - before
        before += rows
        assert sent >= least
        assert sent == least or "realistic" in arguments
        assert sent == inserted + duplicates
        assert inserted == distinct == found == rows
        assert figures(table, "rejected", "unanswered", "lost") == [0, 0, 0]
        latencies = [milliseconds(table[f"latency {name}"]) for name in ("p50", "p95", "p99", "max")]
        assert latencies[0] > 0
        assert latencies == sorted(latencies)


@on_plain
def test_readings_that_were_acknowledged_and_are_gone_count_as_lost(
    server_process: Process, connection: psycopg.Connection, database_url: str
) -> None:
    load = start(
        server_process.base_url, "load", "--devices", "5", "--rate", "100", "--minutes", "0.08", "--batch", "20"
    )
    eventually(lambda: sum(stored(connection)) >= 200)
    gone = connection.execute("DELETE FROM meter_reading WHERE ts < now() - INTERVAL '0.2 s'").rowcount
    gone += connection.execute("DELETE FROM vehicle_reading WHERE vehicle_id = 1").rowcount
    while load.poll() is None:
        # On TimescaleDB an answer is known to be complete after the next refresh.
        refresh_aggregates(database_url, None, None)
        time.sleep(1)
    status, table, errors = finish(load)
    assert gone > 50
    assert figures(table, "sent", "inserted", "distinct, acknowledged") == [480, 480, 480]
    assert figures(table, "lost", "of these in the service") == [gone, 480 - gone]
    assert (status, errors) == (1, f"wattline: {gone} of 480 acknowledged readings are lost.\n")


@on_plain
def test_a_service_killed_and_started_again_loses_nothing(
    server_process: Process, connection: psycopg.Connection
) -> None:
    load = start(
        server_process.base_url, "load", "--devices", "50", "--rate", "2000", "--minutes", "0.1", "--batch", "100"
    )
    eventually(lambda: sum(stored(connection)) >= 2_000)
    server_process.signal_all(signal.SIGKILL)
    server_process.popen.wait()
    server_process.start()
    status, table, errors = finish(load)
    sent, inserted, duplicates, again = figures(table, "sent", "inserted", "duplicates", "batches sent again")
    assert (status, errors) == (0, "")
    assert sent == inserted + duplicates == 12_000
    assert again > 0
    assert figures(table, "lost", "unanswered", "distinct, acknowledged") == [0, 0, 12_000]
    assert sum(stored(connection)) == 12_000


@on_plain
def test_a_stall_of_the_service_shows_in_the_latency_and_costs_no_reading(
    server_process: Process, connection: psycopg.Connection
) -> None:
    load = start(
        server_process.base_url, "load", "--devices", "50", "--rate", "100", "--minutes", "0.1", "--batch", "1"
    )
    eventually(lambda: sum(stored(connection)))
    server_process.signal_all(signal.SIGSTOP)
    time.sleep(2)
    server_process.signal_all(signal.SIGCONT)
    status, table, _ = finish(load)
    assert status == 0
    assert figures(table, "sent", "inserted") == [600, 600]
    # A third of the readings were due in the stall; only 16 could wait for an answer in it.
    assert milliseconds(table["latency p95"]) > 1_000
    assert milliseconds(table["latency max"]) >= 1_900


@on_plain
def test_ctrl_c_ends_it_early_with_the_table_of_what_was_sent(
    server_process: Process, connection: psycopg.Connection
) -> None:
    load = start(server_process.base_url, "load", "--devices", "5", "--rate", "200", "--minutes", "60", "--batch", "10")
    eventually(lambda: sum(stored(connection)) >= 200)
    load.send_signal(signal.SIGINT)
    status, table, errors = finish(load)
    assert (status, errors) == (0, "")
    assert figures(table, "sent", "lost", "unanswered") == [sum(stored(connection)), 0, 0]


@on_plain
def test_refused_readings_are_told_by_code_and_are_no_success(server_process: Process) -> None:
    port = free_port()
    with answering(port, 413, b'{"code": "batch_too_large"}', server_process.base_url):
        status, table, errors = run(f"http://127.0.0.1:{port}", "full", "--devices", "5")
    assert (status, errors) == (1, "wattline: 10 readings were rejected.\n")
    assert figures(table, "sent", "rejected", "batch_too_large", "lost") == [10, 10, 10, 0]


@contextmanager
def answering(port: int, status: int, body: bytes, ready: str | None = None) -> Iterator[None]:
    """Answers each POST like this; and each GET too, unless a service answers it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self._answer(status, body)

        def do_GET(self) -> None:
            if ready is None:
                self._answer(status, body)
            else:
                self._answer(200, httpx.get(ready + self.path, timeout=DEADLINE_S).content)

        def _answer(self, status: int, body: bytes) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


def test_a_wrong_number_is_a_wrong_use() -> None:
    for option in (["--minutes", "nan"], ["--minutes", "inf"], ["--minutes", "0"], ["--rate", "0"], ["--batch", "1.5"]):
        refused = command("load", "load", *option)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"Error: Invalid value for '{option[0]}': " in refused.stderr


def test_a_wrong_address_is_one_line() -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert refusal("single", url=nowhere).startswith(f"wattline: {nowhere} cannot be reached: ")
    for url in ("nonsense", "http://127.0.0.1:port", "http://", "ftp://127.0.0.1"):
        assert url in refusal("single", url=url)
    for body in (b"<html>", b"[]", b"\xff", b""):
        port = free_port()
        with answering(port, 200, body):
            line = refusal("single", url=f"http://127.0.0.1:{port}")
        assert line == f"wattline: No Wattline is ready at http://127.0.0.1:{port}: status 200."


@on_plain
def test_through_a_broker_what_it_acknowledged_is_looked_for_in_the_service(
    database_url: str, server_process: Process, connection: psycopg.Connection, broker: Broker
) -> None:
    via = ["--via", "mqtt", "--broker", broker.url]
    status, table, errors = run(server_process.base_url, "single", "--devices", "1", *via)
    assert (status, errors) == (1, "wattline: 2 readings were rejected.\n")
    assert figures(table, "No matching subscribers") == [2]

    load = ["load", "--devices", "5", "--rate", "500", "--minutes", "0.04", "--batch", "50"]
    with consuming(database_url, broker):
        for arguments, readings in (["single", "--devices", "4"], 8), (load, 1_200):
            status, table, errors = run(server_process.base_url, *arguments, *via)
            assert (status, errors) == (0, "")
            assert figures(table, "sent", "acknowledged by the broker", "of these in the service") == [readings] * 3
            assert figures(table, "lost", "rejected") == [0, 0]
    assert sum(stored(connection)) == 1_208
    assert connection.execute("SELECT count(*) FROM quarantine").fetchall() == [(0,)]


@on_plain
def test_a_broker_that_cannot_be_used_is_one_line(server_process: Process) -> None:
    nowhere = f"mqtt://127.0.0.1:{free_port()}"
    line = refusal("single", "--via", "mqtt", "--broker", nowhere, url=server_process.base_url)
    assert line.startswith(f"wattline: The broker at {nowhere} cannot be used: ")
    for url in ("nonsense", "mqtt://", "http://127.0.0.1", "mqtt://me:secret@127.0.0.1:99999"):
        refused = command("load", "single", "--via", "mqtt", "--broker", url)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"Invalid value for --broker: it must be {MQTT_URL}" in " ".join(refused.stderr.split())
        assert "secret" not in refused.stderr
    assert "WATTLINE_MQTT_URL" in refusal("single", "--via", "mqtt", url=server_process.base_url)
    line = refusal("single", "--via", "mqtt", "--broker", "mqtt://me:secret@127.0.0.1:1", url=server_process.base_url)
    assert "secret" not in line
