"""Wattline's own PostgreSQL under a data directory: found, started, shared by processes, stopped by the last one.

postgres/      PGDATA (a link where root's server had to be made elsewhere); its log is postgres/server.log
server.json    the binaries that made it: where they are, their version, whether they carry TimescaleDB
start.lock     exclusive: held while a server is looked for, started or stopped
users.lock     shared: held by each process that uses the server; the kernel frees it when one is killed
server.lock    exclusive: inherited by the server and by all that it forks. Free means that nothing of it is left,
               which neither a process id nor a socket can say: ids are used again, and containers share directories
"""

import fcntl
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from types import MappingProxyType
from typing import IO, Any

import psycopg

from app.errors import SetupError
from app.postgres.binaries import Binaries, find_binaries, matching, record
from app.postgres.guard import keep_running
from app.postgres.jobs import hold_jobs

__all__ = ["Binaries", "find_binaries", "running"]

CONFIGURATION = Path(__file__).resolve().parents[2] / "timescale" / "postgresql.conf"
# The server trusts everyone who can enter its socket's directory. `peer` would prove nothing: in root's namespace every
# foreign user appears as 65534, the server's own id (another user did get in by it).
INITDB = ("--username=wattline", "--encoding=UTF8", "--locale=C", "--auth-local=trust", "--auth-host=reject")
# Unlike pg_ctl, this quotes: a directory's name may hold `$` and `"`. The server becomes init's child, not ours.
DETACHED = ("-c", '"$@" >>"$0" 2>&1 &')
# Recovery after a crash replays at most a checkpoint's distance of log (`max_wal_size`).
WAIT_SECONDS = 60
_NOT_RUNNING = "No database runs under {}: start it with `wattline serve`. A service that runs says why it has none."
# PostgreSQL refuses user id 0. In this namespace, root's files and processes appear as 65534's, so nothing needs a new
# owner, and directories that only root can enter stay reachable.
NAMESPACE = ("unshare", "--user", "--map-user=65534", "--map-group=65534")


@contextmanager
def running(
    data_dir: Path,
    *,
    pg_bin: Path | None = None,
    settings: Mapping[str, str] = MappingProxyType({}),
    start: bool = True,
) -> Iterator[str]:
    """Holds a server for this process and yields the URL of its database `wattline`, on a Unix socket.

    The first process makes and starts it, adding `settings` to its own; others share it as it runs; the last one out
    stops it. Children may use the URL while this process holds the server. A server that dies is started again, unless
    `start` is False. A killed process leaves the server to the next one. Signals are left to the caller, which ends the
    use by leaving the context. Raises SetupError when the server cannot run, or does not run and `start` is False.
    """
    data_dir = data_dir.resolve()
    if not start and not data_dir.exists():
        raise SetupError(_NOT_RUNNING.format(data_dir))
    with _user_errors(data_dir):
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        users = _open_lock(data_dir, "users")
    ended = Event()
    with users:
        try:
            with _user_errors(data_dir), _alone(data_dir):
                fcntl.flock(users, fcntl.LOCK_SH)
                url = _serve(data_dir, pg_bin, settings, start)
            if start:
                start_again = partial(_start_again, data_dir, pg_bin, settings, ended)
                Thread(target=keep_running, args=[start_again, ended], daemon=True).start()
            yield url
        finally:
            ended.set()
            with _user_errors(data_dir), _alone(data_dir):
                if _acquired(users):
                    _stop(data_dir)
                # Closing is not enough: a forked child has this file open too.
                fcntl.flock(users, fcntl.LOCK_UN)


def _serve(data_dir: Path, pg_bin: Path | None, settings: Mapping[str, str], start: bool) -> str:
    """Attaches to the server, or starts it; returns the URL once the database exists."""
    socket_dir = _socket_dir(data_dir)
    started = False
    deadline = time.monotonic() + WAIT_SECONDS
    while not _answers(_url(socket_dir, "postgres")):
        with _open_lock(data_dir, "server") as lock:
            if _acquired(lock):
                if not start:
                    raise SetupError(_NOT_RUNNING.format(data_dir))
                if started:
                    raise SetupError(f"PostgreSQL died while it started: {_log_tail(data_dir)}")
                _start(data_dir, socket_dir, pg_bin, settings, lock)
                started = True
        if time.monotonic() > deadline:
            raise SetupError(
                f"PostgreSQL has not answered at {socket_dir} for {WAIT_SECONDS} s: it may be recovering, which goes "
                f"on (try again), or run in another container: {_log_tail(data_dir)}"
            )
        time.sleep(0.02)
    with psycopg.connect(_url(socket_dir, "postgres"), autocommit=True) as connection:
        if not connection.execute("SELECT FROM pg_database WHERE datname = 'wattline'").rowcount:
            # TimescaleDB's launcher connects to template1, which would delay the copy; nobody can connect to template0.
            connection.execute("CREATE DATABASE wattline TEMPLATE template0")
    return _url(socket_dir, "wattline")


