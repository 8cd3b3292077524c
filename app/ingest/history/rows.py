"""Lines to readings: a thousand at a time through one typed decode, and one by one where that refuses them.

A line that is refused goes through the decode of the live path (decode.py), as the JSON object that a gateway would
have sent; in that form it is kept, too.
"""

import csv
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import compress
from operator import not_
from typing import Any

import msgspec
from msgspec import Raw

from app.errors import SetupError
from app.ingest.check import (
    AC,
    BATTERY_TEMP,
    DC,
    MAX_AHEAD_US,
    MAX_LOOKED_UP,
    METER_ID,
    METER_ID_IF_ANY,
    PAYLOAD_LIMIT_BYTES,
    SOC,
    VEHICLE_ID,
    VOLTAGE,
    Refused,
    Rejected,
    Wire,
    all_microseconds,
    check_each,
    rejected,
)
from app.ingest.decode import JSON, UNDECODABLE, decode_one
from app.ingest.history.columns import ATTRIBUTES, FLOATS, Columns
from app.ingest.history.file import HEAD_BYTES, MAX_LINE_BYTES, Block
from app.telemetry.reading import MeterReading, VehicleReading

# One bad line costs the others of its piece the fast decode. A piece is so small that the processor's cache holds it.
PIECE_LINES = 1_000
# Lines of nothing but commas grow several times over: with them, an import took 264 MB without this limit, 139 with it.
MAX_PIECE_BYTES = 2 * 1024 * 1024
BOM = b"\xef\xbb\xbf"

_TYPES = {field.name: field.type for field in msgspec.structs.fields(Wire)}


#: For each field of a stream's readings the values of all of them.
Values = Sequence[Sequence[Any]]


class Checked(msgspec.Struct):
    """The readings of a block, by the fields of MeterReading and VehicleReading.

    Each rejected one has its line, too, with the number of that line.
    """

    received: int
    meter: list[list[Any]]
    vehicle: list[list[Any]]
    rejected: list[Rejected]
    rejected_lines: list[tuple[int, bytes]]


class Rows(ABC):
    """The decoder of one file."""

    def __init__(self, file: str, columns: Columns) -> None:
        self.file = file
        self.columns = columns

    def decode(self, block: Block, *, now_us: int, oldest_us: int) -> Checked:
        """The block's readings, checked as over HTTP but for their age. Blank lines do not count."""
        lines = self._without_head(block.lines) if block.number == 1 else block.lines
        places: Sequence[int] = range(len(lines))
        if b"" in lines or any(map(bytes.isspace, lines)):
            places = [place for place, line in enumerate(lines) if line and not line.isspace()]
            lines = [lines[place] for place in places]
        meter: list[list[Any]] = [[] for _ in MeterReading.__struct_fields__]
        vehicle: list[list[Any]] = [[] for _ in VehicleReading.__struct_fields__]
        checked = Checked(len(lines), meter, vehicle, [], [])
        for start in range(0, len(lines), PIECE_LINES):
            piece = lines[start : start + PIECE_LINES]
            try:
                of_piece = self._check_piece(piece, now_us, oldest_us)
            except (Refused, TypeError, *UNDECODABLE):
                # One by one too where all could be read: then the reason is the same, whatever its neighbours are.
                wires = [self._decode_line(n, line) for n, line in enumerate(piece)]
                batch = check_each(wires, now_us, None, oldest_us=oldest_us)
                for refused in batch.rejected:
                    line = piece[refused.index]
                    refused.payload = (self._as_json(line) or line)[:PAYLOAD_LIMIT_BYTES]
                    refused.index += start
                    checked.rejected_lines.append((block.number + places[refused.index], line))
                checked.rejected += batch.rejected
                of_piece = _values(batch.meter), _values(batch.vehicle)
            for known, more in zip((meter, vehicle), of_piece, strict=True):
                for all_values, values in zip(known, more, strict=False):  # there is nothing where none was accepted
                    all_values += values
        return checked

    def _check_piece(self, piece: list[bytes], now_us: int, oldest_us: int) -> tuple[Values, Values]:
        """All of the lines: the values of meters and of vehicles. Raises where one is refused."""
        if sum(map(len, piece)) > MAX_PIECE_BYTES or max(map(len, piece)) > MAX_LINE_BYTES:
            raise ValueError
        return self._check_all(piece, now_us, oldest_us)

    def _decode_line(self, index: int, line: bytes) -> Wire | Rejected:
        document = self._as_json(line)
        if document is None:
            return rejected(index, "malformed", None, None)
        return decode_one(index, document, JSON, None)

    @abstractmethod
    def _without_head(self, lines: list[bytes]) -> list[bytes]:
        """The lines of the file's first block without what comes before its readings."""

    @abstractmethod
    def _check_all(self, piece: list[bytes], now_us: int, oldest_us: int) -> tuple[Values, Values]:
        """All of the lines: the values of meters and of vehicles. Raises Refused, TypeError or one of UNDECODABLE."""

    @abstractmethod
    def _as_json(self, line: bytes) -> bytes | None:
        """The line as the object that a gateway would have sent; None when it cannot be read."""


