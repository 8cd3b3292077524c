"""Questions to the database and the broker. Each has a transaction of its own, which only reads and soon gives up."""

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

from app.database import command_connection, shown_url
from app.errors import SetupError
from app.faults import FIND_STORE_FAULTS
from app.fleet.states import DEVICES_IN_SERVICE
from app.migrate import migrated, newest_revision
from app.ops.doctor.broker import ask_broker
from app.ops.doctor.facts import (
    Aggregate,
    AlikeIds,
    Devices,
    Facts,
    Finding,
    Flood,
    ImplausibleDevices,
    Job,
    Scheduler,
    Server,
    Size,
)
from app.ops.maintenance import QUARANTINE_ROWS
from app.policies.invariants import read_policies
from app.policies.plan import plan_policies
from app.settings import Settings


def find_out(database: AbstractContextManager[str], settings: Settings, environ: Mapping[str, str]) -> Facts:
    """Asks the database whose URL the context yields, and the broker. A SetupError from the context is a finding."""
    facts = unasked(settings, environ)
    try:
        with database as url, command_connection(url) as connection:
            connection.execution_options(postgresql_readonly=True)
            ask_database(connection, facts, for_report=True)
    except SetupError as error:
        facts.away = str(error)
        if settings.database_url is None:
            facts.disk = disk_bytes(settings.data_dir / "postgres")
    if settings.mqtt_url is not None:
        try:
            facts.grants = ask_broker(settings)
        except SetupError as error:
            facts.broker_away = str(error)
    return facts


def unasked(settings: Settings, environ: Mapping[str, str]) -> Facts:
    """Returns what is known before anything is asked."""
    return Facts(
        settings=settings,
        variables=environ,
        needed_revision=newest_revision(),
        database=shown_url(settings.database_url or "") or "",
    )


def ask_database(connection: Connection, facts: Facts, *, for_report: bool) -> None:
    """Asks all questions that the checks need, and with `for_report` what only the report shows.

    The connection should be read-only. Raises SetupError when it is lost.
    """
    for subject, question in _QUESTIONS:
        # Sizes take a look at each chunk, and wait for one that is being compressed.
        if for_report or question is not _sizes:
            _ask(subject, question, connection, facts)


def _ask(subject: str, question: Callable[[Connection, Facts], None], connection: Connection, facts: Facts) -> None:
    try:
        with connection.begin():
            # The doctor does not wait for a lock, such as a migration's.
            connection.execute(text("SET LOCAL statement_timeout = '5s'"))
            question(connection, facts)
    except DBAPIError as error:
        if error.connection_invalidated:
            raise SetupError(f"The database went away: {error.orig}") from error
        if "not_preloaded" in facts.store_faults:
            return  # the cause is a finding already
        missing = isinstance(error.orig, _MISSING)
        # A database of another revision, or of other SQL, lacks parts: its migration state says so already.
        if not missing or (facts.revision == facts.needed_revision and not facts.by_other_sql):
            advice = next((then for kind, then in _ADVICE.items() if isinstance(error.orig, kind)), "")
            facts.unread.append(_unread(subject, f"{str(error.orig).splitlines()[0]}. {advice}"))
    except SetupError as error:
        facts.unread.append(_unread(subject, f"{error}."))


def _unread(subject: str, why: str) -> Finding:
    return Finding("not_read", f"The {subject} cannot be read: {why}", subject)


def _server(connection: Connection, facts: Facts) -> None:
    info = cast("psycopg.Connection[Any]", connection.connection.driver_connection).info
    socket = info.host.startswith("/")
    facts.database = f"{info.dbname} at {info.host}{'' if socket else f' port {info.port}'} as {info.user}"
    facts.local = socket or info.hostaddr in ("127.0.0.1", "::1")
    (facts.server,) = _rows(
        connection,
        Server,
        # unsafe_settings names settings that risk a lost commit or broken data when the machine fails.
        """
        SELECT current_setting('server_version') AS postgresql,
               current_setting('server_version_num')::integer AS postgresql_number,
               (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb') AS timescaledb,
               pg_postmaster_start_time() AS started_at,
               ARRAY(SELECT name FROM unnest(ARRAY['fsync', 'full_page_writes', 'synchronous_commit']) AS name
                     WHERE current_setting(name) = 'off') AS unsafe_settings,
               (SELECT least(current_setting('max_connections')::integer
                                 - current_setting('superuser_reserved_connections')::integer
                                 - coalesce(current_setting('reserved_connections', true)::integer, 0),
                             nullif(datconnlimit, -1), nullif(rolconnlimit, -1))
                FROM pg_database, pg_roles
                WHERE datname = current_database() AND rolname = current_user) AS connections_allowed,
               (SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = 'wattline' AND pid != pg_backend_pid())
                   AS service_connections,
               -- NULL for a role that may not read it.
               (SELECT setting FROM pg_settings WHERE name = 'data_directory') AS data_directory,
               pg_database_size(current_database()) AS database_bytes
        """,
    )


def _clock(connection: Connection, facts: Facts) -> None:
    before = time.time()
    facts.now = connection.scalars(text("SELECT clock_timestamp()")).one()
    facts.clock_ahead_seconds = facts.now.timestamp() - (before + time.time()) / 2


def _disk(_: Connection, facts: Facts) -> None:
    directory = facts.server.data_directory if facts.server else None
    if facts.local and directory:
        facts.disk = disk_bytes(Path(directory))


