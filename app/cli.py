"""The command `wattline`: parse, call one function."""

import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

import click

from app import __version__
from app.embedded import running
from app.errors import SetupError
from app.migrate import current_revision, newest_revision
from app.migrate import migrate as migrate_database
from app.ops.doctor.report import examine
from app.ops.refresh import refresh_aggregates
from app.ops.server import run_server
from app.settings import Settings
from app.simulator.feed import feeding


def main() -> None:
    """Runs the command; what keeps it from running is one line on standard error, and exit status 1."""
    try:
        cli()
    except SetupError as error:
        # PostgreSQL's own messages have several lines.
        click.echo(f"wattline: {' '.join(str(error).split())}", err=True)
        sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="wattline")
def cli() -> None:
    """Telemetry for electric-vehicle charging: every reading stored once, efficiency with its evidence.

    Without DATABASE_URL, Wattline runs its own PostgreSQL under .wattline/.
    """


HOST = click.option("--host", default="127.0.0.1", show_default=True, help="IP address to listen on.")
# With a zone, as everywhere; a date is a day of UTC.
INSTANT = click.DateTime(formats=["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d"])
PORT = click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")


@cli.command()
@HOST
@PORT
def serve(host: str, port: int) -> None:
    """Serve the API until Ctrl-C.

    Wattline's own database is migrated first; the one of DATABASE_URL must be migrated already.
    """
    settings = Settings.from_environ(os.environ)
    _refuse_address(host, port, settings)
    with _database(settings, migrated=True) as url:
        click.echo(f"Wattline serves at {_url(host, port)}; Ctrl-C stops it.")
        run_server(url, host, port)


@cli.command()
@HOST
@PORT
@click.option("--chargers", default=200, show_default=True, type=click.IntRange(1, 5000), help="Size of the fleet.")
def demo(host: str, port: int, chargers: int) -> None:
    """Serve the API with a simulated fleet, until Ctrl-C.

    The fleet has a day of history at once, and goes on at the next start as if it had never stopped.
    """
    settings = Settings.from_environ(os.environ)
    _refuse_address(host, port, settings)
    with _database(settings, migrated=True) as url:
        os.environ.setdefault("WATTLINE_LOG_LEVEL", "warning")  # a line for each request would hide what it says

        def refresh() -> None:
            with suppress(SetupError):  # the policies do it within a minute
                refresh_aggregates(url, None, None)

        with feeding(_url(host, port), chargers, refresh):
            run_server(url, host, port)


@cli.command()
def migrate() -> None:
    """Bring the database to this version; apply the policies."""
    settings = Settings.from_environ(os.environ)
    with _database(settings, migrated=False) as url:
        for change in migrate_database(url, engine=settings.engine):
            click.echo(change)
    click.echo("The database is migrated.")


@cli.command()
@click.option("--from", "start", type=INSTANT, help="From the oldest readings if not given.")
@click.option("--to", "end", type=INSTANT, help="Until now if not given.")
def refresh(start: datetime | None, end: datetime | None) -> None:
    """Bring the aggregates up to date now. The database must be running.

    Without this, the refresh policies do it each minute.
    """
    settings = Settings.from_environ(os.environ)
    with _database(settings, migrated=False, start=False) as url:
        refresh_aggregates(url, start, end, progress=click.echo)
    click.echo("The aggregates are refreshed.")


@cli.command()
def doctor() -> None:
    """Say what is in force, how the database does, and what is wrong.

    Changes nothing. Exit status 1 when something is wrong.
    """
    settings = Settings.from_environ(os.environ)
    report, healthy = examine(_database(settings, migrated=False, start=False), settings, os.environ)
    click.echo(report)
    if not healthy:
        sys.exit(1)


def _refuse_address(host: str, port: int, settings: Settings) -> None:
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise SetupError(f"--host is {host!r}; it must be an IP address, such as 127.0.0.1.") from None
    if not loopback and settings.auth != "off":
        raise SetupError(
            f"Without access tokens, anyone who reaches {host} could read and write. "
            "Set WATTLINE_AUTH=off if that is meant, or listen on 127.0.0.1."
        )
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise SetupError(f"{host} port {port} cannot be listened on: {error.strerror}. Another one: --port.") from None


def _url(host: str, port: int) -> str:
    """Where this machine reaches the service."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


@contextmanager
def _database(settings: Settings, *, migrated: bool, start: bool = True) -> Iterator[str]:
    """The URL of the database: the operator's, or Wattline's own while this runs."""
    if settings.database_url is not None:
        if migrated:
            _refuse_other_revision(settings.database_url)
        yield settings.database_url
        return
    with running(settings.data_dir, pg_bin=settings.pg_bin, start=start) as url:
        if migrated:
            click.echo(f"The database lies under {settings.data_dir.resolve()}.")
            migrate_database(url, engine=settings.engine)
        yield url


def _refuse_other_revision(url: str) -> None:
    current, needed = current_revision(url), newest_revision()
    if current != needed:
        raise SetupError(f"The database is at revision {current}, this version needs {needed}: run `wattline migrate`.")


if __name__ == "__main__":
    main()
