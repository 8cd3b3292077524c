"""The migration of a database to this version of Wattline: the revisions, then the policies."""

from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, select, text, update
from sqlalchemy.exc import DBAPIError

from app.database import command_connection
from app.errors import SetupError
from app.policies.apply import migrate_policies
from app.policies.invariants import read_policies
from app.settings import Settings, variable_of
from app.tables import installation

ROOT = Path(__file__).resolve().parent.parent
ALEMBIC_INI = ROOT / "alembic.ini"
OTHER_SQL = (
    "The database was made by other SQL than this version has, and cannot be used: migrations change until the first "
    "release. Export its readings with the version that made it (GET /v1/analytics/meters/{id}/readings) or with psql, "
    "start with an empty database (Wattline's own is empty after you have removed its directory, `.wattline`), and "
    "bring them back with `wattline import`: see docs/import.md."
)


def migrate(
    url: str,
    *,
    engine: Literal["auto", "timescale", "plain"] = "auto",
    record: Settings | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Migrates to the newest revision and applies timescale/policies.toml; returns one line per changed policy.

    After the first installation, changes that could lose something are left, and one more line names them. If `record`
    holds other values than the database records, its values are recorded, and a line names each.
    `progress` is called with a line that names the engine and the reason for it. Raises SetupError when a migration
    fails, when other SQL made the database, and when the requested engine is unavailable or not the database's own.
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
            reason = config.attributes.get("engine_reason", "as recorded when the database was first migrated")
            progress(f"The engine is {migrated(connection).engine}, {reason}.")
            connection.rollback()
            with connection.begin():
                changes = migrate_policies(connection, policies)
                return [*changes, *(_record(connection, record) if record else ())]
        except (CommandError, DBAPIError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise SetupError(f"The database cannot be migrated: {reason}") from error


def _record(connection: Connection, settings: Settings) -> Iterator[str]:
    new, former = settings.recorded(), connection.scalars(select(installation.c.settings)).one()
    if new != former:
        connection.execute(update(installation).values(settings=new))
    for field, value in new.items():
        if value != former[field]:
            yield f"{variable_of(field)}: recorded as {value:.15g} (was {former[field]:.15g}), for all processes"


@cache
def newest_revision() -> str:
    """Returns the revision that this version of Wattline needs."""
    return ScriptDirectory.from_config(Config(ALEMBIC_INI)).get_current_head() or ""


@cache
def sql_checksum(revision: str) -> str:
    """Returns the checksum of all that makes a database of this revision: its migrations and their SQL files."""
    files = (*ROOT.glob("migrations/versions/*.py"), *ROOT.glob("timescale/**/*.sql"))
    made_by = sorted(path for path in files if path.name[:4] <= revision)
    return sha256(b"".join(path.read_bytes() for path in made_by)).hexdigest()


class Migrated(NamedTuple):
    """How far a database is migrated: its engine and revision, and the checksum of the SQL that made it.

    All are None before the first migration. A database of an earlier Wattline has an engine only.
    """

    engine: Literal["timescale", "plain"] | None = None
    revision: str | None = None
    checksum: str | None = None

    @property
    def by_other_sql(self) -> bool:
        """Tells whether other SQL made the database than this version has; False for a revision that it lacks."""
        if self.engine is None or (self.revision or "") > newest_revision():
            return False
        return self.revision is None or self.checksum != sql_checksum(self.revision)


def migrated(connection: Connection) -> Migrated:
    """Returns how far the database is migrated."""
    installed, versioned = connection.execute(_TABLES).one()
    if not installed:
        return Migrated()
    return Migrated(*connection.execute(_MIGRATED if versioned else _ENGINE).one())


_TABLES = text("SELECT to_regclass('installation') IS NOT NULL, to_regclass('wattline_version') IS NOT NULL")
_MIGRATED = text("SELECT engine, (SELECT version_num FROM wattline_version), sql_checksum FROM installation")
_ENGINE = text("SELECT engine FROM installation")


def refuse_unmigrated(url: str) -> None:
    """Raises SetupError unless the database is what this version of Wattline needs; also when it is away."""
    with command_connection(url) as connection:
        found = migrated(connection)
    if found.by_other_sql:
        raise SetupError(OTHER_SQL)
    if found.revision != newest_revision():
        raise SetupError(
            f"The database is at revision {found.revision}, this version needs {newest_revision()}: "
            "run `wattline migrate`."
        )
