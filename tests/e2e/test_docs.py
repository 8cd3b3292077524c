"""The documents under docs/ are true: each command works, in its order, and answers what stands below it."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from app.ops.refresh import refresh_aggregates
from tests.fixtures.alerts import judge_all
from tests.fixtures.commands import command
from tests.fixtures.database import Server
from tests.fixtures.engines import on_plain
from tests.fixtures.readings import midnight, random_readings, store
from tests.fixtures.sending import meter, minutes_ago
from tests.fixtures.service import Process

DOCS = Path(__file__).parents[2] / "docs"
ADDRESS = "http://127.0.0.1:8000"
PROGRAMS = ".venv/bin/"

# These depend on engine, version and moment, so only their type, or null, is compared.
VARIES = {"asOf", "judgedTo", "materializedThrough", "lagSeconds", "readingsPerSecond"} | {
    "version",
    "engine",
    "postgresql",
    "timescaledb",
}
VARIES |= {"neededRevision", "revision", "checkedAt"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
NOW_SECONDS = 1_700_000_000


class Step(NamedTuple):
    """A shell block, and its output: the block of another language that follows it, if there is one."""

    shell: str
    language: str
    shown: str


def blocks(name: str) -> list[tuple[str, str]]:
    """Returns the language and text of each fenced block of a document; diagrams have no language."""
    found: list[tuple[str, str]] = re.findall(
        r"^```(\w*)\n(.*?)^```$", (DOCS / name).read_text(), flags=re.DOTALL | re.MULTILINE
    )
    return found


def steps(name: str) -> list[Step]:
    found = blocks(name)
    following = [*found[1:], ("", "")]
    answers = [(language, text) if language in ("json", "text") else ("", "") for language, text in following]
    return [Step(text, *answer) for (language, text), answer in zip(found, answers, strict=True) if language == "sh"]


def save_programs(name: str, directory: Path) -> None:
    """Saves the programs that a document shows; the first line of each names its file."""
    for language, text in blocks(name):
        if language == "python":
            first, _, program = text.partition("\n")
            (directory / first.removeprefix("# ")).write_text(program)


def run(shells: list[str], base_url: str, database_url: str, directory: Path) -> list[str]:
    """Returns the output of each part; one shell runs them, so that variables and functions last."""
    end = "-- end of a part --"
    here = str(Path(sys.executable).parent)
    parts = [shell.replace(ADDRESS, base_url).replace(PROGRAMS, f"{here}/") for shell in shells]
    script = 'curl() { command curl --silent --show-error --noproxy "*" "$@"; }\n'
    script += "".join(f"{part}\necho '{end}'\n" for part in parts)
    environment = os.environ | {"DATABASE_URL": database_url, "PATH": os.pathsep.join([here, os.environ["PATH"]])}
    done = subprocess.run(["sh", "-euc", script], capture_output=True, text=True, cwd=directory, env=environment)
    printed = done.stdout.split(f"{end}\n")
    assert done.returncode == 0, f"after {len(printed) - 1} parts: {done.stderr}\n{printed[-1]}"
    assert done.stderr == ""
    return printed[:-1]


def assert_alike(real: Any, shown: Any, where: str) -> None:
    """Compares members, types and, where they do not depend on the moment, values."""
    name = where.rpartition(".")[2]
    if name in VARIES and real is None:
        return
    if name == "warnings" and shown and "detail" in shown[0]:  # of them, a test's database may have others, or none yet
        assert all(warning.keys() == shown[0].keys() for warning in real)
        return
    kinds = {type(real), type(shown)}
    assert len(kinds) == 1 or (name in VARIES and kinds in ({str, type(None)}, {int, float})), f"{where}: {real!r}"
    if isinstance(shown, dict):
        assert real.keys() == shown.keys(), where
        for member in shown:
            assert_alike(real[member], shown[member], f"{where}.{member}")
    elif isinstance(shown, list):
        assert len(real) == len(shown), f"{where}: {real!r}"
        for position, (one, other) in enumerate(zip(real, shown, strict=True)):
            assert_alike(one, other, f"{where}.{position}")
    elif isinstance(shown, str) and TIME.fullmatch(shown):
        assert TIME.fullmatch(real), f"{where}: {real!r}"
        assert datetime.fromisoformat(real).tzinfo is not None
    elif isinstance(shown, int | float) and shown > NOW_SECONDS:
        assert real > NOW_SECONDS, f"{where}: {real!r}"
    elif name not in VARIES:
        assert real == (pytest.approx(shown, rel=1e-9) if isinstance(shown, float) else shown), f"{where}: {real!r}"


def assert_shown(name: str, base_url: str, database_url: str, directory: Path) -> None:
    shown = steps(name)
    save_programs(name, directory)
    printed = run([step.shell for step in shown], base_url, database_url, directory)
    for number, (step, output) in enumerate(zip(shown, printed, strict=True), 1):
        where = f"{name}, command {number}"
        if step.language == "json":
            assert_alike(json.loads(output), json.loads(step.shown), where)
        elif step.language == "text":
            real, expected = (TIME.sub("TIME", text.replace("\r", "")) for text in (output, step.shown))
            assert real == expected, where


def test_each_command_answers_what_is_shown_below_it(
    server_process: Process, database_url: str, tmp_path: Path
) -> None:
    """api.md begins with an empty Wattline; the other pages come after it, or after each other."""
    for name in ("api.md", "efficiency.md", "gateways.md"):
        assert_shown(name, server_process.base_url, database_url, tmp_path)
        # Time would do this: older readings that come later are then missing until the next refresh.
        refresh_aggregates(database_url, None, None)


def test_the_example_of_efficiency_md_opens_no_alert_about_silence(
    server_process: Process, database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Its readings are yesterday's."""
    assert_shown("efficiency.md", server_process.base_url, database_url, tmp_path)
    asyncio.run(judge_all(database_url))
    assert connection.execute("SELECT count(*) FROM reported_hour").fetchone() == (3,)
    assert connection.execute("SELECT FROM alert WHERE kind = 'no_data'").fetchall() == []


