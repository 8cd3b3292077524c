"""How fresh the answers are."""

from datetime import datetime
from typing import NamedTuple

import msgspec
from sqlalchemy import bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.fleet.states import DEVICES_IN_SERVICE
from app.tables import aggregate_freshness, aggregate_retention


class Aggregate(msgspec.Struct, frozen=True, rename="camel"):
    """How far an aggregate is materialised; what is newer is computed from the level below when asked."""

    name: str
    materialized_through: datetime | None
    lag_seconds: float | None


class Freshness(msgspec.Struct, frozen=True, rename="camel"):
    """Every reading committed before `as_of` is in every answer; null when no refresh has succeeded yet."""

    as_of: datetime | None
    aggregates: list[Aggregate]
    devices_reporting: int
    devices_expected: int


class Instants(NamedTuple):
    """Up to when some aggregates are complete and materialised (None: one was never refreshed), and how far they reach.

    All of them are kept whole from `kept_from` on; None: for good.
    """

    as_of: datetime | None
    materialized_through: datetime | None
    kept_from: datetime | None


async def fetch_instants(connection: AsyncConnection, *aggregates: str) -> Instants:
    """Every reading committed before `as_of` is in all of those aggregates, for a statement that starts later.

    So it is to be asked before the data.
    """
    rows = (await connection.execute(_INSTANTS, {"names": aggregates})).all()
    *complete, kept_from = zip(*rows, strict=True)
    first, through = (None if None in instants else min(instants) for instants in complete)
    return Instants(first, through, max(filter(None, kept_from), default=None))


async def fetch_freshness(connection: AsyncConnection) -> Freshness:
    """Freshness of all aggregates, and how many devices report."""
    rows = (await connection.execute(_AGGREGATES)).all()
    devices = (await connection.execute(text(DEVICES_IN_SERVICE))).one()
    instants = [instant for _, _, instant, _ in rows]
    return Freshness(
        None if None in instants else min(instants),
        [Aggregate(name, through, None if lag is None else float(lag)) for name, through, _, lag in rows],
        devices.reporting,
        devices.expected,
    )


_INSTANTS = (
    select(aggregate_freshness.c.as_of, aggregate_freshness.c.materialized_through, aggregate_retention.c.kept_from)
    .join_from(aggregate_freshness, aggregate_retention, aggregate_freshness.c.name == aggregate_retention.c.name)
    .where(aggregate_freshness.c.name.in_(bindparam("names", expanding=True)))
)
_AGGREGATES = select(
    aggregate_freshness.c.name,
    aggregate_freshness.c.materialized_through,
    aggregate_freshness.c.as_of,
    func.extract("epoch", func.now() - aggregate_freshness.c.materialized_through),
).order_by(aggregate_freshness.c.name)
