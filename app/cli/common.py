"""What commands share: the settings, and the database that they name."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from app.embedded import running
from app.errors import SetupError
from app.migrate import current_revision, migrate, newest_revision
from app.settings import Settings


@contextmanager
def open_database(settings: Settings, *, migrated: bool, start: bool = True) -> Iterator[str]:
    """The URL of the database: the operator's, or Wattline's own while this runs."""
    if settings.database_url is not None:
        if migrated:
            _refuse_other_revision(settings.database_url)
        yield settings.database_url
        return
    with running(settings.data_dir, pg_bin=settings.pg_bin, start=start) as url:
        if migrated:
            click.echo(f"The database lies under {settings.data_dir.resolve()}.")
            migrate(url, engine=settings.engine)
        yield url


def _refuse_other_revision(url: str) -> None:
    current, needed = current_revision(url), newest_revision()
    if current != needed:
        raise SetupError(f"The database is at revision {current}, this version needs {needed}: run `wattline migrate`.")
