"""The choice of a database's engine, and running the SQL files of that engine."""

import os
from pathlib import Path
from typing import Literal, cast

from alembic import context, op
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from app.errors import SetupError
from app.migrate import OTHER_SQL, migrated

Engine = Literal["timescale", "plain"]
EngineSetting = Literal["auto", "timescale", "plain"]

SQL_DIRECTORY = Path(__file__).resolve().parent.parent / "timescale"


def engine_setting() -> EngineSetting:
    """The setting that `wattline migrate` hands over, else WATTLINE_ENGINE."""
    return cast("EngineSetting", context.config.attributes.get("engine") or os.environ.get("WATTLINE_ENGINE", "auto"))


def refuse_foreign(connection: Connection, setting: EngineSetting) -> None:
    """Raises SetupError when other SQL made the database, or when its engine is not the one asked for."""
    found = migrated(connection)
    if found.by_other_sql:
        raise SetupError(OTHER_SQL)
    if found.engine is not None and setting not in ("auto", found.engine):
        raise SetupError(
            f"This database was migrated for the engine '{found.engine}'; WATTLINE_ENGINE asks for '{setting}'."
        )


def choose_engine(connection: Connection, setting: EngineSetting) -> Engine:
    """The engine for a new database: the one that the setting asks for, else TimescaleDB if the server has Community.

    Raises SetupError when the server lacks the engine that the setting asks for.
    """
    if setting == "plain":
        return "plain"
    if _create_extension(connection):
        return "timescale"
    if setting == "timescale":
        raise SetupError("WATTLINE_ENGINE asks for 'timescale', but this server does not offer TimescaleDB Community.")
    return "plain"


def _create_extension(connection: Connection) -> bool:
    """Whether the server has TimescaleDB Community, created if so; the licence is known only once it is loaded."""
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
    """Runs the statements of a file that both engines share, or else of the database's engine."""
    connection = op.get_bind()
    own = SQL_DIRECTORY if migrated(connection).engine == "timescale" else SQL_DIRECTORY / "plain"
    shared = SQL_DIRECTORY / "shared" / name
    # A call without parameters may have several statements, and takes a percent sign as it is.
    statements = (shared if shared.exists() else own / name).read_text()
    connection.execution_options(no_parameters=True).exec_driver_sql(statements)
