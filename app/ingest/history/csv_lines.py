"""CSV lines to readings, one column after another."""

import csv
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import compress
from operator import not_
from typing import Any

import msgspec

from app.errors import SetupError
from app.ingest.check import (
    AC,
    BATTERY_TEMP,
    DC,
    MAX_AHEAD_US,
    MAX_LOOKED_UP,
    METER_ID,
    METER_ID_IF_ANY,
    REGISTER_AC,
    REGISTER_DC,
    SOC,
    VEHICLE_ID,
    VOLTAGE,
    all_microseconds,
    refuse_other_than_one_energy,
)
from app.ingest.history.columns import Columns
from app.ingest.history.file import HEAD_BYTES, MAX_LINE_BYTES
from app.ingest.history.rows import BOM, IDS, Rows, Values, beside
from app.ingest.members import UNDECODABLE, since_1970
from app.ingest.names import ATTRIBUTES
from app.telemetry.device_id import MAX_ID_CHARACTERS


class CsvRows(Rows):
    """Comma-separated lines, of which the first names the columns."""

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
        energies = {"kwhConsumedAc", "kwhDeliveredDc", "kwhRegisterAc", "kwhRegisterDc"}
        for needed in ({"timestamp"}, {"meterId", "vehicleId"}, energies):
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
        # One column after another takes 0.8 microseconds a reading; a struct and its checks for each takes 1.25.
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

        of_meters, of_vehicles = values(self._meter, list(map(not_, of_vehicle))), values(self._vehicle, of_vehicle)
        for of_stream in (of_meters, of_vehicles):
            refuse_other_than_one_energy(of_stream[2], of_stream[-1])
        return of_meters, of_vehicles

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
            field[0]: cell.strip()
            for field, cell in zip(self._fields, cells, strict=True)
            if field and not _is_empty(field[0], cell.strip())
        }
        for cell in [cell for field, cell in members.items() if field not in _TEXTS and _has_decimal_comma(cell)]:
            raise SetupError(f"{self.file} has decimal commas: {cell!r} must be {cell.replace(',', '.')}.")
        others = {
            name: cell for name, field, cell in zip(self._names, self._fields, cells, strict=True) if not field and cell
        }
        return msgspec.json.encode(beside(members, others))


class _Cells(dict[bytes, Any]):
    """A column's cells and their values in the units of the store. A lookup may raise RejectedValue or UNDECODABLE."""

    def __init__(self, name: str, checked: Mapping[Any, Any]) -> None:
        super().__init__()
        self._checked = checked
        self._is_id = name in _IDS

    def __missing__(self, cell: bytes) -> Any:
        value: float | str | None = None
        if cell:
            value = cell.decode() if self._is_id else _NUMBER.decode(b'"%b"' % cell)
        checked = self._checked[value]
        if len(self) < MAX_LOOKED_UP and len(cell) <= MAX_ID_CHARACTERS:
            self[cell] = checked
        return checked


_METER: dict[str, Mapping[Any, Any]] = {
    "meter_id": METER_ID,
    "kwh_consumed_ac": AC,
    "voltage": VOLTAGE,
    "kwh_register_ac": REGISTER_AC,
}
_VEHICLE: dict[str, Mapping[Any, Any]] = {
    "vehicle_id": VEHICLE_ID,
    "kwh_delivered_dc": DC,
    "meter_id": METER_ID_IF_ANY,
    "soc": SOC,
    "battery_temp": BATTERY_TEMP,
    "kwh_register_dc": REGISTER_DC,
}
"""The columns are in the order of the readings' fields, without the instant, which is the second field."""

_IDS = ("meter_id", "vehicle_id")
_TEXTS = (*IDS, "timestamp")

# It reads no text that members.py does not read, and each as the same number.
_NUMBER = msgspec.json.Decoder(float | None, strict=False)
_TIMESTAMPS = msgspec.json.Decoder(list[datetime])


def _all_microseconds(cells: list[bytes], now_us: int, oldest_us: int) -> list[int]:
    different = list(dict.fromkeys(cells))
    try:
        timestamps = _TIMESTAMPS.decode(b'["' + b'","'.join(different) + b'"]')
    except UNDECODABLE:
        timestamps = [since_1970(cell.decode()) for cell in different]
    known = dict(zip(different, all_microseconds(timestamps, oldest_us, now_us + MAX_AHEAD_US), strict=True))
    return list(map(known.__getitem__, cells))


def _is_empty(field: str, cell: str) -> bool:
    """Returns True for a cell without a value. Databases write `null` for it; in an id column that is a name."""
    return not cell or (field not in IDS and cell.casefold() == "null")


_has_decimal_comma = re.compile(r"[+-]?[0-9]*,[0-9]+").fullmatch
