"""A seeded fleet of vehicles that charge, each at a meter of its own, and what their devices send."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

MINUTE_US = 60_000_000


class Charger:
    """A meter and the vehicle that charges at it, with clocks of their own."""

    def __init__(self, number: int, seed: int) -> None:
        chance = random.Random(f"{seed}/{number}")
        self.meter_id = f"meter-{number:04d}"
        self.vehicle_id = f"vehicle-{number:04d}"
        self.power_kw = chance.choice([3.7, 7.4, 11.0, 22.0])
        # A charger loses 10 to 15 %; one in twenty is failing.
        self.efficiency = chance.uniform(0.70, 0.82) if chance.random() < 0.05 else chance.uniform(0.86, 0.92)
        self.meter_clock_us = chance.randrange(MINUTE_US)
        self.vehicle_clock_us = chance.randrange(MINUTE_US)
        self.soc_at_start = chance.uniform(10, 40)

    def readings(self, minute: int) -> Iterator[dict[str, Any]]:
        """What both devices send in a minute, counted from 1970 UTC: the energy of the 60 s before each reading."""
        kwh = self.power_kw / 60
        # One charge of 5 hours after the other.
        soc = min(100.0, self.soc_at_start + minute % 300 * 0.2)
        yield {
            "meterId": self.meter_id,
            "timestamp": _timestamp(minute * MINUTE_US + self.meter_clock_us),
            "kwhConsumedAc": round(kwh, 6),
            "voltage": round(230 + 2 * self.efficiency, 2),
        }
        yield {
            "vehicleId": self.vehicle_id,
            "meterId": self.meter_id,
            "timestamp": _timestamp(minute * MINUTE_US + self.vehicle_clock_us),
            "kwhDeliveredDc": round(kwh * self.efficiency, 6),
            "soc": round(soc, 2),
            "batteryTemp": round(20 + soc / 10, 2),
        }


class Fleet:
    """So many chargers, in use all the time. The same seed and minute give the same readings."""

    def __init__(self, chargers: int, *, seed: int = 1) -> None:
        self.chargers = [Charger(number, seed) for number in range(1, chargers + 1)]

    def readings(self, minute: int) -> list[dict[str, Any]]:
        """All readings of a minute, counted from 1970 UTC, as the API takes them."""
        return [reading for charger in self.chargers for reading in charger.readings(minute)]


def _timestamp(us: int) -> str:
    return datetime.fromtimestamp(us / 1_000_000, UTC).isoformat()
