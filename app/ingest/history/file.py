"""A file of readings as blocks of lines: decompressed, never held as a whole, with lines of bounded length."""

import gzip
import hashlib
import io
import os
import sys
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, cast

from app.errors import SetupError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# A block is one transaction or a few. It is as large as memory allows, for each moves the latest states of all its
# devices. The journal counts on a block being cut the same way again.
BLOCK_LINES = 75_000
BLOCK_BYTES = 6 * 1024 * 1024
MAX_LINE_BYTES = 64 * 1024
#: Files whose first bytes agree this far count as one until everything that was read of them is compared.
HEAD_BYTES = 64 * 1024

_FOREIGN = {
    b"PK": "a zip archive or a spreadsheet",
    b"\xfd7zXZ": "compressed with xz",
    b"BZh": "compressed with bzip2",
    b"7z\xbc\xaf": "a 7z archive",
    b"PAR1": "Parquet",
    b"\xff\xfe": "UTF-16, not UTF-8",
    b"\xfe\xff": "UTF-16, not UTF-8",
    b"[": "a JSON array, not NDJSON (`jq -c '.[]'` writes one object per line)",
}


class Block(NamedTuple):
    """Some lines; `number` is that of the first, from 1. `end` is the offset of their end, `digest` sums them."""

    lines: list[bytes]
    number: int
    end: int
    digest: bytes


class HistoryFile:
    """A file, or standard input for `-`; plain, gzip or zstd, as its first bytes tell.

    Opening and reading it raise SetupError for anything that is not text.
    """

    def __init__(self, name: str) -> None:
        self.name = "standard input" if name == "-" else name
        with ExitStack() as opened:
            try:
                # Both are buffered, so that a pipe can be looked into without taking the bytes.
                raw = cast("io.BufferedReader", sys.stdin.buffer) if name == "-" else Path(name).open("rb")  # noqa: SIM115
                self._raw = opened.enter_context(raw)
                self.size = os.fstat(raw.fileno()).st_size if raw.seekable() else 0
                self._text = self._opened()
            except OSError as error:
                raise SetupError(f"{self.name} cannot be read: {error.strerror}.") from None
            self._waiting = b""
            self.head = self._waiting = self._read(HEAD_BYTES)
            self._refuse_foreign()
            self.close = opened.pop_all().close
        self._end = self._lines = 0
        self._digest = hashlib.blake2b(digest_size=16)

    def read_bytes(self) -> int:
        """The number of bytes of `size` that have been read."""
        return self._raw.tell() if self.size else 0

    def pass_over(self, end: int, lines: int) -> bytes:
        """Skips what was read before and returns its digest, which differs if the bytes do or a line is incomplete."""
        last = b"\n"
        while left := end - self._end:
            data = self._read(min(left, BLOCK_BYTES))
            if not data:
                break
            last = data[-1:]
            self._take(data)
        self._lines = lines
        if last != b"\n" and (more := self._read(1)):
            self._waiting = more + self._waiting
            return b""
        return self._digest.digest()

    def read_block(self) -> Block | None:
        """Returns the next lines; None at the end of the file."""
        if not (data := self._read(BLOCK_BYTES)):
            return None
        number = self._lines + 1
        at_end = len(data) < BLOCK_BYTES
        if b"\n" in data:
            lines, self._waiting = self._cut(data, at_end=at_end)
            self._take(data[: len(data) - len(self._waiting)])
        else:
            # This line is longer than a block, or it is the last; any excess over MAX_LINE_BYTES only shows its length.
            lines = [data[: MAX_LINE_BYTES + 1]]
            self._take(data)
            self._drop_line()
        self._lines += len(lines)
        return Block(lines, number, self._end, self._digest.digest())

    def _cut(self, data: bytes, *, at_end: bool) -> tuple[list[bytes], bytes]:
        *lines, rest = data.split(b"\n", BLOCK_LINES)
        if at_end and rest and len(lines) < BLOCK_LINES:
            return [*lines, rest], b""
        return lines, rest

    def _drop_line(self) -> None:
        while data := self._read(BLOCK_BYTES):
            line, newline, rest = data.partition(b"\n")
            self._take(line + newline)
            if newline:
                self._waiting = rest
                return

    def _take(self, data: bytes) -> None:
        self._end += len(data)
        self._digest.update(data)

    def _read(self, size: int) -> bytes:
        """Reads this many bytes of the text; fewer only at its end."""
        pieces = [self._waiting[:size]]
        self._waiting = self._waiting[size:]
        missing = size - len(pieces[0])
        try:
            while missing and (data := self._text.read(missing)):
                pieces.append(data)
                missing -= len(data)
        except EOFError:
            raise SetupError(f"{self.name} is truncated: its compressed data end early.") from None
        except (OSError, zlib.error, zstd.ZstdError) as error:
            raise SetupError(f"{self.name} cannot be read: {error}.") from None
        return b"".join(pieces)

    def _opened(self) -> io.BufferedIOBase:
        magic = self._raw.peek(4)[:4]
        if magic.startswith(b"\x1f\x8b"):
            return gzip.open(self._raw)
        if magic == b"\x28\xb5\x2f\xfd":
            # A frame may ask for a window of 2 GiB; this one is enough for `zstd --ultra -21` and `--long=26`.
            return zstd.ZstdFile(self._raw, options={zstd.DecompressionParameter.window_log_max: 26})
        return self._raw

    def _refuse_foreign(self) -> None:
        if not self.head:
            raise SetupError(f"{self.name} is empty.")
        for magic, kind in _FOREIGN.items():
            if self.head.lstrip().startswith(magic):
                raise SetupError(f"{self.name} is {kind}; CSV and NDJSON are read, plain or as gzip or zstd.")
        if b"\0" in self.head:
            raise SetupError(f"{self.name} is binary or not UTF-8; CSV and NDJSON are read, plain or as gzip or zstd.")
