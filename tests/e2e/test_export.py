"""Exports by the real server, as a client meets them: whole, or visibly broken off; and imported again."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path

import httpx
import psycopg
import pytest

from app.analytics.export import PAGE_READINGS
from tests.fixtures.database import Server
from tests.fixtures.readings import midnight
from tests.fixtures.sending import problem, stamp
from tests.fixtures.service import Process, serving
from tests.fixtures.waiting import DEADLINE_S, eventually

DEVICES = [("meters", "M1"), ("meters", "M2"), ("vehicles", "V1"), ("vehicles", "V2")]
# MANY has this many readings; the buffers of a socket hold less than a third of them.
COUNT = 300_000
TICK = timedelta(seconds=0.3)

FILL = f"""
    INSERT INTO meter (external_id) VALUES ('M1'), ('M2'), ('MANY'), ('OLD');
    INSERT INTO vehicle (external_id) VALUES ('V1'), ('V2');
    SELECT prepare_days(now() - INTERVAL '9 days', now());
    SELECT prepare_days(now() - INTERVAL '20 days', now() - INTERVAL '19 days');
    INSERT INTO meter_reading (ts, meter_id, ac_milliwh, voltage_centiv)
    SELECT now() - INTERVAL '6 days' + n * INTERVAL '1 minute 3.000001 seconds', 1 + n % 2,
           (ARRAY[0, 1, 479600, 1000000000])[1 + n % 4], (ARRAY[NULL, 0, 23051, 100000])[1 + n % 4]
    FROM generate_series(1, 5000) AS n;
    INSERT INTO vehicle_reading (ts, vehicle_id, meter_id, dc_milliwh, soc_centipercent, battery_temp_centic)
    SELECT now() - INTERVAL '6 days' + n * INTERVAL '59.999 seconds', 1 + n % 2,
           (ARRAY[NULL, 1, 2])[1 + n % 3], (ARRAY[7, 422700, 999999999])[1 + n % 3],
           (ARRAY[0, NULL, 2070, 10000])[1 + n % 4], (ARRAY[-6000, 15000, NULL, -1])[1 + n % 4]
    FROM generate_series(1, 5000) AS n;
    INSERT INTO meter_reading (ts, meter_id, ac_milliwh)
    SELECT date_trunc('day', now(), 'UTC') - INTERVAL '5 days' + n * INTERVAL '0.3 seconds', 3, n
    FROM generate_series(1, {COUNT}) AS n;
    INSERT INTO meter_reading (ts, meter_id, ac_milliwh)
    SELECT date_trunc('day', now(), 'UTC') - INTERVAL '20 days' + n * INTERVAL '0.3 seconds', 4, n
    FROM generate_series(1, {COUNT * 2 // 3}) AS n;
"""  # noqa: S608
STORED = """
    SELECT external_id, ts, ac_milliwh, NULL, voltage_centiv, NULL FROM meter_reading JOIN meter ON id = meter_id
    WHERE external_id IN ('M1', 'M2')
    UNION ALL
    SELECT vehicle.external_id, ts, dc_milliwh, meter.external_id, soc_centipercent, battery_temp_centic
    FROM vehicle_reading JOIN vehicle ON vehicle.id = vehicle_id LEFT JOIN meter ON meter.id = meter_id
    ORDER BY 1, 2
"""
DROP = {
    "plain": f"DROP TABLE meter_reading_{midnight(20):%Y%m%d}",
    "timescale": f"SELECT drop_chunks('meter_reading', '{stamp(midnight(19))}'::timestamptz)",
}
OTHER = "/v1/analytics/meters/states"


@pytest.fixture(scope="module")
def filled_url(server: Server) -> Iterator[str]:
    url = server.clone()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(FILL.encode())
    yield url
    server.drop(url)


@pytest.fixture(scope="module")
def process(filled_url: str) -> Iterator[Process]:
    """Runs a server with a single connection for answers."""
    with serving(filled_url, WATTLINE_POOL_MAX_SIZE="1") as process:
        yield process


@pytest.fixture
def connection(filled_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(filled_url, autocommit=True) as connection:
        yield connection


def path_of(kind: str, device: str, hours: int = 600) -> str:
    return f"/v1/analytics/{kind}/{device}/readings?hours={hours}"


@contextmanager
def begun(process: Process, device: str = "MANY") -> Iterator[Iterator[bytes]]:
    """Begins an export; the client has taken the first bytes, and no more yet."""
    with httpx.stream("GET", process.base_url + path_of("meters", device), timeout=DEADLINE_S) as answer:
        assert answer.status_code == httpx.codes.OK
        parts = answer.iter_bytes()
        yield chain([next(parts)], parts)


def test_what_is_exported_and_imported_again_is_the_same(
    server: Server, process: Process, connection: psycopg.Connection, tmp_path: Path
) -> None:
    for kind, device in DEVICES:
        (tmp_path / f"{device}.csv").write_bytes(process.get(path_of(kind, device)).content)
    other = server.clone()
    imported = subprocess.run(
        [sys.executable, "-m", "app.cli", "import", *sorted(map(str, tmp_path.iterdir()))],
        env=os.environ | {"DATABASE_URL": other},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert imported.returncode == 0, imported.stderr
    with psycopg.connect(other) as empty_before:
        stored = empty_before.execute(STORED).fetchall()
    assert len(stored) == 10_000
    assert stored == connection.execute(STORED).fetchall()
    server.drop(other)


def test_the_lines_may_be_sent_again_as_they_are(process: Process) -> None:
    for kind, device in DEVICES:
        answer = process.get(path_of(kind, device), headers={"Accept": "application/x-ndjson"})
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        instants = [json.loads(line)["timestamp"] for line in answer.text.splitlines()]
        assert instants == sorted(instants)
        receipt = process.post(
            "/v1/telemetry", content=answer.content, headers={"Content-Type": "application/x-ndjson"}
        ).json()
        counted = {name: receipt[name] for name in ("received", "duplicates", "conflicts")}
        assert counted == {"received": 2_500, "duplicates": 2_500, "conflicts": 0}


def test_a_window_is_exact_and_no_page_repeats_or_leaves_out_a_reading(process: Process) -> None:
    for first, count in ((1, 1), (100, PAGE_READINGS - 1), (100, PAGE_READINGS), (100, PAGE_READINGS + 1), (1, COUNT)):
        start, end = (midnight(5) + n * TICK for n in (first, first + count))
        assert exported(process, start, end) == [n / 1_000_000 for n in range(first, first + count)]
    tick = timedelta(microseconds=1)
    assert exported(process, start + tick, start + 2 * tick) == []


def exported(process: Process, start: datetime, end: datetime) -> list[float]:
    """Returns the energies of MANY in that window."""
    url = f"{process.base_url}/v1/analytics/meters/MANY/readings"
    answer = httpx.get(url, params={"from": stamp(start), "to": stamp(end)}, timeout=DEADLINE_S)
    head, *rows = csv.reader(io.StringIO(answer.text))
    assert head == ["timestamp", "meterId", "kwhConsumedAc", "kwhRegisterAc", "voltage"]
    return [float(energy) for _, _, energy, *_ in rows]


def test_a_client_that_takes_its_time_holds_neither_connection_nor_lock_nor_memory(
    process: Process, connection: psycopg.Connection
) -> None:
    with begun(process) as parts:
        before = process.peak_memory_bytes()
        await_standstill(connection)
        # The only connection is free, and a partition could be dropped.
        assert process.get(OTHER).status_code == httpx.codes.OK
        with connection.transaction(force_rollback=True):
            connection.execute("SET LOCAL lock_timeout = '10s'")
            connection.execute("LOCK TABLE meter_reading IN ACCESS EXCLUSIVE MODE")
        lines = sum(part.count(b"\n") for part in parts)
        assert lines == COUNT + 1
        assert process.peak_memory_bytes() - before < 30_000_000


def await_standstill(connection: psycopg.Connection) -> None:
    """Waits until the service has asked for no page for half a second."""
    asked = """
        SELECT FROM pg_stat_activity
        WHERE application_name = 'wattline' AND query = 'COMMIT'
            AND (state <> 'idle' OR state_change > clock_timestamp() - INTERVAL '0.5 seconds')
    """
    eventually(lambda: not connection.execute(asked).fetchall())


def test_a_client_that_goes_away_leaves_nothing_behind(process: Process) -> None:
    for _ in range(5):
        with begun(process):
            pass
        # This takes the only connection.
        assert process.get(OTHER).status_code == httpx.codes.OK


def test_a_transfer_that_cannot_be_finished_is_broken_off(process: Process, connection: psycopg.Connection) -> None:
    with begun(process) as parts:
        connection.execute("ALTER TABLE meter_reading RENAME TO gone")
        try:
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
                list(parts)
        finally:
            connection.execute("ALTER TABLE gone RENAME TO meter_reading")


def test_a_transfer_that_retention_overtakes_is_broken_off(
    process: Process, connection: psycopg.Connection, engine: str
) -> None:
    with begun(process, "OLD") as parts:
        connection.execute(DROP[engine].encode())
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            list(parts)
    answer = process.get(path_of("meters", "OLD"))
    assert answer.text == "timestamp,meterId,kwhConsumedAc,kwhRegisterAc,voltage\r\n"


def test_what_cannot_be_asked_for_is_refused_before_the_transfer(process: Process) -> None:
    for kind in ("meters", "vehicles"):
        problem(process.get(path_of(kind, "nobody")), 404, "unknown_device")
        problem(process.get(path_of(kind, "M1", hours=8_785)), 400, "invalid_time_range")
        problem(process.get(f"{path_of(kind, 'M1')}&from=yesterday"), 400, "invalid_parameter")
        for odd in ("%00", "%F0%9F%98%80", "x" * 5_000, "..", "%0d%0aSet-Cookie:x=1"):
            assert process.get(path_of(kind, odd)).status_code in (400, 404)
