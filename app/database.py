"""Connections to the database, and the classes of driver errors that pass by themselves."""

import getpass
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from typing import Any, TypeVar, cast

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import ClauseElement, Dialect, Engine, create_engine
from sqlalchemy import Connection as SyncConnection
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.errors import SetupError
from app.faults import NoAnswer
from app.settings import Settings

Result = TypeVar("Result")

# These are the options that libpq itself would hide in a dialogue.
_SECRETS = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults() if option.dispchar in (b"*", b"D")}

# The loop that judges alerts reads over one connection while it writes over another.
ALERTS_POOL_SIZE = 2

# No store transaction runs longer; by this much, answers stay behind a refresh (aggregate_freshness() has it too).
TRANSACTION_SECONDS = 5
_CONNECT_TIMEOUT_S = 5
ANSWER_SECONDS = 30
# An answer waits so long for a lock of someone else: most locks last some milliseconds.
LOCK_MILLISECONDS = 700
#: For the transaction of an answer.
LIMITS = f"SET LOCAL statement_timeout = '{ANSWER_SECONDS}s'; SET LOCAL lock_timeout = {LOCK_MILLISECONDS};"
OPTIONS: dict[str, Any] = {
    "application_name": "wattline",
    "connect_timeout": _CONNECT_TIMEOUT_S,
    # No statement is prepared: a generic plan would not exclude chunks and partitions, and pooling proxies would fail.
    "prepare_threshold": None,
    # A database that vanished without a word (failover, firewall) is noticed within half a minute instead of a quarter
    # of an hour; libpq ignores these on a Unix socket.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}

# The forms of times that the driver reads and answers have, each with those that are as good. A role and a database may
# have others. They are no startup parameters: libpq sends such ones in `options` alone, which pooling proxies refuse.
_FORMS = {
    "IntervalStyle": ("postgres",),
    "DateStyle": ("ISO, MDY", "ISO, DMY", "ISO, YMD"),
    "TimeZone": ("UTC", "Etc/UTC"),
}


class Beat:
    """Whether a database is alive, as this process sees it: kept by a Pulse, read by each of its connections."""

    def __init__(self) -> None:
        self.is_frozen = False
        self.answered_at = time.monotonic()
        self.waiting = set[Connection]()


#: By URL, for the databases that have a pulse.
BEATS: dict[str, Beat] = {}


class Connection(psycopg.AsyncConnection[tuple[Any, ...]]):
    """A connection of which no await lasts longer than the database lives."""

    beat: Beat | None = None

    async def wait(
        self,
        gen: PQGen[Result],
        interval: float = 0.1,
        timeout: float | None = None,  # noqa: ASYNC109 - psycopg's
    ) -> Result:
        """Waits for the database, as psycopg does on each round trip. Raises NoAnswer."""
        beat = self.beat
        if beat is None:
            return await super().wait(gen, interval, timeout)
        if beat.is_frozen:
            self.pgconn.finish()  # It may be in the middle of a COPY, and would be used again like this.
            raise NoAnswer
        beat.waiting.add(self)
        try:
            result = await super().wait(gen, interval, timeout)
        except psycopg.OperationalError as error:
            if beat.is_frozen:
                raise NoAnswer from error
            raise
        finally:
            beat.waiting.discard(self)
        beat.answered_at = time.monotonic()
        return result

    def cut(self) -> None:
        """Ends the connection without a word to the database; whoever waits for it gets an error at once."""
        with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(self.pgconn.socket)) as end:
            end.shutdown(socket.SHUT_RDWR)


async def connect(url: str) -> Connection:
    """Returns a connection outside the pool that commits each statement, for the writer, a loop or a command.

    Raises the driver's errors, and NoAnswer where a pulse says so.
    """
    beat = BEATS.get(url)
    if beat and beat.is_frozen:
        raise NoAnswer
    connection = await Connection.connect(url, autocommit=True, **OPTIONS)
    connection.beat = beat
    if forms := _forms_to_set(connection.info):
        await connection.execute(forms)
    return connection


def connect_sync(url: str) -> psycopg.Connection:
    """Returns a connection that commits each statement, for a command."""
    connection = psycopg.connect(url, autocommit=True, **OPTIONS)
    if forms := _forms_to_set(connection.info):
        connection.execute(forms)
    return connection


def _forms_to_set(session: psycopg.ConnectionInfo) -> bytes:
    """Returns the statements that give the session the forms it lacks: most often none, so that nothing is sent."""
    lacks = [f"SET {name} = '{good[0]}'" for name, good in _FORMS.items() if session.parameter_status(name) not in good]
    return "; ".join(lacks).encode()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    """Yields a connection outside the pool and closes it at the end."""
    connection = await connect(url)
    try:
        yield connection
    finally:
        await connection.close()


def most_connections(settings: Settings) -> int:
    """Returns how many connections a serving process opens at most, with or without an MQTT consumer."""
    # Besides the two pools, the writer, the maintenance loop, the watch and the pulse have one each; so have webhooks,
    # if set.
    return settings.pool_max_size + ALERTS_POOL_SIZE + 4 + (settings.webhook_url is not None)


class _Pool(AsyncEngine):
    """A pool that nobody waits for while the database is frozen."""

    def __init__(self, engine: Engine, url: str) -> None:
        super().__init__(engine)
        self._database = url

    def connect(self) -> AsyncConnection:
        if (beat := BEATS.get(self._database)) and beat.is_frozen:
            raise NoAnswer
        return super().connect()


