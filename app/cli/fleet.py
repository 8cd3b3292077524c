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
OF_STREAM = click.option("--stream", required=True, type=STREAM, help="Whether it is a meter or a vehicle.")
MOST = click.IntRange(0, 1_000_000)


@click.command()
@click.argument("vehicles", type=MOST)
@click.argument("meters", type=MOST)
def seed(vehicles: int, meters: int) -> None:
    """Register vehicle-0001 and so on, meter-0001 and so on, and map each vehicle to the meter of its number.

    What is there already stays as it is.
    """
    seeded = on_database(lambda connection, _: seed_fleet(connection, vehicles, meters), start=True)
    vehicles_meters = f"{counted(seeded.vehicles, 'vehicle')}, {counted(seeded.meters, 'meter')}"
    click.echo(f"Added: {vehicles_meters}, {counted(seeded.mappings, 'mapping')}.")


@click.group()
def device() -> None:
    """The registry of devices. The database must be running."""


@device.command("list")
@click.option("--stream", type=STREAM, help="Only meters, or only vehicles.")
@click.option("--retired", is_flag=True, help="Only those that are retired.")
@click.option(
    "--silent", metavar="MINUTES", type=click.IntRange(1, 10_000_000), help="Only those in service that are silent."
)
def list_(stream: str | None, silent: int | None, *, retired: bool) -> None:
    """List devices with their newest readings, by stream and id."""
    if retired and silent is not None:
        raise SetupError("--retired and --silent exclude each other: a retired device may be silent.")
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
@click.option("--undo", is_flag=True, help="Put it back into service.")
def retire(name: str, stream: str, *, undo: bool) -> None:
    """Take a device out of service: its history stays, it is not expected to report and not listed as a state.

    A reading that it takes later is stored like any other, and puts it back into service.
    """
    on_database(lambda connection, _: retire_device(connection, Stream(stream), name, undo=undo))
    click.echo(f"The {stream} {name} is {'in service' if undo else 'retired'}.")


@device.command()
@click.argument("old")
@click.argument("new")
@OF_STREAM
def rename(old: str, new: str, stream: str) -> None:
    """Give a device another id; its history stays.

    Readings that still come under the old id go on to be its own. Answers know it by the new one only.
    """
    on_database(lambda connection, _: rename_device(connection, Stream(stream), old, new))
    click.echo(f"The {stream} {old} is called {new} now; readings under {old} are still its own.")


def _utc(at: datetime | None) -> str:
    return "-" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
