"""The call about storage: what is stored, what it takes, its policies, and what is dropped next."""

from datetime import datetime

import msgspec
from litestar import get
from litestar.di import NamedDependency
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import reading
from app.errors import SetupError, StoreUnavailable
from app.policies.invariants import read_policies
from app.policies.storage import Storage, fetch_storage
from app.problem_answers import AWAY, problems


class SizeHistory(msgspec.Struct, frozen=True):
    """Sizes in bytes at the instants of `at`: each hour of the last two days, before that the first of each UTC day."""

    at: list[datetime]
    bytes: dict[str, list[int | None]]


class StorageAnswer(msgspec.Struct, frozen=True):
    """The storage now, and its growth."""

    storage: Storage
    history: SizeHistory


@get("/v1/storage", tags=["storage"], responses=problems({503: AWAY}))
async def get_storage(pool: NamedDependency[AsyncEngine]) -> StorageAnswer:
    """Returns the sizes of all tables and aggregates over time, their policies, and what is dropped next."""
    async with reading(pool) as connection:
        return await connection.run_sync(_fetch)


def _fetch(connection: Connection) -> StorageAnswer:
    try:
        policies = read_policies()
    except SetupError as error:
        raise StoreUnavailable(f"{error}") from error
    return StorageAnswer(fetch_storage(connection, policies), _fetch_history(connection))


def _fetch_history(connection: Connection) -> SizeHistory:
    rows = connection.execute(_HISTORY).all()
    instants = sorted({at for at, _, _ in rows})
    sizes = {(name, at): size for at, name, size in rows}
    names = sorted({name for _, name, _ in rows})
    return SizeHistory(instants, {name: [sizes.get((name, at)) for at in instants] for name in names})


_HISTORY = text("""
    SELECT at, name, bytes
    FROM storage_size
    WHERE at > now() - INTERVAL '2 days'
        OR at IN (SELECT min(at) FROM storage_size GROUP BY utc_bucket('1 day', at))
""")