def create_pool(url: str, max_size: int) -> AsyncEngine:
    """Returns a pool of connections: one pool is behind all answers, and two loops have their own."""

    # A ping costs 0.1 ms and finds the connections that a restart of the database has broken.
    engine = create_async_engine(
        "postgresql+psycopg://",
        isolation_level="AUTOCOMMIT",
        async_creator=lambda: connect(url),
        pool_size=max_size,
        max_overflow=0,
        pool_timeout=_CONNECT_TIMEOUT_S,
        pool_pre_ping=True,
    )
    return _Pool(engine.sync_engine, url)


@asynccontextmanager
async def limited(connection: AsyncConnection) -> AsyncIterator[None]:
    """Opens a transaction that only reads; none of its statements takes ANSWER_SECONDS, or waits for a lock for long.

    The limits are those of the transaction: behind a pooling proxy, a session is shared.
    """
    await connection.exec_driver_sql(f"BEGIN READ ONLY; {LIMITS}")
    yield
    # After an error the pool rolls back.
    await connection.exec_driver_sql("COMMIT")


@asynccontextmanager
async def reading(pool: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yields a connection of the pool for statements that only read and are limited()."""
    async with pool.connect() as connection, limited(connection):
        yield connection


@asynccontextmanager
async def snapshot(connection: AsyncConnection) -> AsyncIterator[None]:
    """Opens a snapshot: each statement inside only reads, sees the same rows, and takes ANSWER_SECONDS at most.

    Leave it soon. On TimescaleDB an answer needs it: a continuous aggregate's watermark is read as of now, not of the
    statement, so rows that a refresh materialises meanwhile would be found neither above the watermark nor below it.
    """
    # The lock comes before the first statement takes its snapshot: the hours of a partition dropped after that would
    # be found neither in its readings, which are gone at once, nor in what is kept of them, which is too new.
    await connection.exec_driver_sql(f"""
        BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
        {LIMITS}
        LOCK TABLE ONLY meter_reading, ONLY vehicle_reading IN ACCESS SHARE MODE;
    """)
    yield
    # After an error the pool rolls back.
    await connection.exec_driver_sql("COMMIT")


@asynccontextmanager
async def driver_connection(pool: AsyncEngine) -> AsyncIterator[psycopg.AsyncConnection]:
    """Yields a connection of the pool as psycopg's own, for more than a SELECT."""
    async with pool.connect() as connection:
        try:
            yield await of_driver(connection)
        except psycopg.errors.ReadOnlySqlTransaction:
            # The session keeps the setting that it began with.
            await connection.invalidate()
            raise


async def of_driver(connection: AsyncConnection) -> psycopg.AsyncConnection:
    """Returns a connection as psycopg's own."""
    raw = await connection.get_raw_connection()
    return cast("psycopg.AsyncConnection[tuple[Any, ...]]", raw.driver_connection)


@asynccontextmanager
async def binary_cursor(connection: AsyncConnection) -> AsyncIterator[psycopg.AsyncCursor[tuple[Any, ...]]]:
    """Yields a cursor whose rows come in binary form: arrays of numbers take a third of the time."""
    async with (await of_driver(connection)).cursor(binary=True) as cursor:
        yield cursor


async def fetch_all(
    connection: AsyncConnection, statement: ClauseElement, parameters: Mapping[str, Any], *, binary: bool = False
) -> list[Any]:
    """Returns a statement's rows without SQLAlchemy's results, which take 0.1 ms more; `binary` is that form."""
    text, constants = _compiled(statement, connection.dialect)
    cursor = (await of_driver(connection)).cursor(binary=binary)
    return await (await cursor.execute(text, {**constants, **parameters})).fetchall()


@cache
def _compiled(statement: ClauseElement, dialect: Dialect) -> tuple[bytes, dict[str, Any]]:
    """Returns a statement as psycopg takes it, and the constants in it."""
    compiled = statement.compile(dialect=dialect)
    return str(compiled).encode(), compiled.params


def create_sync_engine(url: str) -> Engine:
    """Returns an engine for commands: migrations and policies."""

    def creator() -> psycopg.Connection:
        connection = connect_sync(url)
        connection.autocommit = False
        return connection

    return create_engine("postgresql+psycopg://", creator=creator)


_MISUNDERSTOOD = (
    "the URL must be like postgresql://user:password@host:5432/name, where a password has %40 for @ and %2F for /."
)


@contextmanager
def command_connection(url: str) -> Iterator[SyncConnection]:
    """Yields a connection for a command. Raises SetupError when the URL is invalid or the database cannot be reached.

    The error's message holds nothing secret.
    """
    engine = create_sync_engine(url)
    try:
        try:
            connection = engine.connect()
        except (OperationalError, ProgrammingError) as error:
            raise unreachable(url, error.orig) from error
        with connection:
            yield connection
    finally:
        engine.dispose()


def unreachable(url: str, reason: object) -> SetupError:
    """Returns the error for a failed connection to a database. Its message holds nothing secret."""
    return SetupError(f"The database of DATABASE_URL cannot be reached: {reason if shown_url(url) else _MISUNDERSTOOD}")


def shown_url(url: str) -> str | None:
    """Returns a URL or key=value string as keys and values, secrets hidden; None when libpq misunderstands it.

    libpq's errors quote what it misunderstood: in `user:pass@word@host`, it takes `word@host` for the host, and in
    `user:pass/word@host` it takes `pass` for the port and `word@host` for the database.
    """
    try:
        given = {key: str(value) for key, value in conninfo_to_dict(url).items()}
    except psycopg.Error:
        return None
    host, port, name = (given.get(key, "") for key in ("host", "port", "dbname"))
    if "@" in name or ("@" in host and not host.startswith(("/", "@"))) or not re.fullmatch(r"[\d,]*", port):
        return None
    return make_conninfo(**{key: "***" if key in _SECRETS else value for key, value in given.items()})


def os_user() -> str:
    """Returns the name of this process's user, for records of who did what."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        return f"uid {os.getuid()}"
