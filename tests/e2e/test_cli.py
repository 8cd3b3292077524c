"""The command `wattline` as an operator meets it: exit status, and one line when it cannot run."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from app import __version__
from app.database import command_connection, shown_url
from app.errors import SetupError
from tests.fixtures import commands
from tests.fixtures.engines import on_plain
from tests.fixtures.service import free_port

COMMANDS = [
    "serve",
    "mqtt",
    "demo",
    "load",
    "migrate",
    "refresh",
    "import",
    "doctor",
    "quarantine",
    "seed",
    "device",
    "alerts",
    "report",
]


def wattline(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """Returns the one line of a command that cannot run."""
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("wattline: ")
    return line.removeprefix("wattline: ")


def test_help_lists_the_commands_and_each_explains_itself() -> None:
    listed = wattline("--help")
    assert listed.returncode == 0
    for command in COMMANDS:
        assert f"  {command} " in listed.stdout
    for command in COMMANDS:
        shown = commands.command(command, "-h")
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout.startswith(f"Usage: wattline {command} ")
    assert wattline("--version").stdout == f"wattline, version {__version__}\n"


def test_a_wrong_use_is_status_2() -> None:
    for arguments in ["nonsense"], ["serve", "--port", "0"], ["serve", "--port", "http"], ["refresh", "--from", "noon"]:
        done = commands.command(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Error: " in done.stderr


def test_wrong_settings_are_one_line_with_key_value_and_type() -> None:
    assert refusal(commands.command("serve", WATTLINE_PORT="8000")).startswith(
        "WATTLINE_PORT is not a setting of Wattline."
    )
    assert refusal(commands.command("migrate", WATTLINE_POOL_MAX_SIZE="many")) == (
        "WATTLINE_POOL_MAX_SIZE is 'many'; it must be a whole number."
    )
    assert refusal(commands.command("refresh", WATTLINE_ENGINE="oracle")) == (
        "WATTLINE_ENGINE is 'oracle'; it must be one of auto, timescale, plain."
    )


def test_an_address_that_others_reach_needs_authentication_off() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):  # noqa: S104
        line = refusal(wattline("serve", "--host", host, DATABASE_URL="postgresql:///nowhere"))
        assert host in line
        assert "WATTLINE_AUTH=off" in line
    assert "--host is 'example.org'" in refusal(wattline("serve", "--host", "example.org"))


def test_serve_without_its_database_is_one_line() -> None:
    url = f"postgresql://127.0.0.1:{free_port()}/wattline"
    line = refusal(wattline("serve", "--port", str(free_port()), DATABASE_URL=url))
    assert line.startswith("The database of DATABASE_URL cannot be reached: ")
    for command in ("migrate", "refresh"):
        assert "127.0.0.1" in refusal(wattline(command, DATABASE_URL=url))


def test_a_database_url_that_is_none_is_one_line() -> None:
    for command in ["serve", "--port", str(free_port())], ["migrate"], ["refresh"]:
        line = refusal(wattline(*command, DATABASE_URL="nonsense"))
        assert line.startswith("The database of DATABASE_URL cannot be reached: the URL must be like postgresql://")


WITH_PASSWORD = {
    "a URL": "postgresql://wattline:open%2Fsesame@127.0.0.1:{port}/wattline",
    "a parameter of a URL": "postgresql://wattline@127.0.0.1:{port}/wattline?password=opensesame",
    "a client's key": "postgresql://wattline@127.0.0.1:{port}/wattline?sslpassword=opensesame&sslmode=disable",
    "keys and values": "host=127.0.0.1 port={port} user=wattline password='open sesame'",
    "no URL": "postgres//wattline:opensesame@127.0.0.1:{port}/wattline",
    "a URL with an unknown parameter": "postgresql://wattline:opensesame@127.0.0.1:{port}/wattline?opensesame",
    "a URL with a slash in the password": "postgresql://wattline:open/sesame@127.0.0.1:{port}/wattline",
    "a URL with a slash and a number": "postgresql://wattline:{port}/sesame@127.0.0.1/wattline",
    "a URL with an @ in the password": "postgresql://wattline:open@sesame@127.0.0.1:{port}/wattline",
    "a URL with a percent in the password": "postgresql://wattline:open%sesame@127.0.0.1:{port}/wattline",
    "a URL with a colon for the @": "postgresql://wattline:opensesame:127.0.0.1:{port}/wattline",
    "keys and values without quotes": "host=127.0.0.1 port={port} user=wattline password=open sesame",
}


@pytest.mark.parametrize("form", ["a URL", "no URL"])
def test_no_command_prints_a_password(form: str) -> None:
    url, port = WITH_PASSWORD[form].format(port=free_port()), str(free_port())
    for command in ["serve", "--port", port], ["demo", "--port", port], ["migrate"], ["refresh"], ["doctor"]:
        done = commands.command(*command, DATABASE_URL=url)
        assert done.returncode == 1
        printed = " ".join((done.stdout + done.stderr).split())
        assert "The database of DATABASE_URL cannot be reached: " in printed
        assert "sesame" not in printed


@pytest.mark.parametrize("form", WITH_PASSWORD)
def test_no_command_about_rows_of_the_database_prints_a_password(form: str) -> None:
    url = WITH_PASSWORD[form].format(port=free_port())
    for arguments in (
        ["quarantine", "list"],
        ["quarantine", "purge", "--all", "--yes"],
        ["device", "list"],
        ["device", "retire", "M1", "--stream", "meter"],
        ["seed", "1", "1"],
    ):
        done = commands.command(*arguments, DATABASE_URL=url)
        assert done.returncode == 1
        assert "The database of DATABASE_URL cannot be reached: " in done.stderr
        assert "sesame" not in done.stdout + done.stderr


@pytest.mark.parametrize("form", WITH_PASSWORD)
def test_no_form_of_a_url_shows_its_password(form: str) -> None:
    url = WITH_PASSWORD[form].format(port=free_port())
    with pytest.raises(SetupError) as refused, command_connection(url):
        pass
    assert "sesame" not in f"{refused.value} {shown_url(url)}"


@on_plain
def test_serve_on_a_port_in_use_is_one_line(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal(wattline("serve", "--port", str(port), DATABASE_URL=database_url))
    assert str(port) in line


def test_a_database_is_migrated_before_it_is_served_or_refreshed(empty_database_url: str, engine: str) -> None:
    line = refusal(wattline("serve", "--port", str(free_port()), DATABASE_URL=empty_database_url))
    assert line.startswith("The database is at revision None, this version needs ")
    assert "wattline migrate" in line
    assert "wattline migrate" in refusal(commands.command("refresh", DATABASE_URL=empty_database_url))

    for _ in range(2):
        migrated = commands.command("migrate", DATABASE_URL=empty_database_url)
        assert (migrated.returncode, migrated.stderr) == (0, "")
        assert migrated.stdout.endswith("The database is migrated.\n")
    assert migrated.stdout == (
        f"The engine is {engine}, as recorded when the database was first migrated.\nThe database is migrated.\n"
    )
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT engine FROM installation").fetchone() == (engine,)

    for bounds in [], ["--from", "2026-01-01"], ["--from", "2026-01-01", "--to", "2026-01-02T12:00:00Z"]:
        refreshed = commands.command("refresh", *bounds, DATABASE_URL=empty_database_url)
        assert (refreshed.returncode, refreshed.stderr) == (0, "")
        assert refreshed.stdout == "The aggregates are refreshed.\n"


@on_plain
def test_an_engine_that_cannot_be_had_is_one_line(empty_database_url: str) -> None:
    line = refusal(wattline("migrate", DATABASE_URL=empty_database_url, WATTLINE_ENGINE="timescale"))
    assert "TimescaleDB" in line


def test_a_refresh_of_an_empty_range_is_refused(database_url: str) -> None:
    done = wattline("refresh", "--from", "2026-01-02", "--to", "2026-01-01", DATABASE_URL=database_url)
    assert refusal(done) == "--to must lie after --from."


def test_a_database_of_a_newer_version_is_refused(database_url: str, connection: psycopg.Connection) -> None:
    connection.execute("UPDATE wattline_version SET version_num = '9999'")
    assert "9999" in refusal(wattline("migrate", DATABASE_URL=database_url))


@on_plain
def test_a_database_made_by_other_sql_is_refused_in_one_line(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    connection.execute("UPDATE installation SET sql_checksum = NULL")
    for command in (["migrate"], ["serve", "--port", str(free_port())], ["import", str(tmp_path / "none.csv")]):
        line = refusal(wattline(*command, DATABASE_URL=database_url))
        assert line.startswith("The database was made by other SQL than this version has")
