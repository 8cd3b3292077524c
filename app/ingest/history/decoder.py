"""Blocks to rows, in a process of its own: Python computes longer for a reading than the database does.

The two processes exchange messages over a pipe. The decoding one ends when there is nobody at its other end.
"""

import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from operator import itemgetter
from typing import Any

import msgspec

from app.errors import SetupError
from app.ingest.check import Batch, Rejected
from app.ingest.devices import DeviceIds
from app.ingest.history.file import Block
from app.ingest.history.rows import Rows, rows_of_file
from app.ingest.insert import EPOCH_US, instant
from app.ingest.parts import rows_of
from app.telemetry.reading import Stream

StreamRows = dict[Stream, list[tuple[Any, ...]]]


class File(msgspec.Struct, tag=True):
    """The blocks that follow are of this file; readings are kept from `oldest_us` on, counted from 1970."""

    name: str
    head: bytes
    mapping: dict[str, str]
    oldest_us: int


class Registered(msgspec.Struct, tag=True):
    """Ids by name, of devices that were unknown."""

    ids: dict[Stream, dict[str, int]]


class Decoded(msgspec.Struct, tag=True):
    """The rows of a block's `good` readings, each stream's in order of time, and with each rejected reading its line.

    There are no rows while devices are `unknown`. `ignored` are the columns, so far, that stand for no field.
    """

    received: int
    good: int
    rejected: list[Rejected]
    rejected_lines: list[tuple[int, bytes]]
    ignored: list[str]
    unknown: dict[Stream, set[str]] = {}
    rows: StreamRows = {}


class Refused(msgspec.Struct, tag=True):
    """The message of a SetupError."""

    message: str


_encode = msgspec.msgpack.Encoder().encode
_REQUEST = msgspec.msgpack.Decoder(File | Block | Registered)
_ANSWER = msgspec.msgpack.Decoder(Decoded | Refused)


class Decoder:
    """The other process, as the importing one has it."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            # In a session of its own, Ctrl-C reaches only the process that can go on from where it stopped.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app.ingest.history.decoder", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def ask(self, request: File | Block | Registered) -> Decoded:
        """Of a block, or of the block before when its unknown devices have been registered; of a file, nothing yet.

        Raises SetupError for a file that cannot be imported.
        """
        try:
            self._pipe.send_bytes(_encode(request))
            answer: Decoded | Refused = _ANSWER.decode(self._pipe.recv_bytes())
        except (EOFError, OSError):
            raise SetupError("The process that decodes has ended; the same command goes on from there.") from None
        if isinstance(answer, Refused):
            raise SetupError(answer.message)
        return answer

    def close(self) -> None:
        self._pipe.close()
        self._process.wait()


class _Answers:
    """The decoding process."""

    def __init__(self) -> None:
        self._ids = DeviceIds(None)

    def to(self, request: File | Block | Registered) -> Decoded:
        if isinstance(request, File):
            self._rows: Rows = rows_of_file(request.name, request.head, request.mapping)
            self._oldest_us = request.oldest_us
            self._batch, self._rejected_lines = Batch(0, [], [], []), list[tuple[int, bytes]]()
        elif isinstance(request, Block):
            self._decode(request)
        else:
            self._ids.meter |= request.ids[Stream.METER]
            self._ids.vehicle |= request.ids[Stream.VEHICLE]
        return self._decoded()

    def _decode(self, block: Block) -> None:
        now_us = time.time_ns() // 1000
        self._batch, self._rejected_lines = self._rows.decode(block, now_us=now_us, oldest_us=self._oldest_us)
        since = instant(self._oldest_us - EPOCH_US)
        for refused in self._batch.rejected:
            if refused.code == "too_old":
                refused.message = (
                    f"The timestamp lies before {since:%Y-%m-%dT%H:%M:%SZ}, from when on readings are kept."
                )

    def _decoded(self) -> Decoded:
        batch = self._batch
        good = len(batch.meter) + len(batch.vehicle)
        decoded = Decoded(batch.received, good, batch.rejected, self._rejected_lines, self._rows.columns.ignored)
        unknown = self._ids.unknown([batch])
        if any(unknown.values()):
            decoded.unknown = unknown
            return decoded
        decoded.rows = rows_of(batch, self._ids)
        for of_stream in decoded.rows.values():
            of_stream.sort(key=itemgetter(0))  # of several with one key, the first in the file stays the first
        return decoded


def _serve(pipe: Connection) -> None:
    answers = _Answers()
    with suppress(EOFError, ConnectionError):
        while True:
            request = _REQUEST.decode(pipe.recv_bytes())
            answer: Decoded | Refused
            try:
                answer = answers.to(request)
            except SetupError as error:
                answer = Refused(str(error))
            pipe.send_bytes(_encode(answer))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
