"""Commands that serve."""

import ipaddress
import os
import socket
import threading
import time
from contextlib import suppress

import click
import httpx

from app.broker import create_client
from app.cli.common import open_database
from app.errors import SetupError
from app.ops.refresh import refresh_aggregates
from app.ops.server import run_server
from app.settings import Settings
from app.simulator.feed import feeding

HOST = click.option("--host", default="127.0.0.1", show_default=True, help="IP address to listen on.")
PORT = click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")


@click.command()
@HOST
@PORT
@click.option("--mqtt", is_flag=True, help="Also take readings from the broker of WATTLINE_MQTT_URL.")
def serve(host: str, port: int, mqtt: bool) -> None:
    """Serve the API until Ctrl-C.

    Wattline's own database is migrated first; the one of DATABASE_URL must be migrated already.
    """
    settings = Settings.from_environ(os.environ)
    _refuse_address(host, port, settings)
    if mqtt:
        create_client(settings, settings.mqtt_client_id, persistent=True)  # reports a fault in the settings first
    with open_database(settings, migrated=True) as url:
        threading.Thread(target=_announce_when_ready, args=[_url(host, port)], daemon=True).start()
        run_server(url, host, port, settings, mqtt=mqtt)


def _announce_when_ready(url: str) -> None:
    while True:
        with suppress(httpx.TransportError):
            httpx.get(f"{url}/health/live", trust_env=False)
            click.echo(f"Wattline serves at {url}; Ctrl-C stops it.")
            return
        time.sleep(0.1)


@click.command()
@HOST
@PORT
@click.option("--chargers", default=200, show_default=True, type=click.IntRange(1, 5000), help="Size of the fleet.")
def demo(host: str, port: int, chargers: int) -> None:
    """Serve the API with a simulated fleet, until Ctrl-C.

    The fleet begins with a day of history, and continues at the next start as if it had never stopped.
    """
    settings = Settings.from_environ(os.environ)
    _refuse_address(host, port, settings)
    with open_database(settings, migrated=True) as url:
        os.environ.setdefault("WATTLINE_LOG_LEVEL", "warning")  # a line for each request would hide the feeder's output

        def refresh() -> None:
            with suppress(SetupError):  # the policies refresh them within a minute
                refresh_aggregates(url, None, None)

        with feeding(_url(host, port), chargers, refresh):
            run_server(url, host, port, settings)


def _refuse_address(host: str, port: int, settings: Settings) -> None:
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise SetupError(f"--host is {host!r}; it must be an IP address, such as 127.0.0.1.") from None
    if not loopback and settings.auth != "off":
        raise SetupError(
            f"Without access tokens, anyone who reaches {host} could read and write. "
            "Set WATTLINE_AUTH=off if that is intended, or listen on 127.0.0.1."
        )
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise SetupError(f"Wattline cannot listen on {host} port {port}: {error.strerror}; see --port.") from None


def _url(host: str, port: int) -> str:
    """Returns the URL under which this machine reaches the service."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
