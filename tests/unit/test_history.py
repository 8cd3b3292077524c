"""Files of history: the ones that can be read, and how much of one is ever in memory."""

import gzip
import tracemalloc
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from app.errors import SetupError
from app.ingest.history import file as file_module
from app.ingest.history.decoder import rows_of_file
from app.ingest.history.file import MAX_LINE_BYTES, HistoryFile
from tests.fixtures.readings import midnight
from tests.fixtures.sending import stamp

HEADER = "timestamp,meterId,kwhConsumedAc\n"
NOW = stamp(midnight(1))
BAD = {
    "empty": (b"", "is empty"),
    "wrong columns": (
        b"a,b,c\n1,2,3\n",
        "no column for timestamp (--map COLUMN=FIELD names it); its columns: a, b, c.",
    ),
    "no header": (f"{NOW},M1,0.5\n".encode(), "no column for timestamp"),
    "binary": (bytes(range(256)) * 400, "is binary or not UTF-8"),
    "NUL bytes": (f"{HEADER}{NOW},M1,\0\n".encode(), "is binary or not UTF-8"),
    "zip": (b"PK\x03\x04 and so on", "is a zip archive or a spreadsheet"),
    "utf-16": (HEADER.encode("utf-16"), "is UTF-16, not UTF-8"),
    "latin-1": ("timestamp,Zähler,kwhConsumedAc\n".encode("latin-1"), "neither CSV nor NDJSON in UTF-8"),
    "array": (b'[{"meterId": "M1"}]', "is a JSON array"),
    "semicolons": (HEADER.replace(",", ";").encode() + f"{NOW};M1;0,5\n".encode(), "is separated by ';'"),
    "tabs": (HEADER.replace(",", "\t").encode(), "is separated by tabs"),
    "decimal commas": (f'{HEADER}{NOW},M1,"0,48"\n'.encode(), "decimal commas: '0,48' must be 0.48."),
    "duplicate names": (b"ts,meter,kwh_ac,meter\n", "has two columns named 'meter'"),
    "two for a field": (b"ts,time,meter,kwh_ac\n", "'ts' and 'time'; choose one with --map time=timestamp"),
    "two in objects": (b'{"ts": 1, "time": 2}\n', "two columns for timestamp"),
    "endless header": (b"x" * 3_000_000, "has a first line of more than 64 KiB"),
    "bad gzip": (b"\x1f\x8b\x08 no gzip at all", "cannot be read"),
    "bad zstd": (b"\x28\xb5\x2f\xfd no zstd at all", "cannot be read"),
}


def read(path: Path, mapping: Mapping[str, str] | None = None) -> list[bytes]:
    """Returns all lines, and decodes them too."""
    file = HistoryFile(str(path))
    with closing(file):
        rows = rows_of_file(file.name, file.head, mapping or {})
        lines = []
        while block := file.read_block():
            rows.decode(block, now_us=0, oldest_us=0)
            lines += block.lines
    return lines


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_with_its_name_and_the_reason(case: str, tmp_path: Path) -> None:
    content, phrase = BAD[case]
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(SetupError) as refused:
        read(tmp_path / "bad")
    assert str(refused.value).startswith(f"{tmp_path / 'bad'} ")
    assert phrase in str(refused.value)


@pytest.mark.parametrize(
    ("column", "field"),
    [("batt", "soc"), ("SOC", "soc"), ("time", "timestamp")],
    ids=["unknown", "in other letters", "of a needed field"],
)
def test_a_mapped_column_that_a_csv_file_does_not_have_is_refused_by_name(
    column: str, field: str, tmp_path: Path
) -> None:
    (tmp_path / "h.csv").write_text(f"timestamp,meterId,kwhConsumedAc,soc\n{NOW},M1,0.5,\n")
    with pytest.raises(SetupError) as refused:
        read(tmp_path / "h.csv", {column: field})
    assert str(refused.value) == (
        f"{tmp_path / 'h.csv'} has no column {column!r}, which --map {column}={field} names; "
        "its columns: timestamp, meterId, kwhConsumedAc, soc."
    )


def test_a_mapped_member_may_come_late_in_a_file_of_objects(tmp_path: Path) -> None:
    (tmp_path / "h.ndjson").write_text('{"a": 1}\n{"batt": 2}\n')
    assert len(read(tmp_path / "h.ndjson", {"batt": "soc"})) == 2


def test_a_line_that_decompresses_to_any_size_is_one_of_bounded_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_module, "BLOCK_BYTES", 256 * 1024)
    (tmp_path / "bomb").write_bytes(gzip.compress(HEADER.encode() + b"x" * 16_000_000 + b"\nlast\n"))
    tracemalloc.start()
    lines = read(tmp_path / "bomb")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [len(line) for line in lines] == [len(HEADER) - 1, MAX_LINE_BYTES + 1, 4]
    assert peak < 3_000_000
