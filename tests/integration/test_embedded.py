"""The embedded server, with each PostgreSQL that this machine has: real servers, shared, killed, started again."""

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.errors import SetupError
from app.postgres.embedded import Binaries, running
from tests.fixtures.database import available_engines
from tests.fixtures.waiting import eventually

ROOT = Path(__file__).parent.parent.parent
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another identity")

# It prints the URL, then holds the server until its input ends; Ctrl-C only makes it report the signal.
HOLD = """
import os, signal, sys, time
from pathlib import Path
from app.postgres.embedded import running
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
with running(Path(sys.argv[1]), pg_bin=Path(sys.argv[2])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


@contextmanager
def directory() -> Iterator[Path]:
    """Makes a directory in /tmp itself: where root has no user namespaces, `nobody` could not enter pytest's own."""
    with tempfile.TemporaryDirectory(prefix="wattline-test-") as path:
        try:
            yield Path(path)
        finally:
            pgdata = Path(path) / "postgres"
            if pgdata.is_symlink():
                shutil.rmtree(pgdata.resolve())


@pytest.fixture(scope="module", params=list(available_engines()))
def binaries(request: pytest.FixtureRequest) -> Binaries:
    return available_engines()[request.param]


@pytest.fixture(scope="module")
def made(binaries: Binaries) -> Iterator[Path]:
    """Makes one data directory for the tests of an engine; its server was stopped in good order."""
    with directory() as path:
        with running(path, pg_bin=binaries.bin):
            pass
        yield path


@pytest.fixture
def data_dir(made: Path) -> Iterator[Path]:
    """Yields `made`, and sees that no test leaves a server behind."""
    yield made
    assert not (made / "postgres" / "postmaster.pid").exists()


@contextmanager
def holder(data_dir: Path, pg_bin: Path, script: str = HOLD) -> Iterator[subprocess.Popen[str]]:
    """Starts another process, in a process group of its own, that holds the server or is about to."""
    command = [sys.executable, "-c", script, str(data_dir), str(pg_bin)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, env=environment, start_new_session=True
    ) as process:
        yield process


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def socket_directory(url: str) -> Path:
    return Path(str(psycopg.conninfo.conninfo_to_dict(url)["host"]))


def one(url: str, query: str) -> Any:
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
    return row and row[0]


def answers(url: str) -> bool:
    try:
        return one(url, "SELECT true") is True
    except psycopg.OperationalError:
        return False


def server_pid(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])


def test_a_new_directory_becomes_a_private_durable_server(binaries: Binaries) -> None:
    with directory() as above:
        data_dir = above / "deep er" / ("x" * 100) / 'with "quotes" and $HOME'
        with running(data_dir, pg_bin=binaries.bin, settings={"work_mem": "5MB"}) as url:
            assert one(url, "SELECT current_database() || current_user") == "wattlinewattline"
            with psycopg.connect(url) as connection:
                shown: dict[str, str] = dict(connection.execute("SELECT name, setting FROM pg_settings").fetchall())
        if (data_dir / "postgres").is_symlink():
            shutil.rmtree((data_dir / "postgres").resolve())
        assert data_dir.stat().st_mode & 0o766 == 0o700
    assert shown["listen_addresses"] == ""
    assert (shown["fsync"], shown["synchronous_commit"], shown["full_page_writes"]) == ("on", "on", "on")
    assert (shown["server_encoding"], shown["TimeZone"], shown["work_mem"]) == ("UTF8", "UTC", "5120")
    assert shown["shared_preload_libraries"] == ("timescaledb" if binaries.timescale else "")
    assert not answers(url)
    assert not socket_directory(url).exists()


def test_the_last_process_out_stops_it(data_dir: Path, binaries: Binaries) -> None:
    with holder(data_dir, binaries.bin) as first, holder(data_dir, binaries.bin) as second:
        url = line(first)
        assert line(second) == url
        pid = server_pid(data_dir)
        first.communicate()
        assert answers(url)
        with running(data_dir) as shared:
            assert shared == url
            assert server_pid(data_dir) == pid
        assert answers(url)
        second.communicate()
        assert (first.returncode, second.returncode) == (0, 0)
    assert not answers(url)


