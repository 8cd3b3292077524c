"""Load tests of a running service."""

import asyncio
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, NamedTuple

import click
import msgspec

from app.load.measure import measure
from app.load.service import CONNECTIONS
from app.load.source import Batch, realistic, sustained, whole_fleet
from app.settings import MQTT_URL, Settings, is_mqtt_url
from app.simulator.fleet import Fleet


def _devices(default: int) -> Callable[[Any], Any]:
    return click.option(
        "--devices",
        "chargers",
        default=default,
        show_default=True,
        type=click.IntRange(1, 50_000),
        help="The number of meters, and of vehicles.",
    )


class _Minutes(click.FloatRange):
    """A range that excludes nan, which click accepts."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        minutes = super().convert(value, param, ctx)
        return self.fail("nan is not a number of minutes.", param, ctx) if math.isnan(minutes) else minutes


def _minutes(default: float) -> Callable[[Any], Any]:
    minutes = _Minutes(0, 24 * 60, min_open=True)
    return click.option("--minutes", default=default, show_default=True, type=minutes, help="How long to send.")


BATCH = click.option(
    "--batch",
    "batch_readings",
    default=1_000,
    show_default=True,
    type=click.IntRange(1, 50_000),
    help="The largest number of readings in a batch.",
)
RATE = click.option(
    "--rate",
    default=10_000,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="Readings per second; if the service cannot keep up, the latency grows.",
)


class Target(NamedTuple):
    """The target of the readings: the service, or the broker of these settings in front of it."""

    url: str
    broker: Settings | None


def _target(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that name the target."""

    @click.option(
        "--url",
        default="http://127.0.0.1:8000",
        show_default=True,
        help="The service that stores and counts the readings.",
    )
    @click.option("--via", default="http", show_default=True, type=click.Choice(["http", "mqtt"]))
    @click.option("--broker", metavar="URL", help="The broker for --via mqtt, instead of WATTLINE_MQTT_URL.")
    @wraps(command)
    def with_target(url: str, via: str, broker: str | None, **options: Any) -> None:
        settings = Settings.from_environ(os.environ)
        if broker and not is_mqtt_url(broker):
            raise click.BadParameter(f"it must be {MQTT_URL}.", param_hint="--broker")
        through = msgspec.structs.replace(settings, mqtt_url=broker or settings.mqtt_url)
        command(Target(url, through if via == "mqtt" else None), **options)

    return with_target


@click.group()
def load() -> None:
    """Test a running service under load.

    Each run sends readings of its own devices, then asks the service how many it has of each device. The exit status is
    1 if a reading is lost, rejected or not answered.
    """


@load.command()
@_target
@_devices(10)
def single(target: Target, chargers: int) -> None:
    """Send one reading of each device, one after the other."""
    _measure(target, lambda run, start_us: whole_fleet(run, chargers, start_us, 1), connections=1)


@load.command()
@_target
@_devices(5_000)
@BATCH
def full(target: Target, chargers: int, batch_readings: int) -> None:
    """Send one reading of each device, as fast as possible."""
    _measure(target, lambda run, start_us: whole_fleet(run, chargers, start_us, batch_readings))


@load.command(name="load")
@_target
@_devices(5_000)
@_minutes(3)
@RATE
@BATCH
def at_rate(target: Target, chargers: int, minutes: float, rate: int, batch_readings: int) -> None:
    """Send readings at a constant rate, for some minutes."""

    def batches(run: str, start_us: int) -> Iterator[Batch]:
        return sustained(run, chargers, start_us, batch_readings, rate=rate, minutes=minutes)

    _measure(target, batches)


@load.command(name="realistic")
@_target
@_devices(5_000)
@_minutes(5)
@BATCH
def as_simulated(target: Target, chargers: int, minutes: float, batch_readings: int) -> None:
    """Send the readings of a simulated fleet in real time. Some are late or repeated."""
    fleet = Fleet(chargers)

    def batches(run: str, start_us: int) -> Iterator[Batch]:
        return realistic(run, fleet, start_us, batch_readings, minutes=minutes)

    _measure(target, batches, mappings=fleet.mappings())


def _measure(
    target: Target,
    batches: Callable[[str, int], Iterator[Batch]],
    *,
    mappings: Sequence[tuple[str, str]] = (),
    connections: int = CONNECTIONS,
) -> None:
    faults = asyncio.run(measure(*target, batches, mappings=mappings, connections=connections))
    if faults is not None:
        click.echo(f"wattline: {faults}", err=True)
        sys.exit(1)
