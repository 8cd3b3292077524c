"""POST of readings: body -> decode_batch -> store -> receipt."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from litestar import Request, post
from litestar.di import NamedDependency
from litestar.exceptions import InternalServerException

from app.errors import AllRejected, MalformedBody, UnsupportedMediaType
from app.ingest.batch import Receipt, Source, warnings_of
from app.ingest.counters import count_warnings
from app.ingest.decode import LARGE_BODY_BYTES, MediaType, decode_batch
from app.ingest.http.body import drain, read_body
from app.ingest.http.memory import Memory
from app.ingest.http.openapi import MeterBatch, MixedBatch, VehicleBatch
from app.ingest.store.writer import Writer
from app.problem_answers import problems
from app.telemetry.reading import Stream

Incoming = Request[Any, Any, Any]

# A gateway needs some to find the cause, and quarantine has more.
MAX_CONFLICTING = 100

RESPONSES = problems(
    {
        400: "The body cannot be decoded or holds no reading.",
        403: "A web page of another origin sent the request.",
        408: "The body did not arrive in time.",
        413: "The decoded body has more than 16 MiB or more than 50,000 readings.",
        415: "The content type is missing, or it or the content encoding is not supported.",
        422: "Every reading was rejected; the receipt's members are included.",
        503: "The database is unavailable or too many readings are waiting; send the batch again after `Retry-After`.",
    }
)


@post(
    ["/v1/telemetry", "/v1/ingest", "/v1/ingestion"],
    tags=["telemetry"],
    status_code=200,
    request_max_body_size=None,
    operation_class=MixedBatch,
    responses=RESPONSES,
)
async def post_batch(request: Incoming, writer: NamedDependency[Writer], memory: NamedDependency[Memory]) -> Receipt:
    """Stores a batch of readings of either stream. The receipt is sent after COMMIT: what it counts is safe."""
    return await receive_batch(request, writer, memory, None)


@post(
    "/v1/telemetry/meter",
    tags=["telemetry"],
    status_code=200,
    request_max_body_size=None,
    operation_class=MeterBatch,
    responses=RESPONSES,
)
async def post_meter_batch(
    request: Incoming, writer: NamedDependency[Writer], memory: NamedDependency[Memory]
) -> Receipt:
    """Stores a batch of meter readings."""
    return await receive_batch(request, writer, memory, Stream.METER)


@post(
    "/v1/telemetry/vehicle",
    tags=["telemetry"],
    status_code=200,
    request_max_body_size=None,
    operation_class=VehicleBatch,
    responses=RESPONSES,
)
async def post_vehicle_batch(
    request: Incoming, writer: NamedDependency[Writer], memory: NamedDependency[Memory]
) -> Receipt:
    """Stores a batch of vehicle readings."""
    return await receive_batch(request, writer, memory, Stream.VEHICLE)


async def receive_batch(request: Incoming, writer: Writer, memory: Memory, stream: Stream | None) -> Receipt:
    """Turns the request's bytes into a receipt; raises the errors of `RESPONSES`."""
    media_type = await _media_type(request)
    with memory.share() as share:
        body = await read_body(
            _chunks(request),
            share,
            content_encoding=request.headers.get("content-encoding", ""),
            content_length=_content_length(request),
        )
        if len(body) > LARGE_BODY_BYTES:
            async with memory.decoding:
                batch = await asyncio.to_thread(decode_batch, body, media_type, now_us=_now_us(), stream=stream)
        else:
            batch = decode_batch(body, media_type, now_us=_now_us(), stream=stream)
        del body  # Its up to 16 MiB are not needed while the batch waits for its commit.
        share.hold(batch)
        receipt = await writer.store(batch, Source.HTTP)
        receipt = msgspec.structs.replace(
            receipt, warnings=warnings_of(batch), conflicting=receipt.conflicting[:MAX_CONFLICTING]
        )
    count_warnings(receipt.warnings)
    if len(receipt.rejected) == receipt.received:
        first = receipt.rejected[0]
        raise AllRejected(
            f"Every reading was rejected; the first: {first.field or 'reading'}: {first.message}",
            # As dicts, 50,000 rejections would take 15 MB more.
            **{member.encode_name: getattr(receipt, member.name) for member in msgspec.structs.fields(receipt)},
        )
    return receipt


def _now_us() -> int:
    return time.time_ns() // 1000


async def _media_type(request: Incoming) -> MediaType:
    # Without one, any web page could send a batch: browsers let a page send a body that has no type, or a form's.
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        return MediaType(given)
    except ValueError:
        await drain(_chunks(request))
        raise UnsupportedMediaType(
            f"The content type must be one of {', '.join(MediaType)}; curl needs -H 'Content-Type: application/json'."
        ) from None


async def _chunks(request: Incoming) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except InternalServerException:
        # The client has gone: nobody reads this answer, and it is not a bug.
        raise MalformedBody("The connection was closed before the end of the body.") from None


def _content_length(request: Incoming) -> int | None:
    value = request.headers.get("content-length", "")
    return int(value) if value.isdecimal() else None
