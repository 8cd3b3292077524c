"""The HTTP server's process."""

import os
import signal
import socket
import threading
import time

from granian import Granian
from granian.constants import Interfaces
from granian.log import LogLevels

from app.errors import SetupError

# Batches in flight are finished within it: a store transaction runs 5 s at most, and a group has few of them.
STOP_SECONDS = 30


def run_server(url: str, host: str, port: int) -> None:
    """Serves until SIGTERM or SIGINT; then requests in flight are finished and answered.

    Raises SetupError when the address cannot be listened on.
    """
    _refuse_taken_address(host, port)
    os.environ["DATABASE_URL"] = url  # the worker process reads its settings from there
    server = Granian(
        "app.main:from_environ",
        factory=True,
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        workers=1,
        websockets=False,
        log_level=LogLevels.warning,
        workers_kill_timeout=STOP_SECONDS,
    )
    server.serve()


def end_with_parent() -> None:
    """Stops this worker in good order once its parent is gone, which was killed: it would go on and keep the port."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _refuse_taken_address(host: str, port: int) -> None:
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise SetupError(f"{host} port {port} cannot be listened on: {error.strerror}.") from None
