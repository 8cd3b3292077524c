"""`wattline demo`: the service with a simulated fleet that keeps sending."""

import os
import threading
import time

import httpx
import msgspec
from rich.console import Console
from rich.progress import track

from app.ops.server import run_server
from app.simulator.fleet import Fleet

HISTORY_MINUTES = 120
BATCH_READINGS = 1_000

_console = Console()


def run_demo(url: str, host: str, port: int, chargers: int) -> None:
    """Serves and feeds until SIGTERM or SIGINT. Two hours of history come first; what is there already stays."""
    os.environ.setdefault("WATTLINE_LOG_LEVEL", "warning")  # its requests would hide what it says
    stopped = threading.Event()
    feeder = threading.Thread(target=_feed, args=(f"http://{host}:{port}", Fleet(chargers), stopped), daemon=True)
    feeder.start()
    try:
        run_server(url, host, port)
    finally:
        stopped.set()
        feeder.join(timeout=10)


def _feed(base_url: str, fleet: Fleet, stopped: threading.Event) -> None:
    with httpx.Client(base_url=base_url, timeout=30) as client:
        _await_ready(client, stopped)
        sent = int(time.time()) // 60 - 1
        history = range(sent - HISTORY_MINUTES, sent + 1)
        for minute in track(history, description="Sending two hours of history", console=_console):
            _send(client, fleet, minute, stopped)
        _introduce(base_url, fleet)
        while not stopped.is_set():
            minute = int(time.time()) // 60 - 1
            for next_minute in range(sent + 1, minute + 1):
                _send(client, fleet, next_minute, stopped)
            sent = max(sent, minute)
            stopped.wait(1)


def _await_ready(client: httpx.Client, stopped: threading.Event) -> None:
    while not stopped.wait(0.1):
        try:
            if client.get("/health/ready").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            continue  # the server is starting


def _send(client: httpx.Client, fleet: Fleet, minute: int, stopped: threading.Event) -> None:
    """Sends a minute's readings, again and again until they are acknowledged."""
    readings = fleet.readings(minute)
    for start in range(0, len(readings), BATCH_READINGS):
        body = msgspec.json.encode(readings[start : start + BATCH_READINGS])
        while not stopped.is_set():
            try:
                answer = client.post("/v1/telemetry", content=body, headers={"Content-Type": "application/json"})
                if answer.status_code == httpx.codes.OK:
                    break
            except httpx.TransportError:
                pass  # the server is stopping
            stopped.wait(1)


def _introduce(base_url: str, fleet: Fleet) -> None:
    vehicle = fleet.chargers[0].vehicle_id
    _console.print(
        f"""
[bold]Wattline serves {len(fleet.chargers)} chargers at {base_url}.[/bold] Try:

  curl {base_url}/v1/analytics/performance/{vehicle}?hours=2
  curl {base_url}/v1/analytics/vehicles/states?limit=3
  curl {base_url}/health/ready

Ctrl-C stops it; the readings stay under .wattline/.
""",
        soft_wrap=True,
    )
