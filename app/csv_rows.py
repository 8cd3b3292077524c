"""Rows as CSV (RFC 4180)."""

import csv
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from io import StringIO
from itertools import islice
from typing import Any

import msgspec
from litestar import MediaType, Request

CSV = "text/csv"
_ROWS = 1_000


def prefers_csv(request: Request[Any, Any, Any]) -> bool:
    """Returns True when `Accept` puts CSV before JSON."""
    return request.accept.best_match([MediaType.JSON, CSV]) == CSV


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Returns the rows as text, without a header."""
    text = StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def csv_rows(names: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """Yields a header and the rows, a thousand at a time."""
    waiting = iter(rows)
    page = [names]
    while page:
        yield csv_text(page)
        page = list(islice(waiting, _ROWS))


def csv_of_columns(columns: msgspec.Struct) -> Iterator[str]:
    """Yields a header and a row per point; the first column, seconds since 1970, becomes `time` in RFC 3339."""
    names = [field.encode_name for field in msgspec.structs.fields(columns)]
    starts, *values = msgspec.structs.astuple(columns)
    times = (datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for start in starts)
    return csv_rows(["time", *names[1:]], zip(times, *values, strict=True))


def csv_of_structs(kind: type[msgspec.Struct], structs: Iterable[msgspec.Struct]) -> Iterator[str]:
    """Yields a header, with the fields' names in JSON, and a row per struct; times are in UTC."""
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    return csv_rows(names, ([_cell(value) for value in msgspec.structs.astuple(struct)] for struct in structs))


def _cell(value: object) -> object:
    return stamp(value) if isinstance(value, datetime) else value


def stamp(at: datetime) -> str:
    """Returns the instant in RFC 3339, in UTC."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
