"""What foreign pages in a real browser get from the service, and get into it: nothing."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import psycopg
import pytest
from playwright.sync_api import Browser, Page

from tests.fixtures.browser import WAIT_MS, chromium, needs_chromium
from tests.fixtures.engines import on_plain
from tests.fixtures.sending import meter, minutes_ago
from tests.fixtures.service import Process, free_port, serving
from tests.fixtures.waiting import eventually

pytestmark = [needs_chromium, on_plain]

# Every way in which a page may send a body, first those that ask nobody, then those with a preflight. The form makes a
# text of the sign between the name and the value of its field.
WRITE = """
async ([url, body]) => {
    const form = Object.assign(document.createElement("form"), {action: url, method: "POST", enctype: "text/plain"});
    const end = body.endsWith("]") ? 2 : 1;
    const field = {name: body.slice(0, -end) + ', "x": "', value: '"' + body.slice(-end)};
    form.append(Object.assign(document.createElement("input"), field));
    const frame = Object.assign(document.createElement("iframe"), {name: "hidden"});
    form.target = "hidden";
    document.body.append(form, frame);
    form.submit();
    const send = options => fetch(url, {method: "POST", ...options}).catch(() => null);
    const typed = new Blob([body], {type: "application/json"});
    for (const each of [new Blob([body]), body, new URLSearchParams(body)]) {
        await send({mode: "no-cors", body: each});
        await send({mode: "no-cors", body: each, referrerPolicy: "no-referrer"});
        navigator.sendBeacon(url, each);
    }
    await send({body: new Blob([body])});
    await send({body, headers: {"Content-Type": "application/json"}});
    navigator.sendBeacon(url, typed);
}
"""
WRITES, PREFLIGHTS = 11, 2
READ = """
urls => Promise.all(urls.map(url => fetch(url).then(answer => answer.text(), () => "failed")))
"""
READS = "/", "/health/live", "/metrics", "/schema", "/v1/analytics/meters/states", "/v1/analytics/fleet/live"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium("--host-resolver-rules=MAP evil.example 127.0.0.1") as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    page.set_default_timeout(WAIT_MS)
    yield page
    page.close()


@contextmanager
def logging_service(database_url: str, log: Path, port: int) -> Iterator[Process]:
    """Runs the real server on a database with a meter that has sent one reading."""
    with (
        log.open("wb") as stderr,
        serving(database_url, port=port, stderr=stderr, WATTLINE_LOG_LEVEL="info") as process,
    ):
        answer = process.post("/v1/telemetry", json=meter(minutes_ago(5), meter_id="ours"))
        assert answer.status_code == httpx.codes.OK
        yield process


@contextmanager
def foreign_site(directory: Path, port: int) -> Iterator[None]:
    """Serves an empty page from that port."""
    (directory / "index.html").write_text("<!doctype html><title>Foreign</title><body>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


def write_from(page: Page, service: str) -> None:
    reading = json.dumps([meter(minutes_ago(1), meter_id="theirs")])
    mapping = json.dumps({"vehicleId": "theirs", "meterId": "ours"})
    for path, body in ("/v1/telemetry", reading), ("/v1/ingestion/mapping", mapping):
        page.evaluate(WRITE, [service + path, body])


def answered(log: Path, method: str) -> Counter[int]:
    """Returns how many requests of pages the service has answered with each status."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    requests = [line for line in lines if line["event"] == "request" and line["method"] == method]
    return Counter(line["status"] for line in requests[1 if method == "POST" else 0 :])


def stored(connection: psycopg.Connection) -> list[str]:
    rows = connection.execute("SELECT external_id FROM device UNION ALL SELECT 'mapping' FROM vehicle_meter").fetchall()
    return sorted(name for (name,) in rows)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_foreign_page_gets_nothing_in_or_out(
    host: str, database_url: str, connection: psycopg.Connection, page: Page, tmp_path: Path
) -> None:
    log, port, other_port = tmp_path / "log", free_port(), free_port()
    with logging_service(database_url, log, port) as process, foreign_site(tmp_path, other_port):
        page.goto(f"http://{host}:{other_port}/")
        write_from(page, process.base_url)
        came = {"POST": {403: 2 * WRITES}, "OPTIONS": {403: 2 * PREFLIGHTS}}
        eventually(lambda: {method: answered(log, method) for method in came} == came, shown=log.read_text)
        assert page.evaluate(READ, [process.base_url + path for path in READS]) == ["failed"] * len(READS)
    assert stored(connection) == ["ours"]


def test_a_page_of_our_own_may_write(
    database_url: str, connection: psycopg.Connection, page: Page, tmp_path: Path
) -> None:
    with logging_service(database_url, tmp_path / "log", free_port()) as process:
        page.goto(process.base_url)
        send = """body => fetch("/v1/telemetry", {method: "POST", body, headers: {"Content-Type": "application/json"}})
            .then(answer => answer.status)"""
        assert page.evaluate(send, json.dumps(meter(minutes_ago(1), meter_id="of-a-page"))) == 200
    assert stored(connection) == ["of-a-page", "ours"]


def test_a_page_whose_own_name_leads_here_gets_nothing_in_or_out(
    database_url: str, connection: psycopg.Connection, page: Page, tmp_path: Path
) -> None:
    log, port = tmp_path / "log", free_port()
    evil = f"http://evil.example:{port}"
    with foreign_site(tmp_path, port):
        page.goto(evil)
    # Its name and port lead to the service now.
    with logging_service(database_url, log, port):
        answers = page.evaluate(READ, [evil + path for path in READS])
        assert [json.loads(answer)["code"] for answer in answers] == ["misdirected_request"] * len(READS)
        write_from(page, evil)
        # Chromium tries again what is answered with 421, over a new connection.
        eventually(lambda: answered(log, "POST").total() >= 2 * (WRITES + PREFLIGHTS), shown=log.read_text)
        assert set(answered(log, "POST")) == {421}
    assert stored(connection) == ["ours"]