def test_of_two_that_start_at_once_one_makes_the_server(binaries: Binaries) -> None:
    with directory() as data_dir:
        with holder(data_dir, binaries.bin) as first, holder(data_dir, binaries.bin) as second:
            url = line(first)
            assert line(second) == url
            assert answers(url)
            assert (data_dir / "postgres" / "server.log").read_text().count("starting PostgreSQL") == 1
            assert not (data_dir / "postgres" / "server.log.1").exists()
        assert (first.returncode, second.returncode) == (0, 0)
        assert not answers(url)


# The second is an immediate shutdown. Of a server whose main process alone is killed, the other processes end.
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
def test_a_server_that_dies_is_started_again_once(data_dir: Path, binaries: Binaries, number: int) -> None:
    log, log_before = data_dir / "postgres" / "server.log", data_dir / "postgres" / "server.log.1"
    with holder(data_dir, binaries.bin) as other, running(data_dir, pg_bin=binaries.bin) as url:
        assert line(other) == url
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE survivor AS SELECT 42 AS answer")
        killed, its_log = server_pid(data_dir), log.stat().st_ino
        os.kill(killed, number)
        eventually(lambda: log_before.stat().st_ino == its_log and answers(url))
        assert server_pid(data_dir) != killed
        with psycopg.connect(url) as connection:
            assert connection.execute("TABLE survivor").fetchall() == [(42,)]
            connection.execute("DROP TABLE survivor")
        other.communicate()
        assert log.read_text().count("starting PostgreSQL") == 1
        assert log_before.stat().st_ino == its_log
    assert not answers(url)


def test_who_leaves_a_dying_server_leaves_none(data_dir: Path, binaries: Binaries) -> None:
    for _ in range(3):
        with running(data_dir, pg_bin=binaries.bin) as url:
            os.kill(server_pid(data_dir), signal.SIGKILL)
        eventually(lambda: not answers(url))
    with running(data_dir, pg_bin=binaries.bin) as url:
        assert answers(url)


def test_who_only_attaches_starts_nothing(data_dir: Path, binaries: Binaries) -> None:
    with holder(data_dir, binaries.bin) as process:
        url = line(process)
        threads = threading.active_count()
        with running(data_dir, start=False):
            assert threading.active_count() == threads  # nothing here looks after the server
            process.kill()
            process.wait()
            os.kill(server_pid(data_dir), signal.SIGKILL)
            eventually(lambda: not answers(url))
            with pytest.raises(SetupError, match="No database runs"), running(data_dir, start=False):
                pass
    with running(data_dir, pg_bin=binaries.bin):
        pass


@pytest.mark.parametrize(
    ("lost", "why"),
    [("postgres", "is not complete .* restore it"), ("postgres/global/pg_control", "PostgreSQL died while it started")],
)
def test_data_that_are_gone_are_not_replaced_but_waited_for(
    data_dir: Path, binaries: Binaries, capsys: pytest.CaptureFixture[str], lost: str, why: str
) -> None:
    said: list[str] = []

    def complains() -> bool:
        said.append(capsys.readouterr().err)
        return re.search(f"cannot be started again yet: .*{why}", "".join(said)) is not None

    with running(data_dir, pg_bin=binaries.bin) as url:
        pid = server_pid(data_dir)
        (data_dir / lost).rename(data_dir / "moved away")
        os.kill(pid, signal.SIGKILL)
        eventually(complains, shown=lambda: said)
        assert not (data_dir / lost).exists()
        (data_dir / "moved away").rename(data_dir / lost)
        eventually(lambda: answers(url))
    assert not answers(url)


def test_a_stale_process_id_that_someone_else_has_now_is_no_server(data_dir: Path, binaries: Binaries) -> None:
    stale = data_dir / "postgres" / "postmaster.pid"
    stale.write_text(f"{os.getpid()}\n{data_dir / 'postgres'}\n1700000000\n5432\n/tmp\n\n  1 1\nready\n")
    with running(data_dir, pg_bin=binaries.bin) as url:
        assert server_pid(data_dir) != os.getpid()
        assert answers(url)


def test_the_server_of_a_killed_process_serves_the_next_one_which_stops_it(data_dir: Path, binaries: Binaries) -> None:
    with holder(data_dir, binaries.bin) as process:
        url = line(process)
        process.kill()
        process.wait()
        assert answers(url)
        pid = server_pid(data_dir)
    with running(data_dir, pg_bin=binaries.bin):
        assert server_pid(data_dir) == pid
    assert not answers(url)


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(data_dir: Path, binaries: Binaries) -> None:
    with holder(data_dir, binaries.bin) as process:
        url = line(process)
        os.killpg(process.pid, signal.SIGINT)
        assert line(process) == "interrupted"
        assert answers(url)
        assert os.getsid(server_pid(data_dir)) != os.getsid(process.pid)
        process.communicate()
    assert not answers(url)


