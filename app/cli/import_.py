"""The command that imports history."""

import asyncio
import gc
import os
import sys
import time
from collections.abc import Callable
from typing import IO, Self

import click
import msgspec
import psycopg
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.common import counted, open_database
from app.database import connect_sync
from app.errors import SetupError
from app.ingest.batch import PAYLOAD_LIMIT_BYTES, RejectedReading
from app.ingest.history.columns import parse_mapping
from app.ingest.history.decoder import Opened
from app.ingest.history.importer import QUARANTINED_ROWS, Imported, Importer
from app.ingest.history.journal import Journal, mark_refreshed, unrefreshed
from app.ops.refresh import refresh_aggregates
from app.settings import Settings

REJECTED_STATUS = 3
LINE_SECONDS = 5


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--map", "pairs", multiple=True, metavar="COLUMN=FIELD", help="The field of a column; may be repeated.")
@click.option("--rejects", type=click.File("ab"), help="Append rejected rows to this file, not to quarantine.")
def import_(files: tuple[str, ...], pairs: tuple[str, ...], rejects: IO[bytes] | None) -> None:
    """Store history from CSV or NDJSON files, plain or as gzip or zstd; `-` is standard input.

    An import that was stopped resumes where it stopped; a file that is done is left alone. The exit status is 0 if
    every reading is stored or was known, 3 if some were rejected, and 1 if the import failed.
    """
    settings = Settings.from_environ(os.environ)
    mapping = parse_mapping(pairs)
    with open_database(settings, migrated=True) as url:
        try:
            rejected = asyncio.run(_import(url, files, mapping, rejects))
        except SetupError:
            _refresh_touched(url)
            raise
        _refresh_touched(url)
    if rejected:
        where = rejects.name if rejects else f"quarantine, the first {QUARANTINED_ROWS:,} of each file"
        rows = f"{counted(rejected, 'row')} {'was' if rejected == 1 else 'were'}"
        click.echo(f"wattline: {rows} rejected: see {where}.", err=True)
        sys.exit(REJECTED_STATUS)


async def _import(url: str, files: tuple[str, ...], mapping: dict[str, str], rejects: IO[bytes] | None) -> int:
    """Returns how many rows were rejected, now or before the import was stopped."""
    # This is the threshold of the decoder's process, too.
    gc.set_threshold(1_000_000)
    rejected = 0
    with _Display() as display:
        importer = Importer(
            url,
            on_progress=display.show_progress,
            on_pause=display.show_pause,
            on_rejected=_writer(rejects) if rejects else None,
        )
        try:
            for name in files:
                display.start(name)
                imported = await importer.run(name, mapping)
                display.end(imported)
                rejected += imported.after.rejected
        finally:
            await importer.close()
    return rejected


def _writer(rejects: IO[bytes]) -> Callable[[Opened, list[tuple[int, bytes, RejectedReading]]], None]:
    """Writes rows before the transaction that counts them, so none is lost: rows of a killed block appear twice."""

    def write(file: Opened, rows: list[tuple[int, bytes, RejectedReading]]) -> None:
        for line, row, why in rows:
            text = row[:PAYLOAD_LIMIT_BYTES].rstrip(b"\r").decode(errors="replace")
            members = {"file": file.name, "line": line, "code": why.code, "field": why.field}
            rejects.write(msgspec.json.encode({**members, "message": why.message, "row": text}) + b"\n")
        rejects.flush()

    return write


def _refresh_touched(url: str) -> None:
    """Refreshes the days that imports have touched, also those of imports that were killed."""
    try:
        with connect_sync(url) as connection:
            days = unrefreshed(connection)
            for start, end in days.ranges:
                click.echo(f"Refreshing the aggregates from {start:%Y-%m-%d} to {end:%Y-%m-%d}.", err=True)
                refresh_aggregates(url, start, end)
            mark_refreshed(connection, days)
    except psycopg.OperationalError as error:
        raise SetupError(f"The aggregates are not refreshed; run the same command again: {error}") from None


class _Display:
    """Shows progress on standard error: a bar on a terminal, else occasional lines. Summaries go to standard output."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", text="")
        self._started = self._shown_at = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, name: str) -> None:
        self._progress.reset(self._task, description=name, text="", total=None)
        self._started = self._shown_at = time.monotonic()

    def show_progress(self, file: Opened, done: int, journal: Journal, before: Journal) -> None:
        text = f"{journal.read:,} readings, {self._rate(journal.read - before.read)}"
        self._progress.update(self._task, completed=done, total=file.size or None, text=text)
        if not self._console.is_terminal and time.monotonic() > self._shown_at + LINE_SECONDS:
            self._shown_at = time.monotonic()
            percent = f", {done / file.size:.0%} of the file" if file.size else ""
            click.echo(f"{file.name}: {text}{percent}", err=True)

    def show_pause(self, seconds: int) -> None:
        self._progress.console.print(f"The database is busy or away; next try in {seconds} s.", highlight=False)

    def end(self, imported: Imported) -> None:
        before, after, ignored, dropped = imported
        read = after.read - before.read
        if before.position and not read:
            click.echo(f"{after.name}: was imported before; nothing is new.")
        elif before.position:
            click.echo(f"{after.name}: resumed after line {before.lines:,}; {read:,} rows are new.")
        if ignored and (read or not before.position):
            names = ", ".join(map(repr, ignored[:10])) + (" …" if len(ignored) > 10 else "")
            click.echo(f"{after.name}: ignored columns that are not fields of a reading: {names}")
        for field, count in sorted(dropped.items()):
            click.echo(f"{after.name}: dropped {counted(count, 'bad value')} of {field}; their readings are stored")
        conflicts = f" ({after.conflicts:,} with other values: see quarantine)" if after.conflicts else ""
        click.echo(
            f"{after.name}: read {after.read:,} = inserted {after.inserted:,} + duplicates {after.duplicates:,}"
            f"{conflicts} + rejected {after.rejected:,}" + (f"; {self._rate(read)}" if read else "")
        )

    def _rate(self, read: int) -> str:
        return f"{read / max(time.monotonic() - self._started, 0.001):,.0f} readings/s"
