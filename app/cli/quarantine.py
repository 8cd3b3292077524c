"""Commands for rejected readings."""

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import psycopg

from app.cli.common import INSTANT, counted, on_database, printable, table
from app.errors import SetupError
from app.ingest.batch import PAYLOAD_LIMIT_BYTES, Source
from app.ingest.quarantine import rows
from app.ingest.quarantine.redrive import Redriven, redrive
from app.ingest.quarantine.rows import Filter, QuarantinedReading
from app.ingest.topics import Topics
from app.ops.refresh import refresh_aggregates
from app.settings import Settings

PAYLOAD_START = 60
DUMP_BYTES = 512


@click.group()
def quarantine() -> None:
    """List, show, redrive or purge rejected readings. The database must be running."""


def filtered(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the arguments that become a `Filter`."""
    for add in (
        click.option("--until", type=INSTANT, help="Only those whose last arrival was before this time."),
        click.option("--since", type=INSTANT, help="Only those whose last arrival was at this time or later."),
        click.option("--device", metavar="ID", help="Only those of this device."),
        click.option(
            "--source", type=click.Choice([source.value for source in Source]), help="Only those from this source."
        ),
        click.option("--reason", "code", metavar="CODE", help="Only those rejected with this code."),
        click.argument("ids", nargs=-1, type=click.IntRange(1, 2**63 - 1)),
    ):
        command = add(command)
    return command


def _filter(ids: tuple[int, ...], since: datetime | None, until: datetime | None, **others: Any) -> Filter:
    since, until = (bound and bound.replace(tzinfo=bound.tzinfo or UTC) for bound in (since, until))
    return Filter(ids=list(ids) or None, since=since, until=until, **others)


@quarantine.command("list")
@filtered
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="The largest number to list."
)
def list_(limit: int, **filters: Any) -> None:
    """List rejected readings, newest first: all, those with the IDS, or those that match the options."""
    matching = _filter(**filters)

    async def work(connection: psycopg.AsyncConnection, _: str) -> tuple[int, int, list[QuarantinedReading]]:
        newest = await rows.fetch_newest(connection, matching, limit=limit, payload_bytes=4 * PAYLOAD_START)
        return (await rows.count(connection, matching))[0], await rows.count_dropped(connection), newest

    count, dropped, newest = on_database(work)
    headings = ("id", "last arrival", "times", "source", "stream", "code", "field", "device", "payload")
    if newest:
        click.echo("\n".join(table(headings, list(map(_row, newest)))))
    nothing = "Nothing is in quarantine." if matching == Filter() else "Nothing in quarantine matches."
    click.echo(f"{len(newest)} shown, {max(0, count - len(newest))} more." if count else nothing)
    if dropped:
        click.echo(f"The bounds of the quarantine have dropped {dropped} so far.")


@quarantine.command()
@click.argument("row_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
def show(row_id: int) -> None:
    """Show a rejected reading with its payload."""

    async def work(connection: psycopg.AsyncConnection, _: str) -> list[QuarantinedReading]:
        return await rows.fetch_newest(connection, Filter(ids=[row_id]), limit=1, payload_bytes=PAYLOAD_LIMIT_BYTES)

    found = on_database(work)
    if not found:
        raise SetupError(f"There is no {row_id} in quarantine.")
    (row,) = found
    for name, value in (
        ("id", row.id),
        ("first arrival", _utc(row.first_at)),
        ("last arrival", _utc(row.last_at)),
        ("times", row.times),
        ("source", row.source),
        ("stream", row.stream),
        ("device", row.device),
        ("topic", row.topic),
        ("code", row.code),
        ("field", row.field),
        ("message", row.message),
        ("payload", f"{row.payload_bytes} bytes" + (", cut" if row.payload_bytes >= PAYLOAD_LIMIT_BYTES else "")),
    ):
        click.echo(f"{name:<14} {printable(str('-' if value is None else value))}")
    click.echo(_payload(row.payload))


@quarantine.command("redrive")
@filtered
def redrive_(**filters: Any) -> None:
    """Check and store rejected readings once more: all, those with the IDS, or those that match the options.

    Readings that pass leave the quarantine. Today's rules apply, with the clock of a reading's first arrival. New
    devices are registered without a limit.
    """
    matching = _filter(**filters)
    topics = Topics(Settings.from_environ(os.environ))

    async def work(connection: psycopg.AsyncConnection, url: str) -> Redriven:
        count, these = await rows.count(connection, matching)
        # Older readings are dropped, or about to be: if they were stored again, they would be in no sum.
        ((oldest,),) = await (await connection.execute("SELECT importable_from()")).fetchall()

        def refresh_day(day: datetime) -> None:
            refresh_aggregates(url, day, day + timedelta(days=1))

        done = Redriven()
        hidden = not sys.stderr.isatty()
        with click.progressbar(length=count, label="Redriving", file=sys.stderr, hidden=hidden) as bar:
            async for done in redrive(connection, url, these, oldest=oldest, topics=topics, refresh_day=refresh_day):
                bar.update(done.rows - bar.pos)
        return done

    done = on_database(work)
    click.echo(
        f"{done.rows} redriven: {counted(done.stored, 'reading')} stored, {counted(done.duplicates, 'duplicate')}, "
        f"{done.rejected.total()} still rejected."
    )
    for code, count in done.rejected.most_common():
        click.echo(f"  {code}: {count}")


@quarantine.command()
@filtered
@click.option("--all", "everything", is_flag=True, help="Delete all, without any filter.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def purge(*, everything: bool, yes: bool, **filters: Any) -> None:
    """Delete rejected readings for good: those with the IDS, or those that match the options."""
    matching = _filter(**filters)
    if (matching == Filter()) != everything:
        raise SetupError("Name what to purge: ids or filters, or everything with --all alone.")

    async def work(connection: psycopg.AsyncConnection, _: str) -> int:
        count, these = await rows.count(connection, matching)
        if count and not yes:
            if not sys.stdin.isatty():
                raise SetupError(f"{count} would be deleted for good; confirm with --yes.")
            click.confirm(f"Delete {counted(count, 'rejected reading')} for good?", abort=True)
        return await rows.purge(connection, these)

    click.echo(f"{on_database(work)} deleted.")


def _row(row: QuarantinedReading) -> list[str]:
    start = _text(row.payload[: 4 * PAYLOAD_START]) or row.payload[: PAYLOAD_START // 2].hex()
    cells = [row.id, _utc(row.last_at), row.times, row.source, row.stream, row.code, row.field, row.device]
    return [*("-" if cell is None else str(cell) for cell in cells), start[:PAYLOAD_START]]


def _utc(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _text(payload: bytes) -> str | None:
    """Returns the payload as text, or None if it is not text; it may be cut inside a character."""
    text = payload.decode(errors="ignore")
    shown = all(character.isprintable() or character in "\n\t\r" for character in text)
    return text if shown and len(payload) - len(text.encode()) < 4 else None


def _payload(payload: bytes) -> str:
    """Returns the payload if it is text, else the start of its dump."""
    if (text := _text(payload)) is not None:
        # A raw carriage return would let a payload overwrite the output before it.
        return text.replace("\r", "·")
    return "\n".join(
        f"{start:04x}  {line.hex(' '):<47}  {''.join(chr(byte) if 32 <= byte < 127 else '.' for byte in line)}"
        for start in range(0, min(len(payload), DUMP_BYTES), 16)
        for line in [payload[start : start + 16]]
    )
