"""Which engine a database has, and the SQL files that only that engine understands."""

import os
from pathlib import Path
from typing import Literal, cast

from alembic import context, op
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from app.errors import SetupError
from app.migrate import OTHER_SQL, migrated

Engine = Literal["timescale", "plain"]
Wanted = Literal["auto", "timescale", "plain"]

SQL_DIRECTORY = Path(__file__).resolve().parent.parent / "timescale"


def wanted_engine() -> Wanted:
    """What `wattline migrate` hands over, else WATTLINE_ENGINE."""
    return cast("Wanted", context.config.attributes.get("engine") or os.environ.get("WATTLINE_ENGINE", "auto"))


def refuse_foreign(connection: Connection, wanted: Wanted) -> None:
    """Raises SetupError when other SQL made the database, or when it was migrated for another engine than wanted."""
    found = migrated(connection)
    if found.by_other_sql:
        raise SetupError(OTHER_SQL)
    if found.engine is not None and wanted not in ("auto", found.engine):
        raise SetupError(
            f"This database was migrated for the engine '{found.engine}'; WATTLINE_ENGINE asks for '{wanted}'."
        )


def choose_engine(connection: Connection, wanted: Wanted) -> Engine:
    """The wanted engine, else TimescaleDB Community where the server has it, for a database that has none yet.

    Raises SetupError when the server lacks it.
    """
    if wanted == "plain":
        return "plain"
    if _create_extension(connection):
        return "timescale"
    if wanted == "timescale":
        raise SetupError("WATTLINE_ENGINE asks for 'timescale', but this server does not offer TimescaleDB Community.")
    return "plain"


def _create_extension(connection: Connection) -> bool:
    """Creates the extension and looks at its licence: before it is loaded, the server does not tell."""
    preloaded = text("SELECT 1 FROM pg_settings WHERE name = 'timescaledb.max_background_workers'")
    if connection.scalar(preloaded) is None:
        return False
    savepoint = connection.begin_nested()
    try:
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS timescaledb"))
        licence = connection.scalar(text("SELECT current_setting('timescaledb.license', true)"))
    except DBAPIError:
        licence = None
    if licence == "timescale":
        savepoint.commit()
        return True
    savepoint.rollback()
    return False


def run_sql(name: str) -> None:
    """Runs the statements of the file: that of the database's engine, or the one that both engines share."""
    connection = op.get_bind()
    own = SQL_DIRECTORY if migrated(connection).engine == "timescale" else SQL_DIRECTORY / "plain"
    shared = SQL_DIRECTORY / "shared" / name
    # Without parameters, several statements go in one call and a percent sign is itself.
    statements = (shared if shared.exists() else own / name).read_text()
    connection.execution_options(no_parameters=True).exec_driver_sql(statements)
