"""Commands that look after the database."""

import os
import sys
from datetime import datetime

import click

from app.cli.common import INSTANT, open_database
from app.migrate import migrate as migrate_database
from app.ops.doctor.report import examine
from app.ops.refresh import refresh_aggregates
from app.settings import Settings


@click.command()
def migrate() -> None:
    """Bring the database to this version; apply the policies; record the settings by which all processes answer."""
    settings = Settings.from_environ(os.environ)
    with open_database(settings, migrated=False) as url:
        for change in migrate_database(url, engine=settings.engine, record=settings, progress=click.echo):
            click.echo(change)
    click.echo("The database is migrated.")


@click.command()
@click.option("--from", "start", type=INSTANT, help="Start; the oldest readings if not given.")
@click.option("--to", "end", type=INSTANT, help="End; now if not given.")
def refresh(start: datetime | None, end: datetime | None) -> None:
    """Bring the aggregates up to date now. The database must be running.

    Without this, the refresh policies do it each minute.
    """
    settings = Settings.from_environ(os.environ)
    with open_database(settings, migrated=False, start=False) as url:
        refresh_aggregates(url, start, end, progress=click.echo)
    click.echo("The aggregates are refreshed.")


@click.command()
def doctor() -> None:
    """Report what is in force, the state of the database, and what is wrong.

    The report changes nothing. The exit status is 1 if something is wrong.
    """
    settings = Settings.from_environ(os.environ)
    report, healthy = examine(open_database(settings, migrated=False, start=False), settings, os.environ)
    click.echo(report)
    if not healthy:
        sys.exit(1)
