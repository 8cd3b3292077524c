"""Lines to readings: a thousand at a time, and one by one where one of them is rejected.

A rejected line goes through the decoder of the live path (decode.py) as the JSON object that a gateway would have
sent, and it goes to quarantine in that form.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from app.ingest.batch import PAYLOAD_LIMIT_BYTES, RejectedReading, reject
from app.ingest.check import RejectedValue, Wire, check_each
from app.ingest.history.columns import Columns
from app.ingest.history.file import MAX_LINE_BYTES, Block
from app.ingest.members import JSON, UNDECODABLE, decode_one
from app.ingest.names import FIELDS
from app.telemetry.reading import MeterReading, VehicleReading

# One bad line costs the rest of its piece the fast decode. A piece is small enough for the processor's cache.
PIECE_LINES = 1_000
# Lines of nothing but commas grow several times over: an import took 264 MB without this limit, 139 MB with it.
MAX_PIECE_BYTES = 2 * 1024 * 1024
BOM = b"\xef\xbb\xbf"
IDS = ("vehicleId", "meterId")


#: For each field of a stream, the values of all its readings.
Values = Sequence[Sequence[Any]]


class Checked(msgspec.Struct):
    """The readings of a block, by the fields of MeterReading and VehicleReading.

    Each rejected reading has its line and the number of that line. `dropped` counts the optional members that were
    dropped, by field.
    """

    received: int
    meter: list[list[Any]]
    vehicle: list[list[Any]]
    rejected: list[RejectedReading]
    rejected_lines: list[tuple[int, bytes]]
    dropped: Counter[str]


class Rows(ABC):
    """The decoder of one file."""

    def __init__(self, file: str, columns: Columns) -> None:
        self.file = file
        self.columns = columns

    def decode(self, block: Block, *, now_us: int, oldest_us: int) -> Checked:
        """Returns the block's readings, checked as over HTTP except for their age. Blank lines do not count."""
        lines = self._without_head(block.lines) if block.number == 1 else block.lines
        places: Sequence[int] = range(len(lines))
        if b"" in lines or any(map(bytes.isspace, lines)):
            places = [place for place, line in enumerate(lines) if line and not line.isspace()]
            lines = [lines[place] for place in places]
        meter: list[list[Any]] = [[] for _ in MeterReading.__struct_fields__]
        vehicle: list[list[Any]] = [[] for _ in VehicleReading.__struct_fields__]
        checked = Checked(len(lines), meter, vehicle, [], [], Counter())
        for start in range(0, len(lines), PIECE_LINES):
            piece = lines[start : start + PIECE_LINES]
            try:
                of_piece = self._check_piece(piece, now_us, oldest_us)
            except (RejectedValue, TypeError, *UNDECODABLE):
                # Each line is decoded alone even where all can be read: its neighbours must not change the reason.
                wires = [self._decode_line(n, line) for n, line in enumerate(piece)]
                batch = check_each(wires, now_us, None, oldest_us=oldest_us)
                for reading in batch.rejected:
                    line = piece[reading.index]
                    reading.payload = (self._as_json(line) or line)[:PAYLOAD_LIMIT_BYTES]
                    reading.index += start
                    checked.rejected_lines.append((block.number + places[reading.index], line))
                checked.rejected += batch.rejected
                checked.dropped.update(dropped.field for dropped in batch.warnings)
                of_piece = values_of(batch.meter), values_of(batch.vehicle)
            for known, more in zip((meter, vehicle), of_piece, strict=True):
                for all_values, values in zip(known, more, strict=False):  # `more` is empty where none was accepted
                    all_values += values
        return checked

    def _check_piece(self, piece: list[bytes], now_us: int, oldest_us: int) -> tuple[Values, Values]:
        """Returns the values of meters and of vehicles in all lines. Raises if any line has a fault."""
        if sum(map(len, piece)) > MAX_PIECE_BYTES or max(map(len, piece)) > MAX_LINE_BYTES:
            raise ValueError
        return self._check_all(piece, now_us, oldest_us)

    def _decode_line(self, index: int, line: bytes) -> Wire | RejectedReading:
        document = self._as_json(line)
        if document is None:
            return reject(index, "malformed", None, None)
        return decode_one(index, document, JSON, None)

    @abstractmethod
    def _without_head(self, lines: list[bytes]) -> list[bytes]:
        """Returns the lines of the file's first block without what comes before its readings."""

    @abstractmethod
    def _check_all(self, piece: list[bytes], now_us: int, oldest_us: int) -> tuple[Values, Values]:
        """Returns the values of meters and vehicles in all lines. Raises RejectedValue, TypeError or UNDECODABLE."""

    @abstractmethod
    def _as_json(self, line: bytes) -> bytes | None:
        """Returns the line as the object that a gateway would have sent; None when it cannot be read."""


def values_of(readings: Sequence[MeterReading | VehicleReading]) -> Values:
    return list(zip(*map(msgspec.structs.astuple, readings), strict=True))


def beside(fields: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Adds the columns that stand for no field: a reading rejected, perhaps for want of one, stays whole.

    One that would stand for a field but for --map is left out, or it would be taken for it when it is driven again.
    """
    return {**{name: value for name, value in others.items() if not FIELDS[name]}, **fields}
