"""The command `wattline`: parse, call one function."""

import sys

import click

from app import __version__
from app.cli.database import doctor, migrate, refresh
from app.cli.fleet import device, seed
from app.cli.import_ import import_
from app.cli.load import load
from app.cli.mqtt import mqtt
from app.cli.quarantine import quarantine
from app.cli.serve import demo, serve
from app.errors import SetupError


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


for command in (serve, mqtt, demo, load, migrate, refresh, import_, doctor, quarantine, seed, device):
    cli.add_command(command)
