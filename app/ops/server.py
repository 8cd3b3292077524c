"""The HTTP server's process."""

import os

from granian import Granian
from granian.constants import Interfaces
from granian.log import LogLevels

# Batches in flight are finished within it: a store transaction runs 5 s at most, and a group has few of them.
STOP_SECONDS = 30


def run_server(url: str, host: str, port: int) -> None:
    """Serves until SIGTERM or SIGINT; then requests in flight are finished and answered."""
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
