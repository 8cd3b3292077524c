"""Runs each migration in a transaction of its own, under an advisory lock and with time limits.

`wattline migrate` hands over a connection; `alembic` by hand uses DATABASE_URL and WATTLINE_ENGINE.
"""

import os
import re
from collections.abc import Collection, Mapping
from typing import Any, cast

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from sqlalchemy import Connection, text

from app.analytics.alerts import schema as alerts_schema  # noqa: F401 - its tables belong to the metadata
from app.analytics.sessions import schema as sessions_schema  # noqa: F401 - likewise
from app.database import create_sync_engine
from app.migrate import sql_checksum
from app.policies.record import policy_change
from migrations.engine import engine_setting, refuse_foreign

# The SQL files of an engine make partitions, and tables that only this engine has. The metadata does not know them.
ENGINE_OWNED = re.compile(
    r"(meter|vehicle)_reading_\d{8}|fleet_(meter|vehicle)_minute|(fleet_)?(meter|vehicle)_(hour|day)_kept"
    r"|cagg_refreshed|source_chunk"
)


def include_object(item: Any, name: str | None, kind: str, reflected: bool, compare_to: Any) -> bool:
    """Whether Alembic compares the object: not the engines' own tables, nor the indexes of the readings."""
    if kind == "table":
        return not (reflected and ENGINE_OWNED.fullmatch(name or ""))
    return not (kind == "index" and item.table.name in ("meter_reading", "vehicle_reading"))


def record_checksum(
    ctx: MigrationContext, step: MigrationInfo, heads: Collection[Any], run_args: Mapping[str, Any]
) -> None:
    """Runs in the transaction of each migration, so that after a failed one the database can be migrated further."""
    for revision in heads:
        cast("Connection", ctx.connection).execute(
            text("UPDATE installation SET sql_checksum = :checksum"), {"checksum": sql_checksum(revision)}
        )


def run_migrations(connection: Connection) -> None:
    connection.execute(text("SET statement_timeout = '60s'"))
    # The session holds the lock over all transactions, so that two deployments at once migrate one after the other.
    connection.execute(text("SELECT pg_advisory_lock(hashtext('wattline migrate'))"))
    # From here on it waits briefly for a lock, since every insert would queue behind it. The limit is not set earlier,
    # since it holds for advisory locks too, and another deployment may take longer.
    connection.execute(text("SET lock_timeout = '5s'"))
    connection.commit()
    context.configure(
        connection=connection,
        target_metadata=policy_change.metadata,
        include_object=include_object,
        # A table of Wattline's own, so that another application may migrate the same database by Alembic.
        version_table="wattline_version",
        on_version_apply=record_checksum,
        transaction_per_migration=True,
        compare_type=True,
        compare_server_default=False,
    )
    try:
        refuse_foreign(connection, engine_setting())
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(hashtext('wattline migrate'))"))
        connection.commit()


if (given := context.config.attributes.get("connection")) is not None:
    run_migrations(given)
else:
    engine = create_sync_engine(os.environ["DATABASE_URL"])
    with engine.connect() as own:
        run_migrations(own)
    engine.dispose()