class CsvRows(Rows):
    """Comma-separated, the first line names the columns."""

    def __init__(self, file: str, head: bytes, columns: Columns) -> None:
        super().__init__(file, columns)
        self._head = next(line for line in head.splitlines() if line.removeprefix(BOM).strip())
        self._names = names = self._read_names()
        columns.refuse_missing(names, file)
        columns.learn(names, file)
        self._refuse_incomplete(names)
        fields = [columns.fields.get(name) for name in names]
        self._fields = [field and (field, ATTRIBUTES[field]) for field in fields]
        # Cells come again, and looking them up is faster than reading them.
        self._meter = {name: _Cells(name, checks) for name, checks in _METER.items()}
        self._vehicle = {name: _Cells(name, checks) for name, checks in _VEHICLE.items()}

    def _read_names(self) -> list[str]:
        if len(self._head) >= HEAD_BYTES - len(BOM):
            raise SetupError(f"{self.file} has a first line of more than {HEAD_BYTES // 1024} KiB.")
        try:
            text = self._head.removeprefix(BOM).decode()
            names = [name.strip() for name in next(csv.reader((text,), strict=True))]
        except (UnicodeDecodeError, csv.Error):
            raise SetupError(f"{self.file} begins with neither CSV nor NDJSON in UTF-8: {self._head[:60]!r}.") from None
        for separator, word in ((";", "';'"), ("\t", "tabs"), ("|", "'|'")):
            if text.count(separator) > text.count(","):
                raise SetupError(f"{self.file} is separated by {word}, not by commas; its first line: {text[:60]!r}.")
        if twice := [name for n, name in enumerate(names) if name in names[:n] and self.columns.means(name)]:
            raise SetupError(f"{self.file} has two columns named {twice[0]!r}.")
        return names

    def _refuse_incomplete(self, names: list[str]) -> None:
        found = set(self.columns.fields.values())
        for needed in ({"timestamp"}, {"meterId", "vehicleId"}, {"kwhConsumedAc", "kwhDeliveredDc"}):
            if not needed & found:
                raise SetupError(
                    f"{self.file} has no column for {' or '.join(sorted(needed))} (--map COLUMN=FIELD names it); "
                    f"its columns: {', '.join(names)[:200]}."
                )

    def _without_head(self, lines: list[bytes]) -> list[bytes]:
        place = next(place for place, line in enumerate(lines) if line.removeprefix(BOM).strip())
        return [b"", *lines[:place], *lines[place + 1 :]]

    def _check_all(self, piece: list[bytes], now_us: int, oldest_us: int) -> tuple[Values, Values]:
        text = b",\n,".join(piece).replace(b"\r,\n,", b",\n,").removesuffix(b"\r")
        width = len(self._fields) + 1
        if text.count(b",") != width * len(piece) - 2 or b'"' in text or b"\\" in text or b"\r" in text:
            raise ValueError
        if b" " in text and (b", " in text or b" ," in text):
            raise ValueError
        # A column after the other: 0.8 microseconds a reading, a struct and its checks for each 1.25.
        cells = text.split(b",")
        if cells[width - 1 :: width].count(b"\n") != len(piece) - 1:
            raise ValueError
        columns = {field[1]: cells[n::width] for n, field in enumerate(self._fields) if field}
        empty = [b""] * len(piece)
        of_vehicle = columns.get("vehicle_id", empty)
        all_us = _all_microseconds(columns["timestamp"], now_us, oldest_us)

        def values(known: dict[str, _Cells], those: Sequence[object]) -> Values:
            device, *others = (
                list(map(known[name].__getitem__, compress(columns.get(name, empty), those))) for name in known
            )
            return [device, list(compress(all_us, those)), *others]

        return values(self._meter, list(map(not_, of_vehicle))), values(self._vehicle, of_vehicle)

    def _as_json(self, line: bytes) -> bytes | None:
        if len(line) > MAX_LINE_BYTES:
            return None
        try:
            cells = next(csv.reader((line.decode(errors="replace"),), strict=True))
        except csv.Error:
            return None
        if len(cells) != len(self._fields):
            return None
        members = {
            field[0]: self._value(field[1], cell.strip())
            for field, cell in zip(self._fields, cells, strict=True)
            if field and not _is_empty(field[0], cell.strip())
        }
        others = {
            name: cell for name, field, cell in zip(self._names, self._fields, cells, strict=True) if not field and cell
        }
        return msgspec.json.encode(_beside(members, others))

    def _value(self, attribute: str, cell: str) -> str | float:
        """A number where one belongs; a timestamp of seconds since 1970 in its usual form."""
        if _is_number(cell):
            if attribute in FLOATS:
                return float(cell)
            if attribute == "timestamp":
                with suppress(ValueError, OverflowError, OSError):
                    return datetime.fromtimestamp(float(cell), UTC).isoformat()
        elif attribute in FLOATS and _has_decimal_comma(cell):
            raise SetupError(f"{self.file} has decimal commas: {cell!r} must be {cell.replace(',', '.')}.")
        return cell


