"""HEAD wherever there is GET: monitors and download tools ask with it."""

from litestar.enums import ScopeType
from litestar.types import (
    ASGIApp,
    HTTPDisconnectEvent,
    HTTPResponseBodyEvent,
    Message,
    Receive,
    ReceiveMessage,
    Scope,
    Send,
)


def answer_heads(app: ASGIApp) -> ASGIApp:
    """Answers HEAD as the application answers GET, without the body: an answer without an end is ended there."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP or scope["method"] != "HEAD":
            await app(scope, receive, send)
            return
        answered = False

        async def send_head(message: Message) -> None:
            nonlocal answered
            if not answered:
                answered = True
                await send(message)
                await send(HTTPResponseBodyEvent(type="http.response.body", body=b"", more_body=False))

        async def receive_until_answered() -> ReceiveMessage:
            return HTTPDisconnectEvent(type="http.disconnect") if answered else await receive()

        scope["method"] = "GET"
        try:
            await app(scope, receive_until_answered, send_head)
        finally:
            scope["method"] = "HEAD"  # for the log

    return middleware
