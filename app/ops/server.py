"""The HTTP server's process."""

import asyncio
import os
import resource
import signal
from collections.abc import Callable

from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels

from app.loops import when_parent_ends
from app.ops.connections import connection_limit
from app.settings import Settings

# This is enough for the batches in flight: a group has few transactions, each of TRANSACTION_SECONDS at most.
STOP_SECONDS = 30

# Connections that wait in the kernel, where they cost nothing; its own limit is 4,096.
BACKLOG = 4096

# What the server holds of a body that is not read yet. The default, 400 kB, is 500 MB for 1,200 bodies that stall.
BUFFER_BYTES = 64 * 1024


def run_server(url: str, host: str, port: int, settings: Settings, *, mqtt: bool = False) -> None:
    """Serves until SIGTERM or SIGINT, with `mqtt` from the broker too; finishes and answers requests in flight."""
    os.environ["DATABASE_URL"] = url  # the worker process reads its settings from there
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the soft one is often 1,024, for the sake of select()
    server = Granian(
        "app.main:from_environ_with_mqtt" if mqtt else "app.main:from_environ",
        factory=True,
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        workers=1,
        websockets=False,
        backlog=BACKLOG,
        backpressure=connection_limit(settings),
        http1_settings=HTTP1Settings(
            # For the server, the time between two requests is time for the next one's head.
            header_read_timeout=settings.keep_alive_seconds * 1000,
            max_buffer_size=BUFFER_BYTES,
        ),
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
