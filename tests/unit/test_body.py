"""The request's bytes: content encodings, the limit, and the cost of a hostile stream."""

import asyncio
import gzip
import random
import sys
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack

import pytest

from app.errors import BodyTooLarge, Busy, MalformedBody, UnsupportedMediaType
from app.ingest.batch import Batch, RejectedReading
from app.ingest.http.body import DRAIN_BYTES, MAX_BODY_BYTES, MAX_COMPRESSED_BYTES, MAX_FRAMES, drain, read_body
from app.ingest.http.memory import Memory

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1024 * 1024
SKIPPABLE = b"\x50\x2a\x4d\x18"


class Request:
    """The chunks of one request, and the number of bytes read of it."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.chunks = iter(chunks)
        self.read = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for chunk in self.chunks:
            self.read += len(chunk)
            return chunk
        raise StopAsyncIteration


def in_pieces(body: bytes, size: int = 65_536) -> Request:
    return Request(body[start : start + size] for start in range(0, len(body), size))


async def read(body: bytes | Request, encoding: str = "", length: int | None = None) -> bytes:
    request = in_pieces(body) if isinstance(body, bytes) else body
    with Memory(0).share() as share:
        return await read_body(request, share, content_encoding=encoding, content_length=length)


def compress(body: bytes, encoding: str) -> bytes:
    return gzip.compress(body, 1) if encoding == "gzip" else zstd.compress(body)


def zeros(encoding: str, mebibytes: int) -> bytes:
    """Returns a bomb: so many MiB of zeros, compressed."""
    block = bytes(MIB)
    if encoding == "gzip":
        deflate = zlib.compressobj(wbits=31)
        return b"".join([deflate.compress(block) for _ in range(mebibytes)]) + deflate.flush()
    zip_ = zstd.ZstdCompressor()
    return b"".join([zip_.compress(block) for _ in range(mebibytes)]) + zip_.flush()


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
async def test_a_plain_body_is_returned_as_sent(encoding: str) -> None:
    assert await read(Request([b"ab", b"", b"c"]), encoding) == b"abc"


@pytest.mark.parametrize("encoding", ["gzip", "GZip", "zstd", "ZSTD"])
@pytest.mark.parametrize("size", [1, 7, 65_536, 10 * MIB])
async def test_a_compressed_body_is_decompressed_however_it_is_cut(encoding: str, size: int) -> None:
    body = random.Random(1).randbytes(3_000) * (50 if size < 100 else 2_000)
    assert await read(in_pieces(compress(body, encoding.lower()), size), encoding) == body


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_several_members_or_frames_are_one_body(encoding: str) -> None:
    members = compress(b"a", encoding) + compress(b"", encoding) + compress(b"b" * 2 * MIB, encoding)
    for size in (1, 10, 1_000_000):
        assert await read(in_pieces(members, size), encoding) == b"a" + b"b" * 2 * MIB


async def test_skippable_frames_are_skipped() -> None:
    body = SKIPPABLE + (3).to_bytes(4, "little") + b"xyz" + zstd.compress(b"a") + SKIPPABLE + bytes(4)
    assert await read(in_pieces(body, 5), "zstd") == b"a"


@pytest.mark.parametrize("encoding", ["", "gzip", "zstd"])
async def test_nothing_is_an_empty_body(encoding: str) -> None:
    assert await read(b"", encoding) == b""


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "gzip,identity", "x-gzip", "zstd;q=1"])
async def test_another_encoding_is_refused_after_the_body_was_read(encoding: str) -> None:
    request = in_pieces(bytes(MIB))
    with pytest.raises(UnsupportedMediaType):
        await read(request, encoding)
    assert request.read == MIB


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_a_truncated_body_is_malformed(encoding: str) -> None:
    good = compress(b"some bytes " * 1_000, encoding)
    for body in (good[:1], good[:-1], good + good[:-1]):
        with pytest.raises(MalformedBody):
            await read(body, encoding)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_a_body_that_is_not_what_it_says_is_malformed_and_read_to_its_end(encoding: str) -> None:
    good = compress(b"some bytes " * 1_000, encoding)
    for body in (b"x", b"[1,2]", good + b"x" * 9, good + bytes(9), good[:15] + b"\xff" + good[16:]):
        request = Request([body, bytes(MIB)])
        with pytest.raises(MalformedBody):
            await read(request, encoding)
        assert request.read == len(body) + MIB


async def test_a_gzip_checksum_is_checked() -> None:
    good = gzip.compress(b"some bytes")
    with pytest.raises(MalformedBody):
        await read(good[:-8] + bytes([good[-8] ^ 1]) + good[-7:], "gzip")


@pytest.mark.parametrize("encoding", ["", "gzip", "zstd"])
async def test_16_mib_pass_and_one_byte_more_does_not(encoding: str) -> None:
    body = random.Random(2).randbytes(MAX_BODY_BYTES + 1)
    for over in (0, 1):
        sent = body[: MAX_BODY_BYTES + over]
        sent = compress(sent, encoding) if encoding else sent
        if over:
            with pytest.raises(BodyTooLarge):
                await read(sent, encoding, len(sent))
        else:
            assert len(await read(sent, encoding, len(sent))) == MAX_BODY_BYTES


@pytest.mark.parametrize(("encoding", "limit"), [("", MAX_BODY_BYTES), ("gzip", MAX_COMPRESSED_BYTES)])
async def test_a_length_above_the_limit_is_refused_before_anything_is_kept(encoding: str, limit: int) -> None:
    request = Request([b"x"])
    with pytest.raises(BodyTooLarge):
        await read(request, encoding, limit + 1)
    assert request.read == 1


async def test_the_rest_is_dropped_up_to_128_mib() -> None:
    block = bytes(MIB)
    request = Request(block for _ in range(1_000))
    with pytest.raises(BodyTooLarge):
        await read(request)
    assert request.read == MAX_BODY_BYTES + MIB + DRAIN_BYTES + MIB


async def test_the_rest_is_dropped_up_to_a_time() -> None:
    class Stalled(Request):
        async def __anext__(self) -> bytes:
            await asyncio.Event().wait()
            return b""

    await drain(Stalled([]), at_most_seconds=0.01)


async def test_what_was_read_is_let_go_before_the_rest_is_dropped() -> None:
    held = []

    def chunks() -> Iterable[bytes]:
        for _ in range(20):
            yield bytes(MIB)
            held.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    with pytest.raises(BodyTooLarge):
        await read(Request(chunks()))
    tracemalloc.stop()
    assert held[15] > 15 * MIB
    assert held[-1] < 3 * MIB


async def test_an_error_of_the_connection_is_passed_on() -> None:
    class Broken(Request):
        async def __anext__(self) -> bytes:
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await read(Broken([]), "gzip")


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("size", [65_536, 16 * MIB])
async def test_a_bomb_is_decompressed_only_up_to_the_limit(encoding: str, size: int) -> None:
    request = in_pieces(zeros(encoding, 200), size)
    tracemalloc.start()
    with pytest.raises(BodyTooLarge):
        await read(request, encoding)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25e6


async def test_zstd_windows_up_to_8_mib_are_taken_and_larger_ones_are_malformed() -> None:
    for window_log in (23, 24, 27):
        stream = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: window_log})
        sent = stream.compress(b"a" * 1_000) + stream.flush()
        if window_log == 23:
            assert await read(sent, "zstd") == b"a" * 1_000
        else:
            with pytest.raises(MalformedBody):
                await read(sent, "zstd")


# A time in it would give the test another name in each process.
@pytest.mark.parametrize("frame", [gzip.compress(b"", mtime=0), zstd.compress(b""), SKIPPABLE + bytes(4)])
async def test_frames_that_hold_nothing_are_counted(frame: bytes) -> None:
    encoding = "gzip" if frame[:1] == b"\x1f" else "zstd"
    with pytest.raises(MalformedBody):
        await read(frame * (MAX_FRAMES + 1), encoding)


async def test_a_frame_without_content_is_bounded_by_its_size() -> None:
    endless_name = (b"\x1f\x8b\x08\x08" + bytes(6), *[b"a" * MIB] * 20)
    with pytest.raises(BodyTooLarge):
        await read(Request(endless_name), "gzip")


@pytest.mark.parametrize("encoding", ["", "gzip", "zstd"])
async def test_16_mib_cost_less_than_50_mb(encoding: str) -> None:
    body = random.Random(3).randbytes(MAX_BODY_BYTES)
    body = compress(body, encoding) if encoding else body
    tracemalloc.start()
    await read(body, encoding)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_other_tasks_run_while_a_body_is_decompressed(encoding: str) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await read(Request([zeros(encoding, 16)]), encoding)
    counting.cancel()
    assert turns >= 15


async def test_a_body_takes_its_share_before_it_is_read_and_gives_it_back() -> None:
    memory = Memory(0)
    with ExitStack() as open_shares:
        for _ in range(6):  # six times 16 MiB are three quarters of the memory
            open_shares.enter_context(memory.share()).take(MAX_BODY_BYTES)
        for body, encoding in ((bytes(3 * MIB), ""), (zeros("gzip", 3), "gzip"), (zeros("zstd", 3), "zstd")):
            request = in_pieces(body)
            length = len(body) if encoding == "" else None
            with memory.share() as share, pytest.raises(Busy):
                await read_body(request, share, content_encoding=encoding, content_length=length)
            with pytest.raises(StopAsyncIteration):  # the rest was dropped
                await anext(request)
        with memory.share() as share:
            small = in_pieces(bytes(MIB))
            assert len(await read_body(small, share, content_encoding="", content_length=MIB)) == MIB
    with memory.share() as share:
        share.take(MAX_BODY_BYTES * 6)


def test_what_a_batch_takes_counts_rejected_readings_and_their_payloads() -> None:
    memory = Memory(0)
    rejected = [RejectedReading(index, "malformed", None, "", None, bytes(100)) for index in range(50_000)]
    batch = Batch(50_000, [], [], rejected)
    with memory.share() as first, memory.share() as second:
        first.hold(batch)
        with pytest.raises(Busy):
            second.hold(batch)
        first.give_back()
        second.hold(batch)


def test_more_readings_that_may_wait_get_more_memory() -> None:
    with Memory(2_000_000).share() as share:
        share.hold(Batch(1_900_000, [], [], []))
