"""The request's bytes, decompressed as they arrive and never past the limit."""

import asyncio
import sys
import traceback
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Protocol

from app.errors import BodyTooLarge, BodyTooSlow, MalformedBody, ServiceError, UnsupportedMediaType
from app.ingest.http.memory import Share

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_BODY_BYTES = 16 * 1024 * 1024

# Incompressible data grows: gzip adds 5 bytes to 16 KiB, zstd 3 to 128 KiB. The limit also ends a stream of empty
# members, which never yields a byte.
MAX_COMPRESSED_BYTES = MAX_BODY_BYTES + MAX_BODY_BYTES // 64

# A frame costs 16 microseconds however little it holds: one per reading is the most that makes sense.
MAX_FRAMES = 50_000

DRAIN_BYTES = 128 * 1024 * 1024
DRAIN_SECONDS = 10.0

# One step occupies the event loop for about 3 ms.
_INPUT_BYTES = 64 * 1024
_OUTPUT_BYTES = 1024 * 1024

# RFC 9659: with Content-Encoding, a zstd window is at most 8 MiB. A frame may ask for 2 GiB.
_WINDOW_LOG = 23
_WINDOW_BYTES = 1 << _WINDOW_LOG


async def read_body(
    chunks: AsyncIterator[bytes], share: Share, *, content_encoding: str, content_length: int | None
) -> bytes:
    """Reads the decoded body, at most MAX_BODY_BYTES; `content_encoding` is empty, identity, gzip or zstd.

    The share grows with the body. Raises Busy, BodyTooLarge, UnsupportedMediaType and MalformedBody, each after the
    rest of the request was dropped: a client that is still sending would otherwise see a broken connection instead of
    the answer.
    """
    try:
        body = await _collect(chunks, share, content_encoding.strip().lower(), content_length or 0)
    except ServiceError as error:
        # The error's frames hold what was read so far, up to 18 MiB, and draining may take a while.
        traceback.clear_frames(error.__traceback__)
        share.give_back()
        await drain(chunks)
        raise
    return bytes(body)


async def drain(
    chunks: AsyncIterator[bytes], *, at_most_bytes: int = DRAIN_BYTES, at_most_seconds: float = DRAIN_SECONDS
) -> None:
    """Reads and drops the rest of a request, up to a number of bytes or seconds."""
    dropped = 0
    with suppress(TimeoutError, BodyTooSlow):
        async with asyncio.timeout(at_most_seconds):
            async for chunk in chunks:
                dropped += len(chunk)
                if dropped > at_most_bytes:
                    return


async def _collect(chunks: AsyncIterator[bytes], share: Share, encoding: str, content_length: int) -> bytearray:
    if encoding in ("", "identity"):
        return await _read_plain(chunks, share, content_length)
    if encoding not in _FRAMES:
        raise UnsupportedMediaType("The content encoding must be gzip, zstd or identity.")
    if content_length > MAX_COMPRESSED_BYTES:
        raise BodyTooLarge
    try:
        return await _decompress(chunks, share, _FRAMES[encoding])
    except (zlib.error, zstd.ZstdError):
        raise MalformedBody(_INVALID[encoding]) from None


async def _read_plain(chunks: AsyncIterator[bytes], share: Share, content_length: int) -> bytearray:
    if content_length > MAX_BODY_BYTES:
        raise BodyTooLarge
    # Now, not as it grows: of many large bodies at once, each would else be refused half-way.
    share.take(content_length)
    body = bytearray()
    async for chunk in chunks:
        if len(body) + len(chunk) > MAX_BODY_BYTES:
            raise BodyTooLarge
        share.take(len(body) + len(chunk))
        body += chunk
    return body


async def _decompress(chunks: AsyncIterator[bytes], share: Share, new_frame: Callable[[], "_Frame"]) -> bytearray:
    frames = _Frames(new_frame)
    compressed = 0
    async for chunk in chunks:
        compressed += len(chunk)
        if compressed > MAX_COMPRESSED_BYTES:
            raise BodyTooLarge
        for start in range(0, len(chunk), _INPUT_BYTES):
            rest: bytes | None = chunk[start : start + _INPUT_BYTES]
            while rest is not None:
                rest = frames.step(rest)
                share.take(len(frames.body) + min(len(frames.body), _WINDOW_BYTES))
                if rest is not None or start:
                    await asyncio.sleep(0)
    if frames.frame is not None:
        raise MalformedBody("The compressed body is truncated.")
    return frames.body


class _Frame(Protocol):
    """One zstd frame or gzip member; `needs_input` is False while it can go on without new input."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipMember:
    """zlib's decompressor with the interface of zstd's."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(data or self._inner.unconsumed_tail, max_length)


class _Frames:
    """Decompresses frame after frame into `body`; `frame` is None between two."""

    def __init__(self, new_frame: Callable[[], _Frame]) -> None:
        self.body = bytearray()
        self.frame: _Frame | None = None
        self._new_frame = new_frame
        self._count = 0

    def step(self, data: bytes) -> bytes | None:
        """Decompresses one piece. Returns what to go on with, or None when new input is needed."""
        frame = self.frame = self.frame or self._next()
        self.body += frame.decompress(data, min(_OUTPUT_BYTES, MAX_BODY_BYTES - len(self.body) + 1))
        if len(self.body) > MAX_BODY_BYTES:
            raise BodyTooLarge
        if frame.eof:
            self.frame = None
            return frame.unused_data or None
        return None if frame.needs_input else b""

    def _next(self) -> _Frame:
        self._count += 1
        if self._count > MAX_FRAMES:
            raise MalformedBody(f"The body has more than {MAX_FRAMES} compressed frames.")
        return self._new_frame()


def _zstd_frame() -> _Frame:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})


_FRAMES: dict[str, Callable[[], _Frame]] = {"gzip": _GzipMember, "zstd": _zstd_frame}
_INVALID = {
    "gzip": "The body is not valid gzip.",
    "zstd": "The body is not valid zstd with a window of at most 8 MiB.",
}
