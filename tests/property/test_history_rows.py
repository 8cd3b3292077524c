"""However the lines of a file are grouped, each becomes the same reading, or is rejected for the same reason."""

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from app.ingest.batch import RejectedReading
from app.ingest.history.decoder import rows_of_file
from app.ingest.history.file import Block, HistoryFile
from app.telemetry.instant import EPOCH_US
from tests.fixtures.files import FIELDS

FLOATS = ["kwhConsumedAc", "voltage"]
NOW_US = EPOCH_US + 800_000_000_000_000
# For each field of FIELDS, some values are right, and some are wrong or written in another form.
ids = st.sampled_from(["", "M1", "null", "Null", "V.2", "no id", '"M1"', " M1 ", "x" * 65, "a\\b", "é"])
numbers = st.sampled_from(["", "0.5", "7", "1e2", "-0.0", "-1e-9", "1e-7", "-3", "1e999"]) | st.sampled_from(
    [" 0.5", '"0.5"', "NaN", "inf", "true", "0x1", ".5", "+5.", "null", "NULL"]
)
# Most rows have no register, since those with both energies are rejected.
registers = st.sampled_from(["", "", "", "850.5", "1e9", "-1", "NaN"])
cells = {
    "kwhRegisterAc": registers,
    "kwhRegisterDc": registers,
    "timestamp": st.sampled_from(
        [
            "2025-05-01T12:00:00Z",
            "2025-05-01T14:00:00.000001+02:00",
            "2025-05-01T12:00:00",
            "1746100800",
            "1746100800.1234565",
            "1746100800123",
            "1746100800123456",
            "1746100800123456789",
            "1e99",
            "",
            "noon",
            "null",
        ]
    ),
    "vehicleId": ids,
    "meterId": ids,
}
wild = st.sampled_from(["", "  ", ",", '"', "\r", "[1]", "{}", '{"meterId": 7}', "null", "\0"])
csv_lines = st.lists(
    st.builds(lambda *row: ",".join(row), *(cells.get(field, numbers) for field in FIELDS)) | wild,
    min_size=1,
    max_size=6,
)
texts = {
    field: values.map(lambda value: msgspec.json.encode(value).decode())
    for field, values in cells.items()
    if values is not registers
}
objects = st.builds(
    lambda *row: "{" + ",".join(f'"{name}":{value}' for name, value in zip(FIELDS, row, strict=True) if value) + "}",
    *(texts.get(field, cells.get(field, numbers)) for field in FIELDS),
)
ndjson_lines = st.lists(objects | wild, min_size=1, max_size=6)


def decoded(head: str, lines: list[bytes], *, together: bool) -> list[Any]:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "h"
        path.write_bytes(head.encode())
        file = HistoryFile(str(path))
        rows = rows_of_file(file.name, file.head, {})
        file.close()
    groups = [lines] if together else [[line] for line in lines]
    checked = [rows.decode(Block(group, 2, 0, b""), now_us=NOW_US, oldest_us=0) for group in groups]
    return [
        [reading for one in checked for reading in zip(*one.meter, strict=True)],
        [reading for one in checked for reading in zip(*one.vehicle, strict=True)],
        [_reason(reading) for one in checked for reading in one.rejected],
        sum((one.dropped for one in checked), Counter[str]()),
    ]


def _reason(reading: RejectedReading) -> tuple[Any, ...]:
    return reading.code, reading.field, reading.stream, reading.device, reading.payload


@given(csv_lines)
def test_lines_of_csv_do_not_touch_each_other(lines: list[str]) -> None:
    encoded = [line.encode() for line in lines]
    head = ",".join(FIELDS) + "\n"
    assert decoded(head, encoded, together=True) == decoded(head, encoded, together=False)


@given(st.sampled_from(FLOATS), st.floats(allow_nan=False) | st.sampled_from(["1e999", "-1e999", "1" + 400 * "0", "7"]))
def test_a_number_in_csv_is_what_it_is_in_an_object(field: str, number: float | str) -> None:
    text = str(number).replace("inf", "1e999")
    line = {"timestamp": "2025-05-01T12:00:00Z", "meterId": "M1", "kwhConsumedAc": "1", field: text}
    members = ",".join(f'"{name}":{value if name in FLOATS else json.dumps(value)}' for name, value in line.items())
    *accepted, rejected, _ = decoded(",".join(line) + "\n", [",".join(line.values()).encode()], together=True)
    *expected, alone, _ = decoded("{}\n", [b"{" + members.encode() + b"}"], together=True)
    assert (accepted, [reason[:4] for reason in rejected]) == (expected, [reason[:4] for reason in alone])


@given(ndjson_lines)
def test_lines_of_ndjson_do_not_touch_each_other(lines: list[str]) -> None:
    encoded = [line.encode() for line in lines]
    assert decoded("{}\n", encoded, together=True) == decoded("{}\n", encoded, together=False)
