"""The health calls: one tells that the process is alive, the other that the service can serve."""

import asyncio
from datetime import datetime

import msgspec
import psycopg
from litestar import Response, get
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app import __version__
from app.database import LOCK_MILLISECONDS, driver_connection, limited
from app.faults import FIND_STORE_FAULTS
from app.migrate import migrated, newest_revision
from app.ops.watch import Watch
from app.problem_answers import translated

# A database that does not answer so soon is not ready.
LOOK_SECONDS = 0.9


class Live(msgspec.Struct, frozen=True):
    """The answer of a process that runs."""

    status: str
    version: str


class Warned(msgspec.Struct, frozen=True):
    """Something that is wrong while the service serves: a stable code, and a sentence that says what to do about it."""

    code: str
    detail: str


class Ready(msgspec.Struct, frozen=True, rename="camel"):
    """The service can serve: its database answers, is migrated to the revision that this version needs, and stores.

    `warnings` are what `wattline doctor` finds wrong, as of `checkedAt`; it is null before the first look.
    """

    status: str
    version: str
    needed_revision: str
    revision: str | None = None
    engine: str | None = None
    postgresql: str | None = None
    timescaledb: str | None = None
    warnings: list[Warned] = []
    checked_at: datetime | None = None


@get("/health/live", tags=["health"])
async def get_live() -> Live:
    """Answers as long as the process runs."""
    return Live("ok", __version__)


@get(
    "/health/ready",
    tags=["health"],
    responses={
        503: ResponseSpec(Ready, description="The service cannot serve; `status` says why.", generate_examples=False)
    },
)
async def get_ready(
    pool: NamedDependency[AsyncEngine], watch: NamedDependency[Watch], store_fault: NamedDependency[str | None]
) -> Response[Ready]:
    """Returns 200 when the service can serve, else 503, with the engine, versions, migration and warnings."""
    try:
        looking = asyncio.ensure_future(_look(pool, disk_full=store_fault == "disk_full"))
        ready = await asyncio.wait_for(asyncio.shield(looking), LOOK_SECONDS)
    except TimeoutError:
        ready = Ready("frozen", __version__, newest_revision())
    warnings = [Warned(found.code, found.sentence) for found in watch.findings if found.code != ready.status]
    ready = msgspec.structs.replace(ready, warnings=warnings, checked_at=watch.checked_at)
    return Response(ready, status_code=200 if ready.status == "ok" else 503)


async def _look(pool: AsyncEngine, *, disk_full: bool) -> Ready:
    needed = newest_revision()
    try:
        async with pool.connect() as connection:
            async with limited(connection):
                postgresql, timescaledb = (await connection.execute(_VERSIONS)).one()
                found = await connection.run_sync(migrated)
                if found.by_other_sql or found.revision != needed:
                    status = "other_sql" if found.by_other_sql else "not_migrated"
                else:
                    status = next(iter(await connection.scalar(text(FIND_STORE_FAULTS)) or ()), "ok")
            if status == "ok":
                await connection.exec_driver_sql(_TAKE_LOCKS)
            elif status == "read_only":
                # The session keeps the setting that it began with.
                await connection.invalidate()
        # No batch need come to show that there is room again.
        if status == "ok" and disk_full and not await _has_room(pool):
            status = "disk_full"
    except (SQLAlchemyError, psycopg.Error) as error:
        if isinstance(error, DBAPIError) and isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            return Ready("not_permitted", __version__, needed)
        ours = translated(error)
        if ours is None:
            raise
        return Ready(ours.code, __version__, needed)
    return Ready(status, __version__, needed, found.revision, found.engine, postgresql, timescaledb)


async def _has_room(pool: AsyncEngine) -> bool:
    """Tries to take as much of the disk as a large group of batches, and gives it back."""
    try:
        async with driver_connection(pool) as connection, connection.transaction(force_rollback=True):
            await connection.execute(_TAKE_ROOM)
    except psycopg.errors.DiskFull:
        return False
    return True


# The locks that a batch needs.
_TAKE_LOCKS = f"""
    BEGIN;
    SET LOCAL lock_timeout = {LOCK_MILLISECONDS};
    LOCK TABLE ONLY meter_reading, ONLY vehicle_reading, meter_state, vehicle_state, touched_hour
        IN ROW EXCLUSIVE MODE;
    ROLLBACK
"""
_TAKE_ROOM = """
    SET LOCAL client_min_messages = warning;
    CREATE TEMP TABLE room ON COMMIT DROP AS SELECT repeat('x', 1900) FROM generate_series(1, 4000)
"""
_VERSIONS = text("""
    SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb')
""")
