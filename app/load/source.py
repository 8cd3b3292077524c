"""The batches of a load test and their due times. Their devices belong to this run alone."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice, pairwise
from typing import NamedTuple

from app.simulator.devices import Reading
from app.simulator.fleet import Fleet

SECOND_US = 1_000_000
# Computing the arrivals of 10,000 devices takes 0.9 s for a minute, and 0.6 s for a second.
_AHEAD_US = 60 * SECOND_US
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Batch(NamedTuple):
    """Readings that are due this many seconds after the start; None means as soon as a connection is free."""

    due_s: float | None
    readings: list[Reading]


def whole_fleet(run: str, chargers: int, start_us: int, batch_readings: int) -> Iterator[Batch]:
    """Yields one reading of each meter and vehicle, as fast as they are taken."""
    readings = (_reading(run, chargers, number, start_us + number) for number in range(2 * chargers))
    for batch in _batches(readings, batch_readings):
        yield Batch(None, batch)


def sustained(
    run: str, chargers: int, start_us: int, batch_readings: int, *, rate: int, minutes: float
) -> Iterator[Batch]:
    """Yields `rate` readings a second, of the devices in turn. A batch is due when its last reading is."""
    readings = (
        _reading(run, chargers, number, start_us + number * SECOND_US // rate)
        for number in range(round(rate * minutes * 60))
    )
    sent = 0
    for batch in _batches(readings, batch_readings):
        sent += len(batch)
        yield Batch(sent / rate, batch)


def realistic(run: str, fleet: Fleet, start_us: int, batch_readings: int, *, minutes: float) -> Iterator[Batch]:
    """Yields the simulated fleet's readings in real time, late and repeated ones too, each second's at its end."""
    end_us = start_us + round(minutes * 60 * SECOND_US)
    for arrivals in _arrivals_ahead(fleet, start_us, end_us):
        for second, of_second in groupby(arrivals, key=lambda arrival: (arrival[0] - start_us) // SECOND_US):
            for batch in _batches((_of_run(run, reading) for _, reading in of_second), batch_readings):
                yield Batch(second + 1, batch)


def _arrivals_ahead(fleet: Fleet, start_us: int, end_us: int) -> Iterator[list[tuple[int, Reading]]]:
    """Yields arrivals minute by minute. A thread computes each while the one before is sent: answers need not wait."""
    bounds = [*range(start_us, end_us, _AHEAD_US), end_us]
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(fleet.arrivals, *bounds[:2])
        for minute in pairwise(bounds[1:]):
            arrivals, ahead = ahead.result(), thread.submit(fleet.arrivals, *minute)
            yield arrivals
        yield ahead.result()


def device_of(reading: Reading) -> str:
    """Returns the device as it stands in the paths of the API: `meters/M1`."""
    vehicle_id = reading.get("vehicleId")
    return f"vehicles/{vehicle_id}" if vehicle_id else f"meters/{reading['meterId']}"


def _batches(readings: Iterable[Reading], batch_readings: int) -> Iterator[list[Reading]]:
    remaining = iter(readings)
    while batch := list(islice(remaining, batch_readings)):
        yield batch


def _reading(run: str, chargers: int, number: int, at_us: int) -> Reading:
    """Returns a reading of a meter or a vehicle, in turn: about a minute's energy at 11 kW, slightly varied.

    Each fourth meter and vehicle sends its register.
    """
    turn, device = divmod(number, 2 * chargers)
    charger, is_vehicle = divmod(device, 2)
    sends_register = charger % 4 == 3
    meter_id = f"{run}-meter-{charger + 1:05d}"
    timestamp = (_EPOCH + timedelta(microseconds=at_us)).isoformat()
    kwh = 0.18 + number % 97 / 10_000
    if not is_vehicle:
        energy = {"kwhRegisterAc": 20_000 + 0.2 * turn} if sends_register else {"kwhConsumedAc": kwh}
        return {"meterId": meter_id, "timestamp": timestamp, **energy, "voltage": 228 + number % 41 / 10}
    return {
        "vehicleId": f"{run}-vehicle-{charger + 1:05d}",
        "meterId": meter_id,
        "timestamp": timestamp,
        **({"kwhRegisterDc": 5_000 + 0.18 * turn} if sends_register else {"kwhDeliveredDc": round(kwh * 0.9, 6)}),
        "soc": 20 + number % 601 / 10,
        "batteryTemp": 24 + number % 83 / 10,
    }


def _of_run(run: str, reading: Reading) -> Reading:
    """Returns a copy of the simulator's reading under ids of this run: repeated readings are the same object."""
    return reading | {name: f"{run}-{reading[name]}" for name in ("meterId", "vehicleId") if name in reading}
