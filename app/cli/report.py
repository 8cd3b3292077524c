"""The command that reports on a month."""

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import click
from msgspec.structs import astuple, fields

from app.analytics.report import Report, Sums, fetch_report
from app.cli.common import on_database, table
from app.cli.report_page import page_of
from app.cli.report_text import days_table, notes, title, worst_tables
from app.csv_rows import csv_rows
from app.errors import SetupError
from app.settings import Settings

MONTH = click.DateTime(formats=["%Y-%m"])


@click.command()
@click.option("--month", required=True, type=MONTH, metavar="YYYY-MM", help="The month, such as 2026-10.")
@click.option("--site", help="Report only on the meters of this site, and on what charged there.")
@click.option("--tz", default="UTC", show_default=True, help="The time zone of the days, such as Europe/Berlin.")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page to print (.html), or the days as CSV (.csv).",
)
def report(month: datetime, site: str | None, tz: str, output: Path | None) -> None:
    """Report on a month, day by day: energy, losses and their cost, sessions, and the worst devices.

    The database must be running.
    """
    if output and output.suffix not in _WRITTEN:
        raise SetupError(f"{output} must end with {' or '.join(_WRITTEN)}.")
    settings = Settings.from_environ(os.environ)
    made = on_database(lambda connection, _: fetch_report(connection, month.date(), tz, site, settings))
    if output is None:
        click.echo(_printed(made))
        return
    try:
        output.write_text(_WRITTEN[output.suffix](made), encoding="utf-8", newline="")
    except OSError as error:
        raise SetupError(f"{output} cannot be written: {error.strerror}.") from None
    click.echo(f"{output} is written.")


def _printed(made: Report) -> str:
    tables = ["\n".join(table(*each)) for each in (days_table(made), *worst_tables(made))]
    return "\n\n".join([title(made), *tables, "\n".join(notes(made))])


def _csv(made: Report) -> str:
    names = [field.encode_name for field in fields(Sums)]
    rows = ([day, *(astuple(sums) if sums else [None] * len(names))] for day, sums in made.days)
    return "".join(csv_rows(["day", *names], rows))


_WRITTEN: dict[str, Callable[[Report], str]] = {".html": page_of, ".csv": _csv}
