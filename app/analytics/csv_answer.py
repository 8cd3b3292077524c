"""Columns as CSV."""

from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from app.csv_rows import csv_rows


def csv_of(columns: msgspec.Struct) -> Iterator[str]:
    """A header and a row a point, in pieces; the first column, seconds since 1970, becomes `time` in RFC 3339."""
    names = [field.encode_name for field in msgspec.structs.fields(columns)]
    starts, *values = msgspec.structs.astuple(columns)
    times = (datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for start in starts)
    return csv_rows(["time", *names[1:]], zip(times, *values, strict=True))
