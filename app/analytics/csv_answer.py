"""Columns as CSV (RFC 4180)."""

import csv
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from io import StringIO
from itertools import islice
from typing import Any

import msgspec

_ROWS = 1_000


def csv_of(columns: msgspec.Struct) -> Iterator[str]:
    """A header and a row a point, in pieces; the first column, seconds since 1970, becomes `time` in RFC 3339."""
    names = [field.encode_name for field in msgspec.structs.fields(columns)]
    starts, *values = msgspec.structs.astuple(columns)
    times = (datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for start in starts)
    return csv_rows(["time", *names[1:]], zip(times, *values, strict=True))


def csv_rows(header: Sequence[str], rows: Iterator[Sequence[Any]]) -> Iterator[str]:
    """A header and the rows, in pieces."""
    page: list[Sequence[Any]] = [header]
    while page:
        text = StringIO()
        csv.writer(text).writerows(page)
        yield text.getvalue()
        page = list(islice(rows, _ROWS))
