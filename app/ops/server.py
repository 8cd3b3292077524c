"""The HTTP server's process."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Collection
from contextlib import suppress

from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels

from app.loops import when_parent_ends

# This is enough for the batches in flight: a group has few transactions, each of TRANSACTION_SECONDS at most.
STOP_SECONDS = 30


def run_server(url: str, host: str, port: int, *, mqtt: bool = False) -> None:
    """Serves until SIGTERM or SIGINT, with `mqtt` from the broker too; finishes and answers requests in flight."""
    os.environ["DATABASE_URL"] = url  # the worker process reads its settings from there
    server = Granian(
        "app.main:from_environ_with_mqtt" if mqtt else "app.main:from_environ",
        factory=True,
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        workers=1,
        websockets=False,
        http=HTTPModes.http1,  # over HTTP/2, all listeners behind a proxy would be one connection for cut_off()
        log_level=LogLevels.warning,
        workers_kill_timeout=STOP_SECONDS,
    )
    server.serve()


def follow_parent() -> None:
    """Makes this worker stop, in good order, when its parent says so or is gone, and for no other reason.

    A terminal sends Ctrl-C to both. When the parent's SIGTERM came as well, one stop in five hung for STOP_SECONDS and
    cut off a request. Without its parent, a worker would go on for ever and keep the port.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    when_parent_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))


def before_stop(close: Callable[[], None]) -> None:
    """Has `close` called when this worker is to stop: the server waits for the end of each answer; some have none.

    The event loop learns of signals from a file descriptor, so our handler replaces none of the server's.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # otherwise no server has asked for signals
        loop = asyncio.get_running_loop()
        signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(close))


def cut_off(clients: Collection[tuple[str, int]]) -> None:
    """Ends this process's connections with these addresses, even where the other side does not read.

    The server has no time limit for writing, and no way to end a single connection.
    """
    for number in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):  # not a socket, closed since, or not connected
            connection = socket.socket(fileno=number)
            try:
                if connection.getpeername()[:2] in clients:
                    connection.shutdown(socket.SHUT_RDWR)
            finally:
                connection.detach()
