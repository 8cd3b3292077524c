"""Brings a database to this version of Wattline: the migrations, then the policies."""

from functools import cache
from pathlib import Path
from typing import Literal

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.database import command_connection
from app.errors import SetupError
from app.policies.apply import apply_policies
from app.policies.desired import read_policies

ALEMBIC_INI = Path(__file__).resolve().parent.parent / "alembic.ini"


def migrate(url: str, *, engine: Literal["auto", "timescale", "plain"] = "auto") -> list[str]:
    """Migrates to the newest revision and applies timescale/policies.toml; returns a line for each changed policy.

    Raises SetupError when a migration fails, or the requested engine is unavailable or not the database's own.
    """
    policies = read_policies()
    with command_connection(url) as connection:
        config = Config(ALEMBIC_INI)
        config.attributes.update(connection=connection, engine=engine)
        # The migrations take it once more; this lock lasts as long as the session, until the policies are applied too.
        connection.execute(text("SELECT pg_advisory_lock(hashtext('wattline migrate'))"))
        connection.commit()
        try:
            command.upgrade(config, "head")
            with connection.begin():
                return apply_policies(connection, policies)
        except (CommandError, DBAPIError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise SetupError(f"The database cannot be migrated: {reason}") from error


@cache
def newest_revision() -> str:
    """The revision that this version of Wattline needs."""
    return ScriptDirectory.from_config(Config(ALEMBIC_INI)).get_current_head() or ""


def current_revision(url: str) -> str | None:
    """The revision that the database is at; None before the first migration. Raises SetupError when it is away."""
    with command_connection(url) as connection:
        return MigrationContext.configure(connection).get_current_revision()
