"""Helpers of the commands: the database that the settings name, and tables of text."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import click
import psycopg

from app.database import connect, unreachable
from app.errors import ServiceError, SetupError
from app.migrate import migrate, refuse_unmigrated
from app.postgres.embedded import running
from app.settings import Settings

# A time needs a zone, as everywhere; a date is a UTC day.
INSTANT = click.DateTime(formats=["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d"])


@contextmanager
def open_database(settings: Settings, *, migrated: bool, start: bool = True) -> Iterator[str]:
    """Yields the URL of the database: the operator's, or Wattline's own, which runs at least until the context ends.

    With `migrated`, Wattline's own is migrated first, and a SetupError is raised if the operator's is not migrated.
    """
    if settings.database_url is not None:
        if migrated:
            refuse_unmigrated(settings.database_url)
        yield settings.database_url
        return
    with running(settings.data_dir, pg_bin=settings.pg_bin, start=start) as url:
        if migrated:
            click.echo(f"The database is stored under {settings.data_dir.resolve()}.")
            migrate(url, engine=settings.engine)
        yield url


Result = TypeVar("Result")


def on_database(work: Callable[[psycopg.AsyncConnection, str], Awaitable[Result]], *, start: bool = False) -> Result:
    """Calls `work` with a connection to the database and its URL, and returns its result.

    With `start`, Wattline's own database is started if necessary. Every error of the database becomes a SetupError.
    """
    settings = Settings.from_environ(os.environ)

    async def connected(url: str) -> Result:
        try:
            opened = await connect(url)
        except psycopg.Error as error:
            raise unreachable(url, error) from error
        async with opened as connection:
            return await work(connection, url)

    with open_database(settings, migrated=start, start=start) as url:
        try:
            return asyncio.run(connected(url))
        except UnicodeEncodeError:
            raise SetupError("An argument is not UTF-8.") from None
        except psycopg.OperationalError as error:
            raise SetupError(f"The database is away: {error}") from error
        except (psycopg.Error, ServiceError) as error:
            from app.problem_answers import translated  # here: with Litestar, a command would take 0.3 s longer

            ours = translated(error)
            raise SetupError(ours.detail if ours else f"The database reports an error: {error}") from error


def counted(count: int, noun: str) -> str:
    """`1 reading`, `2,000 readings`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields the lines of a table; characters that could control a terminal are shown as dots."""
    cells = [[printable(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def printable(text: str) -> str:
    """Returns the text with a dot in place of each character that cannot be printed."""
    return "".join(character if character.isprintable() else "·" for character in text)