class NdjsonRows(Rows):
    """One object a line; the names of the members are learnt as they come."""

    def __init__(self, file: str, columns: Columns) -> None:
        super().__init__(file, columns)
        self._learn([])

    def _learn(self, names: Collection[str]) -> None:
        self.columns.learn(names, self.file)
        keys = {ATTRIBUTES[field]: name for name, field in self.columns.fields.items()}
        ignored = {f"ignored_{n}": name for n, name in enumerate(self.columns.ignored)}
        row = msgspec.defstruct(
            "Row",
            [*((name, _TYPES[name], None) for name in keys), *((name, Raw, Raw()) for name in ignored)],
            rename=keys | ignored,
            namespace=_absent(keys),
            forbid_unknown_fields=True,
            gc=False,
        )
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(row)

    def _without_head(self, lines: list[bytes]) -> list[bytes]:
        return [lines[0].removeprefix(BOM), *lines[1:]]

    def _check_all(self, piece: list[bytes], now_us: int, oldest_us: int) -> tuple[Values, Values]:
        text = b"\n".join(piece)
        if b'""' in text:  # An empty id stands for none here.
            raise ValueError
        batch = check_each(self._decoder.decode_lines(text), now_us, None, oldest_us=oldest_us)
        if batch.received != len(piece) or batch.rejected:
            raise ValueError
        return _values(batch.meter), _values(batch.vehicle)

    def _as_json(self, line: bytes) -> bytes | None:
        if len(line) > MAX_LINE_BYTES:
            return None
        try:
            members = _OBJECT.decode(line)
        except UNDECODABLE:
            return None
        if members.keys() - self.columns.fields.keys() - set(self.columns.ignored):
            self._learn(members)
        fields = {self.columns.fields[name]: value for name, value in members.items() if name in self.columns.fields}
        for absent in [field for field in _IDS if bytes(fields.get(field, b"")) == b'""']:
            del fields[absent]
        return msgspec.json.encode(
            _beside(fields, {name: members[name] for name in members.keys() - self.columns.fields})
        )


def _absent(present: Collection[str]) -> dict[str, Any]:
    """The attributes of Wire that a file does not have, as those of a class."""
    return dict.fromkeys(_TYPES.keys() - present)


class _Cells(dict[bytes, Any]):
    """What the cells of a column say, in the units of the store. Raises Refused, or one of UNDECODABLE."""

    def __init__(self, name: str, checked: Mapping[Any, Any]) -> None:
        super().__init__()
        self._checked = checked
        self._is_number = name in FLOATS

    def __missing__(self, cell: bytes) -> Any:
        value: float | str | None = None
        if cell:
            value = _NUMBER.decode(b'"%b"' % cell) if self._is_number else cell.decode()
        checked = self._checked[value]
        if len(self) < MAX_LOOKED_UP:
            self[cell] = checked
        return checked


_METER: dict[str, Mapping[Any, Any]] = {"meter_id": METER_ID, "kwh_consumed_ac": AC, "voltage": VOLTAGE}
_VEHICLE: dict[str, Mapping[Any, Any]] = {
    "vehicle_id": VEHICLE_ID,
    "kwh_delivered_dc": DC,
    "meter_id": METER_ID_IF_ANY,
    "soc": SOC,
    "battery_temp": BATTERY_TEMP,
}
"""In the order of the readings' fields, but for the instant, which is the second."""

# As in the objects that gateways send, but that a text may stand for a number.
_NUMBER = msgspec.json.Decoder(float | None, strict=False)
_TIMESTAMPS = msgspec.json.Decoder(list[datetime | None], strict=False)


def _all_microseconds(cells: list[bytes], now_us: int, oldest_us: int) -> list[int]:
    different = list(dict.fromkeys(cells))
    timestamps = _TIMESTAMPS.decode(b'["' + b'","'.join(different) + b'"]')
    known = dict(zip(different, all_microseconds(timestamps, oldest_us, now_us + MAX_AHEAD_US), strict=True))
    return list(map(known.__getitem__, cells))


def _values(readings: Sequence[MeterReading | VehicleReading]) -> Values:
    return list(zip(*map(msgspec.structs.astuple, readings), strict=True))


def _beside(fields: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """With the columns that stand for no field: what is refused, perhaps for want of one, is kept whole."""
    return {**{name: value for name, value in others.items() if name not in ATTRIBUTES}, **fields}


def _is_empty(field: str, cell: str) -> bool:
    """Databases write `null` for what is absent, and msgspec's lax decode reads it so; as an id it is a name."""
    return not cell or (field not in _IDS and cell.casefold() == "null")


_IDS = ("vehicleId", "meterId")
_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_is_number = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?").fullmatch
_has_decimal_comma = re.compile(r"[+-]?[0-9]*,[0-9]+").fullmatch


def rows_of_file(file: str, head: bytes, mapping: Mapping[str, str]) -> Rows:
    """CSV or NDJSON, as the first character says. Raises SetupError for columns that make no reading."""
    columns = Columns(mapping)
    if head.removeprefix(BOM).lstrip().startswith(b"{"):
        return NdjsonRows(file, columns)
    return CsvRows(file, head, columns)
