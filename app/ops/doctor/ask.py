"""Asking: each part in a transaction of its own, which can only read and soon gives up."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from app.database import command_connection
from app.errors import SetupError
from app.migrate import newest_revision
from app.ops.doctor.facts import Aggregate, Devices, Facts, Job, Scheduler, Server, Size
from app.ops.doctor.secrets import hide, shown_url
from app.policies.desired import read_policies
from app.policies.plan import plan_policies
from app.settings import Settings


def find_out(database: AbstractContextManager[str], settings: Settings, environ: Mapping[str, str]) -> Facts:
    """Asks the database that the context yields the URL of; entering it may raise SetupError, which is a finding."""
    facts = Facts(
        settings=settings,
        variables=environ,
        needed=newest_revision(),
        database=shown_url(settings.database_url) if settings.database_url else "",
    )
    try:
        with database as url, command_connection(url) as connection:
            connection.execution_options(postgresql_readonly=True)
            for part in (_server, _clock, _disk, _migration, _policies, _jobs, _freshness, _devices, _sizes, _rejected):
                _ask(part, connection, facts)
    except SetupError as error:
        facts.away = hide(" ".join(str(error).split()), settings.database_url)
    return facts


def _ask(part: Callable[[Connection, Facts], None], connection: Connection, facts: Facts) -> None:
    what = (part.__doc__ or "").strip().rstrip(".")
    try:
        with connection.begin():
            # Whoever holds a lock, such as a migration, is not waited for.
            connection.execute(text("SET LOCAL statement_timeout = '5s'"))
            part(connection, facts)
    except DBAPIError as error:
        missing = isinstance(error.orig, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedFunction)
        # Of another revision, it is said already that it is another one.
        if not missing or facts.revision == facts.needed:
            facts.unread.append(
                f"{what} cannot be read: {str(error.orig).splitlines()[0]}. Run the doctor as the owner of the "
                "database, or again when nothing is locked."
            )
    except SetupError as error:
        facts.unread.append(f"{what} cannot be read: {error}.")


def _server(connection: Connection, facts: Facts) -> None:
    """The server."""
    info = cast("psycopg.Connection[Any]", connection.connection.driver_connection).info
    socket = info.host.startswith("/")
    facts.database = f"{info.dbname} at {info.host}{'' if socket else f' port {info.port}'} as {info.user}"
    facts.local = socket or info.hostaddr in ("127.0.0.1", "::1")
    (facts.server,) = _rows(
        connection,
        Server,
        # off: the settings without which a commit may be lost or the data broken when the machine fails.
        """
        SELECT current_setting('server_version') AS postgresql,
               current_setting('server_version_num')::integer AS postgresql_number,
               (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb') AS timescaledb,
               EXISTS (SELECT FROM pg_settings WHERE name = 'timescaledb.max_background_workers')
                   AS preloads_timescaledb,
               pg_postmaster_start_time() AS started_at,
               pg_is_in_recovery() AS standby,
               current_setting('default_transaction_read_only')::boolean AS read_only,
               ARRAY(SELECT name FROM unnest(ARRAY['fsync', 'full_page_writes', 'synchronous_commit']) AS name
                     WHERE current_setting(name) = 'off') AS off,
               (SELECT least(current_setting('max_connections')::integer
                                 - current_setting('superuser_reserved_connections')::integer
                                 - coalesce(current_setting('reserved_connections', true)::integer, 0),
                             nullif(datconnlimit, -1), nullif(rolconnlimit, -1))
                FROM pg_database, pg_roles
                WHERE datname = current_database() AND rolname = current_user) AS connections_allowed,
               (SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = 'wattline' AND pid != pg_backend_pid())
                   AS service_connections,
               -- NULL for who may not read it.
               (SELECT setting FROM pg_settings WHERE name = 'data_directory') AS data_directory,
               pg_database_size(current_database()) AS database_bytes
        """,
    )


def _clock(connection: Connection, facts: Facts) -> None:
    """The clock."""
    before = time.time()
    facts.now = connection.scalars(text("SELECT clock_timestamp()")).one()
    facts.clock_ahead_seconds = facts.now.timestamp() - (before + time.time()) / 2


def _disk(_: Connection, facts: Facts) -> None:
    """The disk."""
    directory = facts.server.data_directory if facts.server else None
    if facts.local and directory:
        facts.disk = disk_bytes(Path(directory))


def _migration(connection: Connection, facts: Facts) -> None:
    """The migration state."""
    if connection.scalar(text("SELECT to_regclass('installation')")) is not None:
        row = connection.execute(
            text("SELECT (SELECT version_num FROM alembic_version), (SELECT engine FROM installation)")
        ).one()
        facts.revision, facts.engine = row


def _policies(connection: Connection, facts: Facts) -> None:
    """The policies."""
    if facts.engine is not None:
        facts.plan = plan_policies(connection, read_policies())


def _jobs(connection: Connection, facts: Facts) -> None:
    """The jobs."""
    facts.jobs = _rows(connection, Job, "SELECT * FROM background_jobs()")
    facts.scheduler = next(iter(_rows(connection, Scheduler, "SELECT * FROM job_scheduler()")), None)


def _freshness(connection: Connection, facts: Facts) -> None:
    """The freshness of the aggregates."""
    facts.aggregates = _rows(connection, Aggregate, "SELECT * FROM aggregate_freshness()")


def _devices(connection: Connection, facts: Facts) -> None:
    """The devices."""
    (facts.devices,) = _rows(
        connection,
        Devices,
        """
        SELECT (SELECT count(*) FROM meter) + (SELECT count(*) FROM vehicle) AS expected,
               count(*) FILTER (WHERE ts > now() - INTERVAL '10 minutes') AS reporting,
               count(*) AS reported_today
        FROM (SELECT ts FROM meter_state UNION ALL SELECT ts FROM vehicle_state) AS latest
        WHERE ts > now() - INTERVAL '1 day'
        """,
    )


def _sizes(connection: Connection, facts: Facts) -> None:
    """The sizes."""
    facts.sizes = _rows(connection, Size, "SELECT * FROM storage_sizes() ORDER BY name NOT LIKE '%reading', name")
    facts.prepared_until = connection.scalar(text("SELECT prepared_until()"))


def _rejected(connection: Connection, facts: Facts) -> None:
    """The quarantine."""
    facts.quarantined = connection.scalars(text("SELECT count(*) FROM quarantine")).one()
    codes = connection.execute(
        text("""
            SELECT code, count(*) FROM quarantine
            WHERE last_at > now() - INTERVAL '1 day'
            GROUP BY code ORDER BY count(*) DESC, code
        """)
    )
    facts.rejected_today = [(code, count) for code, count in codes]


Row = TypeVar("Row", bound=msgspec.Struct)


def _rows(connection: Connection, of: type[Row], statement: str) -> list[Row]:
    return [of(**row) for row in connection.execute(text(statement)).mappings()]


def disk_bytes(directory: Path) -> tuple[int, int] | None:
    """Free and total of the disk that the directory lies on; None when this machine does not have it."""
    try:
        disk = os.statvfs(directory)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