def _start_again(data_dir: Path, pg_bin: Path | None, settings: Mapping[str, str], ended: Event) -> str | None:
    """Starts the server if nothing of it is left, and returns the last words of the one that died; else None."""
    with _user_errors(data_dir), _alone(data_dir):
        with _open_lock(data_dir, "server") as lock:
            if ended.is_set() or not _acquired(lock):
                return None
        last_words = _log_tail(data_dir)
        matching(data_dir, pg_bin)  # where the data are gone, this raises SetupError: no new server takes their place
        _serve(data_dir, pg_bin, settings, True)
        return last_words


def _url(socket_dir: Path, database: str) -> str:
    return f"postgresql://wattline@/{database}?host={socket_dir}&port=5432"


def _start(data_dir: Path, socket_dir: Path, pg_bin: Path | None, settings: Mapping[str, str], lock: IO[bytes]) -> None:
    pgdata = data_dir / "postgres"
    if not os.path.lexists(pgdata) or (pgdata.is_dir() and not any(pgdata.iterdir())):
        binaries = find_binaries(pg_bin)
        _initialise(data_dir, binaries, lock)
    else:
        binaries = matching(data_dir, pg_bin)
        record(data_dir, binaries)
    # The link is followed, since the owner of its target may be kept out of the directory that holds the link.
    pgdata = pgdata.resolve()
    # The lock proves that they are stale, but PostgreSQL only asks if their process id is alive, whoever has it now.
    for stale in (pgdata / "postmaster.pid", *socket_dir.glob(".s.PGSQL.*")):
        stale.unlink(missing_ok=True)
    owner = pgdata.stat()
    if os.geteuid() == 0:
        os.chown(socket_dir, owner.st_uid, owner.st_gid)
    # Writing in place keeps the file's owner; it never goes through a link, which could point at a file of root's.
    with open(pgdata / "postgresql.conf", "w", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)) as file:
        file.write(_configuration(binaries.timescale, socket_dir, settings))
    log = pgdata / "server.log"
    with suppress(FileNotFoundError):
        log.replace(pgdata / "server.log.1")
    _run(pgdata, lock, Path("/bin/sh"), *DETACHED, log, binaries.bin / "postgres", "-D", pgdata)


