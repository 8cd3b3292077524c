"""Feeding a service from the simulated fleet."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import msgspec
from rich.console import Console
from rich.progress import track

from app.simulator.fleet import Fleet

HISTORY_MINUTES = 120
BATCH_READINGS = 1_000

_console = Console()


@contextmanager
def feeding(base_url: str, chargers: int) -> Iterator[None]:
    """Sends two hours of history as soon as the service is ready, then what the fleet measures, while this is open."""
    stopped = threading.Event()
    feeder = threading.Thread(target=_feed, args=(base_url, Fleet(chargers), stopped), daemon=True)
    feeder.start()
    try:
        yield
    finally:
        stopped.set()
        feeder.join(timeout=10)


def _feed(base_url: str, fleet: Fleet, stopped: threading.Event) -> None:
    with httpx.Client(base_url=base_url, timeout=30) as client:
        _await_ready(client, stopped)
        # The minute that is over: a reading's timestamp must not lie ahead.
        last = int(time.time()) // 60 - 1
        for minute in track(range(last - HISTORY_MINUTES, last + 1), "Sending two hours of history", console=_console):
            _send(client, fleet, minute, stopped)
        _introduce(base_url, fleet)
        while not stopped.wait(1):
            for minute in range(last + 1, int(time.time()) // 60):
                _send(client, fleet, minute, stopped)
                last = minute


def _await_ready(client: httpx.Client, stopped: threading.Event) -> None:
    while not stopped.wait(0.1):
        try:
            if client.get("/health/ready").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            continue  # it is starting


def _send(client: httpx.Client, fleet: Fleet, minute: int, stopped: threading.Event) -> None:
    """Sends a minute's readings until they are acknowledged."""
    readings = fleet.readings(minute)
    for start in range(0, len(readings), BATCH_READINGS):
        body = msgspec.json.encode(readings[start : start + BATCH_READINGS])
        while not stopped.is_set():
            try:
                answer = client.post("/v1/telemetry", content=body)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    answer.raise_for_status()
                    break
            except httpx.TransportError:
                pass  # it is stopping
            stopped.wait(1)


def _introduce(base_url: str, fleet: Fleet) -> None:
    vehicle = fleet.chargers[0].vehicle_id
    _console.print(
        f"""
[bold]Wattline serves {len(fleet.chargers)} chargers at {base_url}.[/bold] Try:

  curl '{base_url}/v1/analytics/performance/{vehicle}?hours=2'
  curl '{base_url}/v1/analytics/vehicles/states?limit=3'
  curl '{base_url}/health/ready'

Ctrl-C stops it; the next start goes on with the same data.
""",
        soft_wrap=True,
        highlight=False,
    )
