"""The freshness of the answers."""

from datetime import datetime
from typing import NamedTuple

import msgspec
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import fetch_all, limited
from app.fleet.states import DEVICES_IN_SERVICE
from app.tables import aggregate_freshness


class Aggregate(msgspec.Struct, frozen=True, rename="camel"):
    """The extent to which an aggregate is materialised; newer buckets are computed from the level below when asked."""

    name: str
    materialized_through: datetime | None
    lag_seconds: float | None


class Freshness(msgspec.Struct, frozen=True, rename="camel"):
    """The answers include every reading committed before `as_of`; null until the first refresh has succeeded."""

    as_of: datetime | None
    aggregates: list[Aggregate]
    devices_reporting: int
    devices_expected: int


class Instants(NamedTuple):
    """The instants up to which some aggregates are complete and materialised (None: one was never refreshed).

    All of them are complete from `kept_from` on; None means that they are kept for good.
    """

    as_of: datetime | None
    materialized_through: datetime | None
    kept_from: datetime | None


async def fetch_instants(connection: AsyncConnection, *aggregates: str) -> Instants:
    """Returns their instants. They hold all readings committed before `as_of`, for statements that start later.

    The caller must therefore ask before it fetches data.
    """
    async with limited(connection):
        rows = await fetch_all(connection, _INSTANTS, {"names": [*aggregates]})
    *complete, kept_from = zip(*rows, strict=True)
    first, through = (None if None in instants else min(instants) for instants in complete)
    return Instants(first, through, max(filter(None, kept_from), default=None))


async def fetch_freshness(connection: AsyncConnection) -> Freshness:
    """Returns the freshness of all aggregates, and how many devices report."""
    rows = (await connection.execute(_AGGREGATES)).all()
    devices = (await connection.execute(text(DEVICES_IN_SERVICE))).one()
    instants = [instant for _, _, instant, _ in rows]
    return Freshness(
        None if None in instants else min(instants),
        [Aggregate(name, through, None if lag is None else float(lag)) for name, through, _, lag in rows],
        devices.reporting,
        devices.expected,
    )


_INSTANTS = text("SELECT * FROM aggregate_instants(CAST(:names AS text[]))")
_AGGREGATES = select(
    aggregate_freshness.c.name,
    aggregate_freshness.c.materialized_through,
    aggregate_freshness.c.as_of,
    func.extract("epoch", func.now() - aggregate_freshness.c.materialized_through),
).order_by(aggregate_freshness.c.name)