def _initialise(data_dir: Path, binaries: Binaries, lock: IO[bytes]) -> None:
    """Makes PGDATA under another name and moves it into place when complete: the first owner and place that work."""
    for left_over in data_dir.glob("wattline-new-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    faults = []
    for uid, gid, home in _places(data_dir):
        new = Path(tempfile.mkdtemp(prefix="wattline-new-", dir=home.parent))
        try:
            if uid != os.geteuid():
                os.chown(new, uid, gid)
                data_dir.chmod(data_dir.stat().st_mode | stat.S_IXGRP | stat.S_IXOTH)
            _run(new, lock, binaries.bin / "initdb", "-D", new, *INITDB)
            record(data_dir, binaries)
            new.rename(home)
            if home.parent != data_dir:
                (data_dir / "postgres").symlink_to(home)
            return
        except SetupError as error:
            faults.append(str(error))
        finally:
            shutil.rmtree(new, ignore_errors=True)
    if os.geteuid() == 0:
        faults.append("root needs user namespaces (unshare), or a PostgreSQL that the user nobody can run")
    raise SetupError("; ".join(faults))


def _places(data_dir: Path) -> Iterator[tuple[int, int, Path]]:
    """Yields the owners and places that PGDATA may have, in order of preference: user id, group id, path."""
    if os.geteuid() != 0 or _namespaces_work():
        yield os.geteuid(), os.getegid(), data_dir / "postgres"
        return
    # Docker, for example, refuses namespaces to root. Closed directories above may keep `nobody` out of data_dir.
    with suppress(KeyError):
        nobody = pwd.getpwnam("nobody")
        yield nobody.pw_uid, nobody.pw_gid, data_dir / "postgres"
        yield nobody.pw_uid, nobody.pw_gid, Path("/var/lib") / f"wattline-{secrets.token_hex(4)}"


def _namespaces_work() -> bool:
    try:
        return subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def _run(pgdata: Path, lock: IO[bytes], program: Path, *arguments: str | Path) -> None:
    """Runs a program as PGDATA's owner, out of the terminal's reach; it and what it leaves running hold the lock."""
    command: tuple[str | Path, ...] = (program, *arguments)
    owner = pgdata.stat()
    options: dict[str, Any] = {"cwd": "/", "env": _environment(), "start_new_session": True, "errors": "replace"}
    who = f"user {owner.st_uid}"
    if os.geteuid() == 0 and owner.st_uid == 0:
        command, who = (*NAMESPACE, *command), "root in a user namespace"
    elif os.geteuid() == 0:
        options |= {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": ()}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, pass_fds=[lock.fileno()], **options
        )
    except OSError as error:
        raise SetupError(f"PostgreSQL cannot run as {who} in {pgdata}: {error.strerror}: {error.filename}") from error
    if done.returncode:
        reason = " / ".join(done.stderr.splitlines()[-2:])
        raise SetupError(f"PostgreSQL cannot run as {who} in {pgdata}: {reason}")


def _stop(data_dir: Path) -> None:
    """Shuts the server down fast, unless it still recovers: stopped, it would recover again from the beginning."""
    with _open_lock(data_dir, "server") as lock, suppress(OSError):
        state = (data_dir / "postgres" / "postmaster.pid").read_text()
        if not _acquired(lock) and "ready" in state:
            held = hold_jobs(_url(_socket_dir(data_dir), "wattline"))
            os.kill(int(state.split()[0]), signal.SIGINT)
            deadline = time.monotonic() + WAIT_SECONDS
            while not _acquired(lock) and time.monotonic() < deadline:
                time.sleep(0.01)
            if held:
                held.close()
    with suppress(OSError, SetupError):
        _socket_dir(data_dir).rmdir()


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=10).close()
    except psycopg.OperationalError:
        return False
    return True


def _log_tail(data_dir: Path) -> str:
    log = data_dir / "postgres" / "server.log"
    try:
        return f"{' / '.join(log.read_text(errors='replace').splitlines()[-4:])} ({log})"
    except OSError as error:
        return f"no log ({error})"


def _socket_dir(data_dir: Path) -> Path:
    """Returns the socket's directory, made when missing. It is in /tmp, since a socket's path has 107 bytes at most."""
    socket_dir = Path("/tmp") / f"wattline-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]}"  # noqa: S108
    socket_dir.mkdir(mode=0o700, exist_ok=True)
    owners = {os.geteuid()}
    with suppress(OSError):
        owners.add((data_dir / "postgres").stat().st_uid)
    found = socket_dir.lstat()
    if not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) != 0o700 or found.st_uid not in owners:
        raise SetupError(f"{socket_dir} must be a directory of user {os.geteuid()} with mode 0700: remove it")
    return socket_dir


def _configuration(timescale: bool, socket_dir: Path, settings: Mapping[str, str]) -> str:
    """Returns timescale/postgresql.conf for this machine, as the text of the server's own file."""
    megabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    values = {}
    for line in CONFIGURATION.read_text().splitlines():
        name, is_setting, value = line.partition("#")[0].partition("=")
        if is_setting and (timescale or not name.startswith(("timescaledb.", "shared_preload_libraries"))):
            values[name.strip()] = value.strip().strip("'")
    values |= {
        # A laptop has other things to do, so this takes a quarter of its memory, 1 GB at most.
        "shared_buffers": f"{min(megabytes // 4, 1024)}MB",
        "effective_cache_size": f"{megabytes // 2}MB",
        "maintenance_work_mem": f"{min(megabytes // 16, 512)}MB",
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": str(socket_dir),
        **settings,
    }
    return "".join(f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in values.items())


def _environment() -> dict[str, str]:
    """Returns the environment, without PGDATA, PGPORT and the like, which PostgreSQL obeys; messages are in English."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def _open_lock(data_dir: Path, name: str) -> IO[bytes]:
    return open(data_dir / f"{name}.lock", "ab", opener=lambda path, flags: os.open(path, flags, 0o600))


def _acquired(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """Lets only one process at a time look for, start or stop servers."""
    with _open_lock(data_dir, "start") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)


@contextmanager
def _user_errors(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, psycopg.Error) as error:
        raise SetupError(f"{data_dir} cannot be used as a data directory: {error}") from error
