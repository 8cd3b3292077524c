"""The guard of Wattline's own PostgreSQL: while a process holds the server, it is started again whenever it dies."""

import re
import sys
import threading
import time
from collections.abc import Callable

from app.errors import SetupError
from app.loops import backoff_seconds

# Each look takes two file locks, and a dead server refuses batches until the next one.
LOOK_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30
# A server that has run for so long since its last start is no longer in a loop of crashes.
STEADY_SECONDS = 60


def keep_running(start_again: Callable[[], str | None], ended: threading.Event) -> None:
    """Calls `start_again` until `ended` is set, with pauses that grow while the server dies or cannot start.

    `start_again` returns None if the server runs, else how it died, once it runs again; it raises SetupError if it
    cannot start it. Standard error gets one line for each cause until the server has run for STEADY_SECONDS.
    """
    starts, last_start = 0, 0.0
    told: set[str] = set()
    while not ended.wait(backoff_seconds(starts, first=LOOK_SECONDS, longest=LONGEST_PAUSE_SECONDS)):
        try:
            death = start_again()
        except SetupError as error:
            news = f"The database has died and cannot be started again yet: {error}"
        else:
            if death is None:
                if starts and time.monotonic() - last_start > STEADY_SECONDS:
                    starts = 0
                    told.clear()
                continue
            news = f"The database died and runs again. Its log ended: {death}"
        starts, last_start = starts + 1, time.monotonic()
        cause = re.sub(r"\d+", "", news)  # times and process ids differ each time
        if cause not in told:
            told.add(cause)
            sys.stderr.write(f"{news}\n")
            sys.stderr.flush()
