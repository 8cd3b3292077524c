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
from typing import Any

import msgspec
from msgspec import Raw

from app.errors import SetupError
from app.ingest.check import PAYLOAD_LIMIT_BYTES, Batch, Rejected, Wire, check_each, rejected
from app.ingest.decode import JSON, UNDECODABLE, decode_one
from app.ingest.history.columns import ATTRIBUTES, FLOATS, Columns
from app.ingest.history.file import HEAD_BYTES, MAX_LINE_BYTES, Block

# One bad line costs the others of its piece the fast decode. A piece is so small that the processor's cache holds it.
PIECE_LINES = 1_000
# Lines of nothing but commas grow several times over: with them, an import took 264 MB without this limit, 139 with it.
MAX_PIECE_BYTES = 2 * 1024 * 1024
BOM = b"\xef\xbb\xbf"

_TYPES = {field.name: field.type for field in msgspec.structs.fields(Wire)}


class Rows(ABC):
    """The decoder of one file."""

    def __init__(self, file: str, columns: Columns) -> None:
        self.file = file
        self.columns = columns

    def decode(self, block: Block, *, now_us: int, oldest_us: int) -> tuple[Batch, list[tuple[int, bytes]]]:
        """The block's readings, and of each that is rejected the number and the text of its line.

        Blank lines do not count as readings.
        """
        lines = self._without_head(block.lines) if block.number == 1 else block.lines
        places = [place for place, line in enumerate(lines) if line and not line.isspace()]
        if len(places) < len(lines):
            lines = [lines[place] for place in places]
        batch = Batch(len(lines), [], [], [])
        rejected_lines: list[tuple[int, bytes]] = []
        for start in range(0, len(lines), PIECE_LINES):
            piece = lines[start : start + PIECE_LINES]
            checked = check_each(self._decode_piece(piece), now_us, None, oldest_us=oldest_us)
            if checked.received < len(piece) or checked.rejected:
                # One by one too where all could be read: then the reason is the same, whatever its neighbours are.
                wires = [self._decode_line(n, line) for n, line in enumerate(piece)]
                checked = check_each(wires, now_us, None, oldest_us=oldest_us)
            for refused in checked.rejected:
                line = piece[refused.index]
                refused.payload = (self._as_json(line) or line)[:PAYLOAD_LIMIT_BYTES]
                refused.index += start
                rejected_lines.append((block.number + places[refused.index], line))
            batch.meter += checked.meter
            batch.vehicle += checked.vehicle
            batch.rejected += checked.rejected
        return batch, rejected_lines

    def _decode_piece(self, piece: list[bytes]) -> Sequence[Wire | Rejected]:
        """All of the lines, or nothing."""
        text = b"\n".join(piece)
        if len(text) <= MAX_PIECE_BYTES and max(map(len, piece)) <= MAX_LINE_BYTES:
            with suppress(*UNDECODABLE):
                wires = self._decode_fast(text)
                if len(wires) == len(piece):
                    return wires
        return []

    def _decode_line(self, index: int, line: bytes) -> Wire | Rejected:
        document = self._as_json(line)
        if document is None:
            return rejected(index, "malformed", None, None)
        return decode_one(index, document, JSON, None)

    @abstractmethod
    def _without_head(self, lines: list[bytes]) -> list[bytes]:
        """The lines of the file's first block without what comes before its readings."""

    @abstractmethod
    def _decode_fast(self, text: bytes) -> list[Wire]:
        """The lines. May raise the errors of UNDECODABLE, and then none is decoded."""

    @abstractmethod
    def _as_json(self, line: bytes) -> bytes | None:
        """The line as the object that a gateway would have sent; None when it cannot be read."""


class CsvRows(Rows):
    """Comma-separated, the first line names the columns."""

    def __init__(self, file: str, head: bytes, columns: Columns) -> None:
        super().__init__(file, columns)
        self._head = next(line for line in head.splitlines() if line.removeprefix(BOM).strip())
        self._names = names = self._read_names()
        columns.learn(names, file)
        self._refuse_incomplete(names)
        fields = [columns.fields.get(name) for name in names]
        self._fields = [field and (field, ATTRIBUTES[field]) for field in fields]
        types = [
            (field[1], _TYPES[field[1]]) if field else (f"ignored_{n}", Raw) for n, field in enumerate(self._fields)
        ]
        absent = _absent([name for name, _ in types])
        row = msgspec.defstruct("Row", types, namespace=absent, array_like=True, forbid_unknown_fields=True, gc=False)
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[row], strict=False)  # type: ignore[valid-type]

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

    def _decode_fast(self, text: bytes) -> list[Wire]:
        if b'"' in text or b"\\" in text or (b" " in text and (b", " in text or b" ," in text)):
            return []
        # As JSON arrays of texts: four replacements in C and msgspec's lax decode take 0.5 microseconds a row, the csv
        # module and the same decode 1.6.
        cells = b'[["' + text.replace(b"\r", b"").replace(b",", b'","').replace(b"\n", b'"],["') + b'"]]'
        wires: list[Wire] = self._decoder.decode(cells.replace(b'""', b"null"))
        return wires

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

    def _decode_fast(self, text: bytes) -> list[Wire]:
        # An empty id stands for none here.
        return [] if b'""' in text else self._decoder.decode_lines(text)

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
