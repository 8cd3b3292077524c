"""The sites of devices: labels by which an operator groups them. They say nothing of where energy flowed."""

import csv
from collections.abc import Iterable, Iterator
from io import StringIO
from typing import NamedTuple

import psycopg
from psycopg import sql

from app.errors import SetupError
from app.fleet.devices import device_named
from app.telemetry.reading import Stream

MAX_SITE_CHARACTERS = 64
SITE_RULE = (
    f"A site has 1 to {MAX_SITE_CHARACTERS} characters that can be printed; the first one is a letter or a digit, the "
    "last one no blank."
)
_COLUMNS = ["stream", "device", "site"]


class Label(NamedTuple):
    """The site of a device; None removes its label."""

    stream: Stream
    device: str
    site: str | None


async def label(connection: psycopg.AsyncConnection, labels: Iterable[Label]) -> None:
    """Labels all of these devices, or none. Raises SetupError for an unknown device, and for what is no site."""
    async with connection.transaction():
        for stream, name, site in labels:
            if site is not None and not _is_site(site):
                raise SetupError(f"{stream} {name}: {SITE_RULE}")
            device = await device_named(connection, stream, name)
            update = sql.SQL("UPDATE {} SET site = %s WHERE id = %s").format(sql.Identifier(stream))
            await connection.execute(update, [site, device])


async def devices_at(connection: psycopg.AsyncConnection, site: str) -> tuple[list[int], list[int]]:
    """Returns the ids of the meters and those of the vehicles that have this site, retired or not."""
    cursor = await connection.execute(
        """
        SELECT ARRAY(SELECT id FROM meter WHERE site = %(site)s), ARRAY(SELECT id FROM vehicle WHERE site = %(site)s)
        """,
        {"site": site},
    )
    ((meters, vehicles),) = await cursor.fetchall()
    return meters, vehicles


def read_labels(text: str) -> Iterator[Label]:
    """Yields the labels of a CSV file with the columns stream, device and site, in any order; no site removes a label.

    Raises SetupError for another header, and for a line that is no label.
    """
    rows = csv.DictReader(StringIO(text), strict=True)
    try:
        if sorted(rows.fieldnames or ()) != sorted(_COLUMNS):
            raise SetupError(f"The first line must name the columns {','.join(_COLUMNS)}.")
        for row in rows:
            stream, device, site = (row[column] for column in _COLUMNS)
            if stream not in [*Stream] or not device or site is None or None in row:
                raise SetupError(f"Line {rows.line_num} must have meter or vehicle, a device, and a site or nothing.")
            yield Label(Stream(stream), device, site or None)
    except csv.Error as error:
        raise SetupError(f"Line {rows.line_num} is no CSV: {error}.") from None


def _is_site(site: str) -> bool:
    return site[:1].isalnum() and site.isprintable() and site == site.strip() and len(site) <= MAX_SITE_CHARACTERS
