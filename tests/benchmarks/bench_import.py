"""`wattline import` against a bare binary COPY of the same rows, in turns; each into a database of its own."""

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median

import psycopg
from pytest_benchmark.fixture import BenchmarkFixture

from app.ingest.batch import Row
from app.ingest.store.statements import METER, VEHICLE, StreamSql
from tests.fixtures.database import Server
from tests.fixtures.files import history, peak_bytes, write_csv
from tests.fixtures.readings import midnight

READINGS = 1_000_000
DEVICES = 1_000
ROUNDS = 5
COPY_READINGS = 50_000


def import_file(url: str, file: Path) -> tuple[float, float, int]:
    """Returns the seconds that the command reports, without its start; its CPU seconds; its peak memory."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "import", str(file)],
        env=os.environ | {"DATABASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, peak_bytes(process))
        time.sleep(0.05)
    printed = process.communicate()[0].decode()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = re.search(r"inserted 1,000,000 .* ([\d,]+) readings/s", printed)
    assert found, printed
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return READINGS / int(found[1].replace(",", "")), cpu, peak


def rows_of(connection: psycopg.Connection, statements: StreamSql) -> list[Row]:
    """Returns the stored rows of a stream in order of time, as COPY takes them."""
    found = re.search(r"COPY (\w+) \(ts, (.*?)\)", statements.copy)
    assert found
    since_2000 = "(extract(epoch FROM ts) * 1000000)::bigint - 946684800000000"
    return connection.execute(f"SELECT {since_2000}, {found[2]} FROM {found[1]} ORDER BY ts".encode()).fetchall()  # noqa: S608


def copy_seconds(url: str, rows: dict[StreamSql, list[Row]]) -> float:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT prepare_days(now() - INTERVAL '28 days', now())")
        started = time.perf_counter()
        for statements, of_stream in rows.items():
            remaining = iter(of_stream)
            while part := list(islice(remaining, COPY_READINGS)):
                with connection.transaction(), connection.cursor().copy(statements.copy.encode()) as copy:
                    copy.set_types(statements.copy_types)
                    for row in part:
                        copy.write_row(row)
        return time.perf_counter() - started


def test_import_against_bare_copy(
    server: Server, tmp_path: Path, benchmark: BenchmarkFixture, report: Callable[[str], None]
) -> None:
    file = tmp_path / "history.csv"
    write_csv(file, history(READINGS, midnight(20), devices=DEVICES))
    rows: dict[StreamSql, list[Row]] = {}
    imports: list[tuple[float, float, int]] = []
    copies: list[float] = []

    def both() -> None:
        url = server.clone()
        imports.append(import_file(url, file))
        if not rows:
            with psycopg.connect(url) as connection:
                rows.update({statements: rows_of(connection, statements) for statements in (METER, VEHICLE)})
        server.drop(url)
        url = server.clone()
        copies.append(copy_seconds(url, rows))
        server.drop(url)

    benchmark.pedantic(both, rounds=ROUNDS)  # type: ignore[no-untyped-call]
    seconds, cpu, peak = zip(*imports, strict=True)
    ratios = [copy / own for copy, own in zip(copies, seconds, strict=True)]
    benchmark.extra_info["ratio"] = median(ratios)
    report(
        f"import {READINGS / median(seconds):,.0f} readings/s, {median(cpu):.1f} s of CPU, "
        f"{max(peak) / 1e6:.0f} MB at most; bare COPY {READINGS / median(copies):,.0f}, "
        f"ratio median {median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f} of {ROUNDS} rounds)"
    )
