"""Commands for the registry of devices."""

from datetime import UTC, datetime
from math import isnan
from pathlib import Path

import click
import msgspec

from app.cli.common import counted, on_database, table
from app.errors import SetupError
from app.fleet.devices import Expectation, fetch_devices
from app.fleet.devices import expect as expect_device
from app.fleet.devices import limit as limit_device
from app.fleet.devices import rename as rename_device
from app.fleet.devices import retire as retire_device
from app.fleet.devices import seed as seed_fleet
from app.fleet.sites import Label, read_labels
from app.fleet.sites import label as label_devices
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
    """List, retire, rename or label devices, or say what to expect of them. The database must be running."""


@device.command("list")
@click.option("--stream", type=STREAM, help="List only meters, or only vehicles.")
@click.option("--site", help="List only devices of this site.")
@click.option("--retired", is_flag=True, help="List only retired devices.")
@click.option(
    "--silent", metavar="MINUTES", type=click.IntRange(1, 10_000_000), help="List only silent devices in service."
)
@click.option("--json", "as_json", is_flag=True, help="Print the devices as JSON.")
def list_(stream: str | None, site: str | None, silent: int | None, *, retired: bool, as_json: bool) -> None:
    """List devices with their newest readings, by stream and id."""
    if retired and silent is not None:
        raise SetupError("--retired and --silent cannot be combined, because a retired device may be silent.")
    devices = on_database(
        lambda connection, _: fetch_devices(
            connection, stream=stream, site=site, retired=retired, silent_minutes=silent
        )
    )
    if as_json:
        click.echo(msgspec.json.encode(devices))
        return
    rows = [
        [
            one.stream,
            one.id,
            _utc(one.registered_at),
            _utc(one.latest_at),
            _number(one.latest_kwh),
            _number(one.latest_register_kwh),
            _utc(one.retired_at),
            one.expectation or "-",
            _number(one.max_power_kw),
            one.site or "-",
        ]
        for one in devices
    ]
    if rows:
        click.echo("\n".join(table(_HEADINGS, rows)))
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


@device.command()
@click.argument("name", metavar="DEVICE")
@click.argument("expectation", required=False, type=click.Choice([each.value for each in Expectation]))
@OF_STREAM
@click.option("--undo", is_flag=True, help="Leave it to the device's own rhythm again.")
def expect(name: str, expectation: str | None, stream: str, *, undo: bool) -> None:
    """Say when a silence of the device is an alert `no_data`, whatever its own rhythm is.

    always: after each silence; charging: when it fell silent while it charged; never: not at all.
    """
    if undo == (expectation is not None):
        raise SetupError("Give either an expectation (always, charging or never) or --undo.")
    expected = Expectation(expectation) if expectation else None
    on_database(lambda connection, _: expect_device(connection, Stream(stream), name, expected))
    click.echo(f"The {stream} {name} is expected to report {_EXPECTED[expected]}.")


@device.command()
@click.argument("name", metavar="DEVICE")
@click.argument("kw", required=False, type=click.FloatRange(0.001, 1_000_000))
@OF_STREAM
@click.option("--undo", is_flag=True, help="Apply WATTLINE_MAX_POWER_KW again.")
def limit(name: str, kw: float | None, stream: str, *, undo: bool) -> None:
    """Set the power in kW beyond which energy of the device is implausible; its stored hours are judged again."""
    if undo == (kw is not None) or (kw is not None and isnan(kw)):
        raise SetupError("Give either a limit in kW or --undo.")
    on_database(lambda connection, _: limit_device(connection, Stream(stream), name, kw))
    click.echo(f"The limit of the {stream} {name} is {f'{kw:g} kW' if kw else 'WATTLINE_MAX_POWER_KW'} now.")


@device.command()
@click.argument("name", metavar="DEVICE")
@click.argument("site", required=False)
@OF_STREAM
@click.option("--undo", is_flag=True, help="Remove the device's label.")
def label(name: str, site: str | None, stream: str, *, undo: bool) -> None:
    """Label the device with its SITE, by which lists, rankings and alerts can be asked for."""
    if undo == (site is not None):
        raise SetupError("Give either a site or --undo.")
    on_database(lambda connection, _: label_devices(connection, [Label(Stream(stream), name, site)]))
    click.echo(f"The {stream} {name} is {f'at {site}' if site else 'at no site'} now.")


@device.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def labels(file: Path) -> None:
    """Label the devices of a CSV FILE with the columns stream, device and site: all of them, or none.

    Where the site is empty, the label is removed.
    """
    try:
        given = [*read_labels(file.read_text("utf-8-sig"))]
    except UnicodeDecodeError:
        raise SetupError(f"{file} is not UTF-8.") from None
    on_database(lambda connection, _: label_devices(connection, given))
    click.echo(f"{counted(len(given), 'device')} labelled.")


_HEADINGS = (
    *("stream", "device", "registered", "last reading", "kWh", "register", "retired", "expected", "max. kW"),
    "site",
)
_EXPECTED = {
    None: "by its own rhythm",
    Expectation.ALWAYS: "always",
    Expectation.CHARGING: "while it charges",
    Expectation.NEVER: "never",
}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _utc(at: datetime | None) -> str:
    return "-" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
