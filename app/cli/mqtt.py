"""The command that takes readings from the broker alone."""

import os

import click
import uvloop

from app.broker import create_client, shown_address
from app.cli.common import open_database
from app.main import consume
from app.ops.logging import configure_logging
from app.settings import Settings


@click.command()
def mqtt() -> None:
    """Take readings from the broker of WATTLINE_MQTT_URL until Ctrl-C.

    A message is acknowledged once its readings are committed. Wattline's own database is migrated first; the one of
    DATABASE_URL must be migrated already.
    """
    settings = Settings.from_environ(os.environ)
    create_client(settings, settings.mqtt_client_id, persistent=True)  # reports a fault in the settings first
    configure_logging(settings.log_level)
    with open_database(settings, migrated=True) as url:
        click.echo(
            f"Wattline takes readings from {shown_address(settings)} as {settings.mqtt_client_id}; Ctrl-C stops it."
        )
        uvloop.run(consume(url, settings))
