"""Structured logs: one line per request, each with the request's id."""

import re
import sys
import time
import uuid

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from app.ops.metrics import REQUEST_SECONDS

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")

_log = structlog.get_logger()


def configure_logging(level: str) -> None:
    """Logs from that level up to standard error: as JSON lines, or as coloured text on a terminal."""
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def log_requests(app: ASGIApp) -> ASGIApp:
    """Gives each request an id (the client's `X-Request-ID`, if it sent one), then returns and logs the id."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        structlog.contextvars.bind_contextvars(request_id=request_id)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        started = time.perf_counter()
        try:
            await app(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            # The path logged is the route's, since clients may send any path and method.
            path = scope.get("path_template")
            REQUEST_SECONDS.labels(*((scope["method"], path) if path else ("other", "other")), status).observe(seconds)
            milliseconds = round(seconds * 1000, 1)
            log = _log.info if 0 < status < 500 else _log.warning
            log("request", method=scope["method"], path=scope["path"], status=status, milliseconds=milliseconds)
            structlog.contextvars.unbind_contextvars("request_id", "code", "reason")

    return middleware