def test_a_forked_child_does_not_hold_it(data_dir: Path, binaries: Binaries) -> None:
    forks = HOLD.replace("    sys.stdin", "    if os.fork() == 0:\n        time.sleep(60)\n    sys.stdin")
    with holder(data_dir, binaries.bin, forks) as process:
        url = line(process)
        assert answers(url)
        assert process.stdin
        process.stdin.close()
        process.wait()
        assert not answers(url)
        os.killpg(process.pid, signal.SIGKILL)


def test_a_server_that_dies_at_start_is_one_line_with_its_last_words(data_dir: Path, binaries: Binaries) -> None:
    settings = {"work_mem": "much"}
    with (
        pytest.raises(SetupError, match=r'invalid value for parameter "work_mem": "much"') as refused,
        running(data_dir, pg_bin=binaries.bin, settings=settings),
    ):
        pass
    assert "\n" not in str(refused.value)


def test_what_a_broken_off_initdb_left_is_swept_away(binaries: Binaries, tmp_path: Path) -> None:
    broken = tmp_path / "bin"
    broken.mkdir()
    for program, script in {
        "postgres": "echo 'postgres (PostgreSQL) 18.6'",
        "initdb": 'touch "$2/PG_VERSION"; echo "disk full" >&2; exit 1',
    }.items():
        (broken / program).write_text(f"#!/bin/sh\n{script}\n")
        (broken / program).chmod(0o755)
    with directory() as data_dir:
        with pytest.raises(SetupError), running(data_dir, pg_bin=broken):
            pass
        (data_dir / "wattline-new-killed").mkdir()
        (data_dir / "wattline-new-killed" / "PG_VERSION").write_text("18")
        (data_dir / "postgres").mkdir()
        with running(data_dir, pg_bin=binaries.bin) as url:
            assert answers(url)
        assert sorted(path.name for path in data_dir.iterdir()) == [
            "postgres", "server.json", "server.lock", "start.lock", "users.lock",
        ]  # fmt: skip


def test_a_socket_directory_of_someone_else_is_refused(data_dir: Path, binaries: Binaries) -> None:
    with running(data_dir, pg_bin=binaries.bin) as url:
        socket_dir = socket_directory(url)
    socket_dir.mkdir(mode=0o755)
    try:
        with pytest.raises(SetupError, match="must be a directory of user"), running(data_dir, pg_bin=binaries.bin):
            pass
    finally:
        socket_dir.rmdir()


def test_the_recorded_binaries_are_kept_and_their_minor_version_follows(data_dir: Path, binaries: Binaries) -> None:
    record = data_dir / "server.json"
    written = record.read_text()
    record.write_text(json.dumps(json.loads(written) | {"version": [binaries.version[0], 0]}))
    with running(data_dir) as url:
        server = one(url, "SHOW server_version_num")
    assert int(server) == binaries.version[0] * 10000 + binaries.version[1]
    assert json.loads(record.read_text()) == json.loads(written)


@as_root
def test_root_starts_it_from_a_directory_that_only_root_can_enter(
    data_dir: Path, binaries: Binaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data_dir)
    Path().chmod(0o700)
    with running(Path(), pg_bin=binaries.bin) as url:
        assert answers(url)


@as_root
def test_root_without_user_namespaces_runs_it_as_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    places = [binaries.bin for binaries in available_engines().values()]
    pg_bin = next((path for path in places if runs(path / "postgres", nobody)), None)
    if pg_bin is None:
        pytest.skip("nobody cannot run any PostgreSQL here")
    monkeypatch.setenv("PATH", "")
    with directory() as data_dir, running(data_dir, pg_bin=pg_bin) as url:
        assert answers(url)
        assert (data_dir / "postgres").stat().st_uid == nobody
    with directory() as closed, running(closed / "data", pg_bin=pg_bin) as url:
        assert answers(url)
        # The server had to be made elsewhere. This link lets `directory` sweep it away.
        (closed / "postgres").symlink_to((closed / "data" / "postgres").readlink())


def runs(program: Path, user: int) -> bool:
    try:
        return subprocess.run([program, "--version"], user=user, capture_output=True).returncode == 0
    except PermissionError:
        return False
