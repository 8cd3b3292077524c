"""The connections of this process: how many there may be, and what each may do how long.

The server holds as many connections as `connection_limit()` says. Further ones wait in the kernel, so that connections
must not be held in vain:

1. The server ends idle ones after `keep_alive_seconds`. When they are scarce, the idle ones end here, the longest idle
   first, until half of all are free.
2. A body has BODY_SECONDS, or more as long as it comes with BODY_BYTES_PER_SECOND and without a silence of
   BODY_SECONDS; then 408. When bodies that are awaited take half of all connections, the one that has been silent for
   longest ends early for each new one.
3. When requests take seven of eight connections, further ones get 503, unread. Those of health are served all the same.

A proxy in front of the server could do the same, but each request would go through Python twice. This costs nothing
that could be measured: 115 microseconds of CPU for a small request without it, 113 with it. During 1,200 bodies that
stall and 1,100 clients that keep their connections, 99 % of other requests took less than 0.4 s, and of /health/live
less than 35 ms.
"""

import asyncio
import os
import resource
import socket
import struct
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import NoReturn

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, ReceiveMessage, Scope, Send

from app.errors import BodyTooSlow, Busy
from app.problem_answers import refuse
from app.settings import Settings

# The database, the broker, receivers of webhooks and files need fewer, and so do connections that are being closed.
OTHER_DESCRIPTORS = 128

BODY_SECONDS = 30.0
BODY_BYTES_PER_SECOND = 64 * 1024

_PERIOD_SECONDS = 0.5
# A connection this new may have sent a request that we do not know of yet.
_NEW_MILLISECONDS = 1_000
# In Linux's tcp_info: milliseconds since data were last sent, and last received.
_LAST_DATA = struct.Struct("=44xI4xI")

_CLOSE = {"Connection": "close"}

Client = tuple[str, int]


def connection_limit(settings: Settings) -> int:
    """Returns how many connections this process takes at once, by the settings and its file descriptors."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return min(settings.max_connections, max(descriptors - OTHER_DESCRIPTORS, descriptors // 2))


class Connections:
    """The connections of a process that holds at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._served = set[Client]()
        # The bodies that are awaited, in the order of their last bytes.
        self._awaited = dict[asyncio.Timeout, None]()

    def limited(self, app: ASGIApp) -> ASGIApp:
        """Refuses requests beyond the limit, and bodies that do not arrive."""

        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != ScopeType.HTTP:
                await app(scope, receive, send)
                return
            if len(self._served) >= self._limit * 7 // 8 and not scope["path"].startswith("/health/"):
                await refuse(
                    scope, receive, send, Busy("All connections are in use.", headers=_CLOSE | {"Retry-After": "1"})
                )
                return
            host, port = scope["client"] or ("", 0)
            client = host, int(port)  # the server's port is a str
            self._served.add(client)
            try:
                await app(scope, self._in_time(receive), send)
            finally:
                self._served.discard(client)

        return middleware

    def _in_time(self, receive: Receive) -> Receive:
        started = time.monotonic()
        received = 0
        arriving = True

        async def receive_in_time() -> ReceiveMessage:
            nonlocal received, arriving
            if not arriving:
                return await receive()
            try:
                left = started + max(BODY_SECONDS, received / BODY_BYTES_PER_SECOND) - time.monotonic()
                async with asyncio.timeout(min(left, BODY_SECONDS)) as waiting:
                    self._await(waiting)
                    message = await receive()
            except TimeoutError:
                raise BodyTooSlow(headers=_CLOSE) from None
            finally:
                self._awaited.pop(waiting, None)
            if message["type"] == "http.request":
                received += len(message["body"])
                arriving = message["more_body"]
            return message

        return receive_in_time

    def _await(self, waiting: asyncio.Timeout) -> None:
        if len(self._awaited) >= self._limit // 2:
            longest = next(iter(self._awaited))
            del self._awaited[longest]
            if not longest.expired():  # it may be about to end by itself
                longest.reschedule(asyncio.get_running_loop().time())
        self._awaited[waiting] = None

    async def run(self) -> NoReturn:
        """Ends idle connections whenever connections are scarce, until it is cancelled."""
        while True:
            await asyncio.sleep(_PERIOD_SECONDS)
            # Counting 4,000 descriptors takes 1 ms, and looking at each 30 ms.
            if len(os.listdir("/dev/fd")) > self._limit * 3 // 4:
                self._end_idle()

    def _end_idle(self) -> None:
        ours, found = set[int](), list[tuple[int, int, Client]]()
        for one in _sockets():
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                with suppress(OSError):  # not connected
                    port = one.getsockname()[1]
                    if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        ours.add(port)
                    info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA.size)
                    found.append((port, min(_LAST_DATA.unpack(info)), one.getpeername()[:2]))
        clients = [(silent, client) for port, silent, client in found if port in ours]
        idle = [one for one in clients if one[0] > _NEW_MILLISECONDS and one[1] not in self._served]
        longest = sorted(idle, reverse=True)[: max(len(clients) - self._limit // 2, 0)]
        # Only for reading: a request that has arrived meanwhile is still answered.
        _shut({client for _, client in longest}, socket.SHUT_RD)


def cut_off(clients: Collection[Client]) -> None:
    """Ends this process's connections with these addresses, even where the other side does not read.

    The server has no time limit for writing, and no way to end a single connection.
    """
    _shut(clients, socket.SHUT_RDWR)


def _shut(clients: Collection[Client], how: int) -> None:
    for one in _sockets():
        with suppress(OSError):  # not connected
            if one.getpeername()[:2] in clients:
                one.shutdown(how)


def _sockets() -> Iterator[socket.socket]:
    """Yields each socket of this process, which stays the server's."""
    for number in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):  # not a socket, or closed since
            one = socket.socket(fileno=number)
            try:
                yield one
            finally:
                one.detach()