def _migration(connection: Connection, facts: Facts) -> None:
    found = migrated(connection)
    facts.engine, facts.revision, facts.by_other_sql = found.engine, found.revision or "", found.by_other_sql


def _recorded(connection: Connection, facts: Facts) -> None:
    facts.recorded = connection.scalars(text("SELECT settings FROM installation")).one()


def _storing(connection: Connection, facts: Facts) -> None:
    facts.store_faults = connection.scalars(text(FIND_STORE_FAULTS)).one()


def _policies(connection: Connection, facts: Facts) -> None:
    if facts.engine is not None:
        facts.plan = plan_policies(connection, read_policies())


def _jobs(connection: Connection, facts: Facts) -> None:
    facts.jobs = _rows(connection, Job, "SELECT * FROM background_jobs()")
    facts.scheduler = next(iter(_rows(connection, Scheduler, "SELECT * FROM job_scheduler()")), None)
    facts.uncompressed = [tuple(row) for row in connection.execute(text("SELECT * FROM chunks_not_compressed()"))]


def _freshness(connection: Connection, facts: Facts) -> None:
    facts.aggregates = _rows(connection, Aggregate, "SELECT * FROM aggregate_freshness()")
    facts.installed_at = connection.scalars(text("SELECT installed_at FROM installation")).one()


def _devices(connection: Connection, facts: Facts) -> None:
    (facts.devices,) = _rows(connection, Devices, DEVICES_IN_SERVICE)


def _alike_ids(connection: Connection, facts: Facts) -> None:
    facts.alike_ids = _rows(
        connection,
        AlikeIds,
        # Ids are ASCII, so C collates them right. With 20,000 devices, this takes 25 ms.
        """
        SELECT stream, array_agg(external_id ORDER BY external_id COLLATE "C") AS ids, count(*) OVER () AS groups
        FROM device
        WHERE in_service
        GROUP BY stream, lower(external_id COLLATE "C")
        HAVING count(*) > 1
        ORDER BY stream, lower(external_id COLLATE "C")
        LIMIT 3
        """,
    )


def _implausible(connection: Connection, facts: Facts) -> None:
    facts.implausible = _rows(
        connection,
        ImplausibleDevices,
        """
        SELECT evidence ->> 'looksLike' AS looks_like, count(*) AS count,
               (array_agg(stream || ' ' || external_id ORDER BY stream, external_id))[1:5] AS names
        FROM alert JOIN device USING (stream)
        WHERE device.id = device_id AND kind = 'implausible_energy' AND closed IS NULL AND in_service
        GROUP BY 1
        ORDER BY 1
        """,
    )


def _partitions(connection: Connection, facts: Facts) -> None:
    facts.prepared_until = connection.scalar(text("SELECT prepared_until()"))


def _sizes(connection: Connection, facts: Facts) -> None:
    facts.sizes = _rows(connection, Size, "SELECT * FROM storage_sizes() ORDER BY name NOT LIKE '%reading', name")


def _quarantine(connection: Connection, facts: Facts) -> None:
    facts.quarantined = connection.scalars(text("SELECT count(*) FROM quarantine")).one()
    codes = connection.execute(
        text("""
            SELECT code, count(*) FROM quarantine
            WHERE last_at > now() - INTERVAL '1 day'
            GROUP BY code ORDER BY count(*) DESC, code
        """)
    )
    facts.rejected_today = [(code, count) for code, count in codes]
    if facts.quarantined >= QUARANTINE_ROWS:
        # Grouped as maintenance shares the quarantine.
        of_each = """
            SELECT source, known.external_id AS device, max(code) AS code, count(*) AS count
            FROM quarantine
            LEFT JOIN (SELECT external_id FROM meter UNION SELECT external_id FROM vehicle) AS known
                ON known.external_id = device
            WHERE last_at > now() - INTERVAL '1 day'
            GROUP BY source, known.external_id, CASE WHEN known.external_id IS NULL THEN code END
            ORDER BY count(*) DESC, source, coalesce(known.external_id, max(code)) LIMIT 1
        """
        facts.flood = next(iter(_rows(connection, Flood, of_each)), None)


# The policies come after the migration state, which names the engine.
_QUESTIONS: tuple[tuple[str, Callable[[Connection, Facts], None]], ...] = (
    ("server", _server),
    ("clock", _clock),
    ("disk", _disk),
    ("migration state", _migration),
    ("recorded settings", _recorded),
    ("ability to store readings", _storing),
    ("policies", _policies),
    ("jobs", _jobs),
    ("freshness of the aggregates", _freshness),
    ("devices", _devices),
    ("ids of the devices", _alike_ids),
    ("alerts", _implausible),
    ("partitions", _partitions),
    ("sizes", _sizes),
    ("quarantine", _quarantine),
)
_MISSING = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedFunction)
_ADVICE: dict[type[psycopg.Error], str] = {
    psycopg.errors.InsufficientPrivilege: "Run the doctor as the owner of the database.",
    psycopg.errors.QueryCanceled: "Run the doctor again when nothing is locked.",
}

Row = TypeVar("Row", bound=msgspec.Struct)


def _rows(connection: Connection, of: type[Row], statement: str) -> list[Row]:
    return [of(**row) for row in connection.execute(text(statement)).mappings()]


def disk_bytes(directory: Path) -> tuple[int, int] | None:
    """Returns the free and total bytes of the directory's disk; None if this machine has no such directory."""
    try:
        disk = os.statvfs(directory)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