@on_plain
def test_each_command_of_an_import_answers_what_is_shown_below_it(database_url: str, tmp_path: Path) -> None:
    """test_import.py tests imports on both engines."""
    assert_shown("import.md", ADDRESS, database_url, tmp_path)


EXPORTED = {
    "meter": "SELECT external_id, ts, ac_milliwh, voltage_centiv FROM meter_reading JOIN meter ON id = meter_id",
    "vehicle": """
        SELECT vehicle.external_id, ts, meter.external_id, dc_milliwh, soc_centipercent, battery_temp_centic
        FROM vehicle_reading JOIN vehicle ON vehicle.id = vehicle_id LEFT JOIN meter ON meter.id = meter_id
    """,
}


@on_plain
async def test_what_import_md_exports_by_sql_is_imported_as_it_was(
    server: Server, database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    await store(database_url, *random_readings(1, midnight(3), 2, 500))
    (exports,) = (text for language, text in blocks("import.md") if language == "sql")
    files = []
    for number, export in enumerate(exports.split(";\n")[:-1]):
        files.append(tmp_path / f"{number}.csv")
        with connection.cursor().copy(export.encode()) as copy:
            files[-1].write_bytes(b"".join(copy))
    empty = server.clone()
    try:
        done = command("import", *map(str, files), DATABASE_URL=empty)
        assert done.returncode == 0, done.stderr
        with psycopg.connect(empty) as imported:
            for query in EXPORTED.values():
                before, after = (one.execute(query.encode()).fetchall() for one in (connection, imported))
                assert before
                assert set(after) == set(before)
    finally:
        server.drop(empty)


def send(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts the program of gateways.md on readings.ndjson."""
    with (directory / "readings.ndjson").open() as readings:
        return subprocess.Popen(
            [sys.executable, "send.py", *arguments],
            cwd=directory,
            stdin=readings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@on_plain
def test_the_sender_outlives_a_service_that_is_away(
    server_process: Process, connection: psycopg.Connection, tmp_path: Path
) -> None:
    save_programs("gateways.md", tmp_path)
    readings = [meter(minutes_ago(2), 0.1, meter_id=f"M{n}") for n in range(2_400)] + [meter(minutes_ago(2), -1)]
    (tmp_path / "readings.ndjson").write_text("".join(json.dumps(reading) + "\n" for reading in readings))

    server_process.signal_all(signal.SIGKILL)
    server_process.popen.wait()
    sender = send(tmp_path, server_process.base_url)
    assert sender.stderr
    first = sender.stderr.readline()
    server_process.start()
    server_process.await_ready()
    printed, said = sender.communicate()

    assert sender.returncode == 0, said
    assert [line.split(",")[0] for line in printed.splitlines()] == ["inserted 1000", "inserted 1000", "inserted 400"]
    *waits, refused = said.splitlines()
    for wait in [first.strip(), *waits]:
        assert re.fullmatch(rf"no answer from {server_process.base_url}, again in \d+ s", wait), wait
    assert refused.startswith("energy_out_of_range kwhConsumedAc {")
    assert connection.execute("SELECT count(*) FROM meter_reading").fetchone() == (2_400,)

    printed, _ = send(tmp_path, server_process.base_url).communicate()
    assert printed.splitlines()[0] == "inserted 0, duplicates 1000, conflicts 0, late 0"
    assert connection.execute("SELECT count(*) FROM meter_reading").fetchone() == (2_400,)


def test_the_sender_gives_up_on_what_cannot_succeed(server_process: Process, tmp_path: Path) -> None:
    save_programs("gateways.md", tmp_path)
    reading = json.dumps(meter(minutes_ago(1), voltage="x" * 17 * 1024 * 1024))
    (tmp_path / "readings.ndjson").write_text(reading)
    sender = send(tmp_path, server_process.base_url)
    _, said = sender.communicate()
    assert (sender.returncode, said) == (
        1,
        "413 body_too_large: The body is too large: a batch has at most 16 MiB decoded, any other body 64 KiB.\n",
    )
    assert server_process.get("/v1/analytics/meters/states").json() == []


def test_the_sender_skips_lines_that_are_no_json(server_process: Process, tmp_path: Path) -> None:
    save_programs("gateways.md", tmp_path)
    lines = [json.dumps(meter(minutes_ago(1))), "", "{'meterId': 1}", "\xff", json.dumps(meter(minutes_ago(2)))]
    (tmp_path / "readings.ndjson").write_text("\n".join(lines), encoding="latin-1")
    printed, said = send(tmp_path, f"{server_process.base_url}/").communicate()
    assert printed == "inserted 2, duplicates 0, conflicts 0, late 0\n"
    assert [line.partition(":")[0] for line in said.splitlines()] == ["line 3 is not JSON", "line 4 is not JSON"]


def test_the_path_of_the_senders_url_goes_before_that_of_the_call(server_process: Process, tmp_path: Path) -> None:
    save_programs("gateways.md", tmp_path)
    (tmp_path / "readings.ndjson").write_text(json.dumps(meter(minutes_ago(1))))
    _, said = send(tmp_path, f"{server_process.base_url}/elsewhere").communicate()
    assert said.startswith("404 not_found: ")


@pytest.mark.parametrize("arguments", [[], ["127.0.0.1:8000"], ["ftp://127.0.0.1"], [ADDRESS, "readings.ndjson"]])
def test_the_sender_says_how_it_is_used(arguments: list[str], tmp_path: Path) -> None:
    save_programs("gateways.md", tmp_path)
    (tmp_path / "readings.ndjson").touch()
    sender = send(tmp_path, *arguments)
    _, said = sender.communicate()
    assert (sender.returncode, said) == (1, "usage: python3 send.py http://HOST:PORT < readings.ndjson\n")
