"""NDJSON lines to readings, a thousand at a time through one typed decode."""

from collections.abc import Collection
from typing import Any

import msgspec
from msgspec import Raw

from app.ingest.check import Wire, check_each
from app.ingest.history.columns import Columns
from app.ingest.history.file import MAX_LINE_BYTES
from app.ingest.history.rows import BOM, IDS, Rows, Values, beside, values_of
from app.ingest.members import UNDECODABLE
from app.ingest.names import ATTRIBUTES

_TYPES = {field.name: field.type for field in msgspec.structs.fields(Wire)}


class NdjsonRows(Rows):
    """One object per line; the names of the members are learnt as they come."""

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
        if b'""' in text:  # Here an empty id means that there is none.
            raise ValueError
        batch = check_each(self._decoder.decode_lines(text), now_us, None, oldest_us=oldest_us)
        if batch.received != len(piece) or batch.rejected or batch.warnings:
            raise ValueError
        return values_of(batch.meter), values_of(batch.vehicle)

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
        for absent in [field for field in IDS if bytes(fields.get(field, b"")) == b'""']:
            del fields[absent]
        return msgspec.json.encode(
            beside(fields, {name: members[name] for name in members.keys() - self.columns.fields})
        )


def _absent(present: Collection[str]) -> dict[str, Any]:
    """Returns the attributes of Wire that a file does not have, as those of a class."""
    return dict.fromkeys(_TYPES.keys() - present)


_OBJECT = msgspec.json.Decoder(dict[str, Raw])
