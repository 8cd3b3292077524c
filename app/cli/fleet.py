"""Commands for the registry of devices."""

from datetime import UTC, datetime

import click

from app.cli.common import counted, on_database, table
from app.errors import SetupError
from app.fleet.devices import fetch_devices
from app.fleet.devices import rename as rename_device
from app.fleet.devices import retire as retire_device
from app.fleet.devices import seed as seed_fleet
from app.telemetry.reading import Stream

STREAM = click.Choice([stream.value for stream in Stream])
OF_STREAM = click.option("--stream", required=True, type=STREAM, help="Whether the device is a meter or a vehicle.")
MOST = click.IntRange(0, 1_000_000)


@click.command()
@click.argument("vehicles", type=MOST)
@click.argument("meters", type=MOST)
def seed(vehicles: int, meters: int) -> None:
    """Register vehicle-0001 and so on, meter-0001 and so on, and map each vehicle to the meter with its number.

    Devices and mappings that exist stay as they are.
    """
    seeded = on_database(lambda connection, _: seed_fleet(connection, vehicles, meters), start=True)
    vehicles_meters = f"{counted(seeded.vehicles, 'vehicle')}, {counted(seeded.meters, 'meter')}"
    click.echo(f"Added: {vehicles_meters}, {counted(seeded.mappings, 'mapping')}.")


@click.group()
def device() -> None:
    """List, retire or rename devices. The database must be running."""


@device.command("list")
@click.option("--stream", type=STREAM, help="List only meters, or only vehicles.")
@click.option("--retired", is_flag=True, help="List only retired devices.")
@click.option(
    "--silent", metavar="MINUTES", type=click.IntRange(1, 10_000_000), help="List only silent devices in service."
)
def list_(stream: str | None, silent: int | None, *, retired: bool) -> None:
    """List devices with their newest readings, by stream and id."""
    if retired and silent is not None:
        raise SetupError("--retired and --silent cannot be combined, because a retired device may be silent.")
    devices = on_database(
        lambda connection, _: fetch_devices(connection, stream=stream, retired=retired, silent_minutes=silent)
    )
    rows = [
        [
            one.stream,
            one.external_id,
            _utc(one.registered_at),
            _utc(one.latest_ts),
            "-" if one.latest_milliwh is None else f"{one.latest_milliwh / 1_000_000:g}",
            _utc(one.retired_at),
        ]
        for one in devices
    ]
    if rows:
        click.echo("\n".join(table(("stream", "device", "registered", "last reading", "kWh", "retired"), rows)))
    click.echo(f"{counted(len(rows), 'device')}.")


@device.command()
@click.argument("name", metavar="DEVICE")
@OF_STREAM
@click.option("--undo", is_flag=True, help="Put the device back into service.")
def retire(name: str, stream: str, *, undo: bool) -> None:
    """Take a device out of service: its history stays, but it is not expected to report.

    The latest states leave it out. A reading that the device takes later is stored like any other, and puts the device
    back into service.
    """
    on_database(lambda connection, _: retire_device(connection, Stream(stream), name, undo=undo))
    click.echo(f"The {stream} {name} is {'in service' if undo else 'retired'}.")


@device.command()
@click.argument("old")
@click.argument("new")
@OF_STREAM
def rename(old: str, new: str, stream: str) -> None:
    """Give a device another id; its history stays.

    Readings that come under the old id still belong to the device. Answers show only the new id.
    """
    on_database(lambda connection, _: rename_device(connection, Stream(stream), old, new))
    click.echo(f"The {stream} {old} is called {new} now; readings under {old} still belong to it.")


def _utc(at: datetime | None) -> str:
    return "-" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
