"""Reads a file and decodes it to rows, in a process of its own: in one with the store, Python would be the bottleneck.

The two processes exchange messages over a pipe. The decoding process ends with the other, however that one ends.
"""

import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from itertools import repeat
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from operator import itemgetter, sub
from typing import Any, NamedTuple

import msgspec

from app.errors import SetupError
from app.ingest.batch import RejectedReading, StreamRows
from app.ingest.history.columns import Columns
from app.ingest.history.csv_lines import CsvRows
from app.ingest.history.file import HistoryFile
from app.ingest.history.ndjson_lines import NdjsonRows
from app.ingest.history.rows import BOM, Rows
from app.loops import when_parent_ends
from app.telemetry.instant import EPOCH_US, instant
from app.telemetry.reading import Stream


class Opened(msgspec.Struct, tag=True):
    """An opened file: the name to show, its first bytes, and its size, which is 0 when unknown."""

    name: str
    head: bytes
    size: int


class End(NamedTuple):
    """The end of a block, as the journal has it."""

    position: int
    lines: int
    digest: bytes


class Decoded(msgspec.Struct, tag=True):
    """A block: its number of `good` readings, and the rejected ones, each with its line and that line's number.

    There are no rows until the `unknown` devices have been registered. `dropped` counts the optional members that were
    dropped, by field. `ignored` holds the columns, so far, that stand
    for no field; `read_bytes` is how much of the file's size has been read.
    """

    end: End
    read_bytes: int
    received: int
    good: int
    rejected: list[RejectedReading]
    rejected_lines: list[tuple[int, bytes]]
    dropped: dict[str, int]
    ignored: list[str]
    unknown: dict[Stream, set[str]] = {}
    encoded_rows: msgspec.Raw = msgspec.Raw(b"\x80")  # an empty map

    def rows(self) -> StreamRows:
        """Decodes the rows, in the order of COPY's columns. They take ten times as much memory as encoded."""
        return _ROWS.decode(self.encoded_rows)


class _SetupFailed(msgspec.Struct, tag=True):
    """The message of a SetupError."""

    message: str


_encode = msgspec.msgpack.Encoder().encode
_REQUEST = msgspec.msgpack.Decoder(tuple[str, list[Any]])
_ROWS = msgspec.msgpack.Decoder(StreamRows)
_ANSWER = msgspec.msgpack.Decoder(Opened | bytes | Decoded | _SetupFailed | None)


