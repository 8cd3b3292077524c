"""Keeps web pages out: a page that an operator happens to open gets nothing in or out.

A browser sends the requests of any page to any address that it can reach, this machine's loopback too. Without tokens,
the address is all that protects the service, so these rules hold:

1. Writing needs a content type that no page may send unasked: each route that takes a body refuses all others (415).
2. The browser says from which page a request comes, in `Origin` and `Sec-Fetch-Site`, which no page can set. From a
   foreign page, only GET and HEAD are served, whose answers the browser keeps from the page (403).
3. If the page's own name is made to lead here (DNS rebinding), the browser takes this service for the page's own. But
   `Host` has that name, and only names of ours are served (421). An IP address is not looked up, so that no page can
   make one lead here: all are served, and probes and balancers that ask by address need no setting.
4. No page may frame or embed an answer, and no browser takes it for another type than it says.

A client that is no browser sends neither `Origin` nor `Sec-Fetch-Site`; one of HTTP/1.0 may even send no `Host`.
"""

import re
from collections.abc import AsyncIterator, Collection, Iterator
from ipaddress import ip_address

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from app.errors import CrossSite, MisdirectedRequest, ServiceError
from app.ingest.http.body import drain
from app.problem_answers import refuse
from app.settings import Settings

# An answer that sets such a header itself keeps its own.
_HEADERS = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_HOST = re.compile(r"(?P<name>\[[^\[\]]*\]|[^:\[\]]*)(:\d*)?")


def keep_pages_out(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Refuses what a foreign page could send, and gives each answer the headers that protect it in a browser."""
    names = {"localhost", *map(_bare, (settings.hosts or "localhost").split(","))}

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(header for header in _HEADERS if header[0] not in given)]
            await send(message)

        if (refusal := next(_refusals(scope, names), None)) is None:
            await app(scope, receive, send_protected)
        else:
            await drain(_body(receive))
            await refuse(scope, receive, send_protected, refusal)

    return middleware


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while (message := await receive())["type"] == "http.request":
        yield message["body"]
        if not message["more_body"]:
            return


def _refusals(scope: HTTPScope, names: Collection[str]) -> Iterator[ServiceError]:
    """Yields the reasons for which a request is not served, if there are any."""
    hosts = _given(scope, b"host")
    for host in hosts:
        if not _is_ours(host, names):
            yield MisdirectedRequest(f"This service is not known as {host!r}: WATTLINE_HOSTS names its hosts.")
    if scope["method"] not in ("GET", "HEAD"):
        if any(site not in ("same-origin", "none") for site in _given(scope, b"sec-fetch-site")):
            yield CrossSite()
        # A page without an origin of its own sends `null`. The scheme may be a proxy's.
        if any(origin.partition("://")[2] not in hosts for origin in _given(scope, b"origin")):
            yield CrossSite()


def _given(scope: HTTPScope, header: bytes) -> list[str]:
    # Without a Host, the server says that it is empty.
    return [value.decode("latin-1").lower() for name, value in scope["headers"] if name == header and value]


def _is_ours(host: str, names: Collection[str]) -> bool:
    """Whether a Host, with its port, is one of the names or an address."""
    match = _HOST.fullmatch(host)
    name = _bare(match["name"]) if match else ""
    try:
        return name in names or bool(ip_address(name.strip("[]")))
    except ValueError:
        return False


def _bare(name: str) -> str:
    """Returns a name without the dot that may end it."""
    return name.strip().lower().removesuffix(".")
