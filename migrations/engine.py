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

    The reason is left for `migrate`. Raises SetupError when the server lacks the engine that the setting asks for, and
    when it has TimescaleDB, but not for this role: nobody gets plain without being told so.
    """
    lack = None if setting == "plain" else _create_extension(connection)
    if lack and setting == "timescale":
        raise SetupError(f"WATTLINE_ENGINE asks for 'timescale', but {lack}.")
    reason = f"since {lack or 'this server offers TimescaleDB Community'}"
    context.config.attributes["engine_reason"] = reason if setting == "auto" else "as WATTLINE_ENGINE asks"
    return "plain" if lack or setting == "plain" else "timescale"


def _create_extension(connection: Connection) -> str | None:
    """Creates the extension, else returns why the server lacks it. Its licence is known only once it is loaded."""
    available, preloaded = connection.execute(_OFFERED).one()
    if not available:
        return "this server does not offer TimescaleDB Community"
    if not preloaded:
        raise SetupError(
            "This server has TimescaleDB, but does not load it: add timescaledb to shared_preload_libraries in "
            f"postgresql.conf and restart the server. {_WITHOUT}"
        )
    savepoint = connection.begin_nested()
    try:
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS timescaledb"))
        licence = connection.scalar(text("SELECT current_setting('timescaledb.license', true)"))
    except DBAPIError as error:
        savepoint.rollback()
        raise SetupError(
            f"This server has TimescaleDB, but the extension cannot be created ({error.orig}): as a superuser, run "
            f"CREATE EXTENSION timescaledb; in this database, then migrate again. {_WITHOUT}"
        ) from error
    if licence == "timescale":
        savepoint.commit()
        return None
    savepoint.rollback()
    return f"this server does not offer TimescaleDB Community: timescaledb.license is '{licence}'"


_WITHOUT = "To do without TimescaleDB for good, set WATTLINE_ENGINE=plain."
_OFFERED = text("""
    SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb'),
           EXISTS (SELECT FROM pg_settings WHERE name = 'timescaledb.max_background_workers')
""")


def run_sql(name: str) -> None:
    """Runs the statements of a file that both engines share, or else of the database's engine."""
    connection = op.get_bind()
    own = SQL_DIRECTORY if migrated(connection).engine == "timescale" else SQL_DIRECTORY / "plain"
    shared = SQL_DIRECTORY / "shared" / name
    # A call without parameters may have several statements, and takes a percent sign as it is.
    statements = (shared if shared.exists() else own / name).read_text()
    connection.execution_options(no_parameters=True).exec_driver_sql(statements)
