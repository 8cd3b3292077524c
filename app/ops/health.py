"""The health calls: one tells that the process is alive, the other that the service can serve."""

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
from app.database import FIND_STORE_FAULTS
from app.migrate import migrated, newest_revision
from app.ops.watch import Watch
from app.problem_answers import translated


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
async def get_ready(pool: NamedDependency[AsyncEngine], watch: NamedDependency[Watch]) -> Response[Ready]:
    """Returns 200 when the service can serve, else 503, with the engine, versions, migration and warnings."""
    ready = await _look(pool)
    warnings = [Warned(found.code, found.sentence) for found in watch.findings if found.code != ready.status]
    ready = msgspec.structs.replace(ready, warnings=warnings, checked_at=watch.checked_at)
    return Response(ready, status_code=200 if ready.status == "ok" else 503)


async def _look(pool: AsyncEngine) -> Ready:
    needed = newest_revision()
    try:
        async with pool.connect() as connection:
            postgresql, timescaledb = (await connection.execute(_VERSIONS)).one()
            found = await connection.run_sync(migrated)
            if found.by_other_sql or found.revision != needed:
                status = "other_sql" if found.by_other_sql else "not_migrated"
            else:
                status = next(iter(await connection.scalar(text(FIND_STORE_FAULTS)) or ()), "ok")
    except SQLAlchemyError as error:
        if isinstance(error, DBAPIError) and isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            return Ready("not_permitted", __version__, needed)
        if translated(error) is None:
            raise
        return Ready("database_away", __version__, needed)
    return Ready(status, __version__, needed, found.revision, found.engine, postgresql, timescaledb)


_VERSIONS = text("""
    SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb')
""")