class Decoder:
    """The decoding process as the importing process sees it: it decodes one file after another.

    Each method waits for the answer and may raise SetupError.
    """

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            # In a session of its own it gets no Ctrl-C: only the importing process does, which can resume later.
            self._process = subprocess.Popen(
                # -P: Python imports nothing from the folder where the command is typed.
                [sys.executable, "-P", "-m", "app.ingest.history.decoder", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def open(self, name: str, mapping: Mapping[str, str]) -> Opened:
        """Opens a file; `-` means standard input."""
        try:
            name.encode()
        except UnicodeEncodeError:
            raise SetupError(f"The name of the file is not UTF-8: {name!a}.") from None
        opened: Opened = self._ask("open", name, dict(mapping))
        return opened

    def pass_over(self, end: int, lines: int) -> bytes:
        """Skips the part that was read before, as HistoryFile.pass_over does."""
        digest: bytes = self._ask("pass_over", end, lines)
        return digest

    def decode(self, oldest_us: int) -> Decoded | None:
        """Returns the next block; None at the end. Readings before `oldest_us`, counted from 1970, are too old."""
        decoded: Decoded | None = self._ask("decode", oldest_us)
        return decoded

    def go_on(self, ids: Mapping[Stream, Mapping[str, int]]) -> Decoded:
        """Returns the same block again, with its rows, now that its unknown devices have these ids."""
        decoded: Decoded = self._ask("go_on", ids)
        return decoded

    def _ask(self, method: str, *arguments: object) -> Any:
        try:
            self._pipe.send_bytes(_encode((method, arguments)))
            answer = _ANSWER.decode(self._pipe.recv_bytes())
        except (EOFError, OSError):
            raise SetupError(
                "The decoding process has ended; the same command goes on where this one stopped."
            ) from None
        if isinstance(answer, _SetupFailed):
            raise SetupError(answer.message)
        return answer

    def kill(self) -> None:
        """Kills the process, which only reads and may wait for standard input. A caller that waits gets SetupError."""
        self._process.kill()
        self._process.wait()


class _Answers:
    """The decoding process's own side: its methods have the names that the other process asks for."""

    def __init__(self) -> None:
        self._meter: dict[str | None, int | None] = {None: None}
        self._vehicle: dict[str, int] = {}
        self._before = ExitStack()

    def open(self, name: str, mapping: dict[str, str]) -> Opened:
        self._before.close()
        self._file = file = HistoryFile(name)
        self._before.callback(file.close)
        self._rows = rows_of_file(file.name, file.head, mapping)
        return Opened(file.name, file.head, file.size)

    def pass_over(self, end: int, lines: int) -> bytes:
        return self._file.pass_over(end, lines)

    def decode(self, oldest_us: int) -> Decoded | None:
        if (block := self._file.read_block()) is None:
            return None
        self._end = End(block.end, block.number - 1 + len(block.lines), block.digest)
        self._checked = self._rows.decode(block, now_us=time.time_ns() // 1000, oldest_us=oldest_us)
        since = f"{instant(oldest_us - EPOCH_US):%Y-%m-%dT%H:%M:%SZ}"
        for reading in self._checked.rejected:
            if reading.code == "too_old":
                reading.message = f"The timestamp lies before {since}; older readings are not kept."
        return self._decoded()

    def go_on(self, ids: dict[str, dict[str, int]]) -> Decoded:
        self._meter.update(ids[Stream.METER])
        self._vehicle.update(ids[Stream.VEHICLE])
        return self._decoded()

    def _decoded(self) -> Decoded:
        checked = self._checked
        meter_id, meter_us, ac, voltage, ac_register = checked.meter
        vehicle_id, vehicle_us, dc, at_meter, soc, battery_temp, dc_register = checked.vehicle
        decoded = Decoded(
            self._end,
            self._file.read_bytes(),
            checked.received,
            len(meter_id) + len(vehicle_id),
            checked.rejected,
            checked.rejected_lines,
            checked.dropped,
            self._rows.columns.ignored,
        )
        unknown = {
            Stream.METER: {*meter_id, *at_meter} - self._meter.keys(),
            Stream.VEHICLE: set(vehicle_id) - self._vehicle.keys(),
        }
        if any(unknown.values()):
            decoded.unknown = unknown
            return decoded
        meter, vehicle = self._meter.__getitem__, self._vehicle.__getitem__
        of_meters = zip(_since_2000(meter_us), map(meter, meter_id), ac, voltage, ac_register, strict=True)
        of_vehicles = zip(
            _since_2000(vehicle_us),
            map(vehicle, vehicle_id),
            map(meter, at_meter),
            *(dc, soc, battery_temp, dc_register),
            strict=True,
        )
        # Rows are in order of time; of several with one key, the first in the file stays first.
        rows = {
            Stream.METER: sorted(of_meters, key=itemgetter(0)),
            Stream.VEHICLE: sorted(of_vehicles, key=itemgetter(0)),
        }
        decoded.encoded_rows = msgspec.Raw(_encode(rows))
        return decoded


def rows_of_file(file: str, head: bytes, mapping: Mapping[str, str]) -> Rows:
    """Returns the decoder for CSV or NDJSON, by the first character. Raises SetupError for unusable columns."""
    columns = Columns(mapping)
    if head.removeprefix(BOM).lstrip().startswith(b"{"):
        return NdjsonRows(file, columns)
    return CsvRows(file, head, columns)


def _since_2000(all_us: list[int]) -> Iterator[int]:
    return map(sub, all_us, repeat(EPOCH_US))


def _serve(pipe: Connection) -> None:
    # A block makes 75,000 rows and drops them again; they contain no reference cycles to look for.
    gc.set_threshold(1_000_000)
    # While it waits for standard input, it cannot see on the pipe that nobody is left at the other end.
    when_parent_ends(lambda: os._exit(1))
    answers = _Answers()
    with suppress(EOFError, ConnectionError):
        while True:
            method, arguments = _REQUEST.decode(pipe.recv_bytes())
            try:
                answer = getattr(answers, method)(*arguments)
            except SetupError as error:
                answer = _SetupFailed(str(error))
            pipe.send_bytes(_encode(answer))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
