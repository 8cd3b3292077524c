"""The charging of a vehicle: its stays at the charger, the drives between them, and the energy during a stay."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from math import exp, log
from random import Random
from typing import NamedTuple

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US

_ROSTER_DAYS = 28
# So many rosters after 1970, at the end of 2019, all registers stood at 0.
_ROSTERS_BEFORE = 652

_TAPER_SOC = 80.0
# Charging ends when the taper is down to this share of the full power.
_LAST_SHARE = 0.05
_TAPER_LENGTHS = -log(_LAST_SHARE)


class Battery(NamedTuple):
    """A battery, and the highest DC power that its charger supplies."""

    capacity_kwh: float
    power_kw: float


class Stay:
    """A stay at the charger: constant power to 80 %, then an exponential taper, then 0 kW until the vehicle leaves."""

    __slots__ = ("_constant_h", "_constant_kwh", "_full_h", "_taper_h", "battery", "end_us", "soc_at_start", "start_us")

    def __init__(self, battery: Battery, start_us: int, end_us: int, soc_at_start: float) -> None:
        self.battery = battery
        self.start_us = start_us
        self.end_us = end_us
        self.soc_at_start = soc_at_start
        self._constant_kwh = battery.capacity_kwh * (_TAPER_SOC - soc_at_start) / 100
        self._constant_h = self._constant_kwh / battery.power_kw
        taper_kwh = battery.capacity_kwh * (100 - _TAPER_SOC) / 100
        self._taper_h = taper_kwh / battery.power_kw / (1 - _LAST_SHARE)
        self._full_h = self._constant_h + _TAPER_LENGTHS * self._taper_h

    def dc_kwh(self, at_us: int) -> float:
        """Returns the energy delivered from the start of the stay to an instant, which may lie outside the stay."""
        hours = (min(at_us, self.end_us) - self.start_us) / HOUR_US
        if hours <= 0:
            return 0.0
        if hours <= self._constant_h:
            return self.battery.power_kw * hours
        tapering_h = min(hours, self._full_h) - self._constant_h
        return self._constant_kwh + self.battery.power_kw * self._taper_h * (1 - exp(-tapering_h / self._taper_h))

    def soc(self, at_us: int) -> float:
        """Returns the state of charge in percent; before the stay it is that of its start, after it that of its end."""
        return min(100.0, self.soc_at_start + 100 * self.dc_kwh(at_us) / self.battery.capacity_kwh)

    @property
    def charged_us(self) -> int:
        """The instant at which the charge ends: when the battery is full or the vehicle leaves."""
        return min(self.end_us, self.start_us + int(self._full_h * HOUR_US))

    def is_charging(self, at_us: int) -> bool:
        """Returns True when power flows."""
        return self.start_us <= at_us < self.charged_us


class Plan:
    """A depot vehicle's roster of four weeks. Each day has two or three stays for 70 to 85 % of the day, and drives.

    The roster is the same again and again, so that what a register shows follows from the day, without all days before.
    """

    def __init__(self, seed: str, battery: Battery) -> None:
        self._seed = seed
        self._battery = battery
        # The days of vehicles begin at any time of day, so that some vehicles charge at any hour.
        self._day_starts_us = Random(seed).randrange(DAY_US)
        self._day = lru_cache(maxsize=8)(self._stays_of_day)
        self._roster = lru_cache(maxsize=2)(self._registered_in_roster)

    def stays(self, from_us: int, to_us: int) -> list[Stay]:
        """Returns the stays in order: at least all that touch the range, one before it and one after it."""
        first, last = ((at_us - self._day_starts_us) // DAY_US for at_us in (from_us, to_us))
        return [stay for day in range(first - 1, last + 2) for stay in self._day(day)]

    def along(self, times_us: Sequence[int]) -> Iterator[list[Stay]]:
        """Yields, for each interval between two times, the stay before, all stays that it touches, and the next."""
        stays = self.stays(times_us[0], times_us[-1])
        first = 1
        for previous_us, at_us in pairwise(times_us):
            while stays[first].end_us <= previous_us:
                first += 1
            after = first
            while stays[after].start_us < at_us:
                after += 1
            yield stays[first - 1 : after + 1]

    def register(self, at_us: int, per_kwh: float) -> int:
        """Returns what a register shows that counts whole units, so many for a kWh of each stay."""
        day = (at_us - self._day_starts_us) // DAY_US
        rosters, days = divmod(day, _ROSTER_DAYS)
        of_days = self._roster(per_kwh)
        today = sum(int(stay.dc_kwh(at_us) * per_kwh) for stay in self._day(day))
        return (rosters - _ROSTERS_BEFORE) * sum(of_days) + sum(of_days[:days]) + today

    def has_charged(self, from_us: int, to_us: int) -> bool:
        """Returns True when power flowed at any time in [from_us, to_us]."""
        return any(stay.start_us <= to_us and stay.charged_us >= from_us for stay in self.stays(from_us, to_us))

    def drives(self, from_us: int, to_us: int) -> bool:
        """Returns True when the vehicle was away from its charger at any time in [from_us, to_us]."""
        return not any(stay.start_us <= from_us and to_us < stay.end_us for stay in self.stays(from_us, to_us))

    def _registered_in_roster(self, per_kwh: float) -> list[int]:
        return [
            sum(int(stay.dc_kwh(stay.end_us) * per_kwh) for stay in self._stays_of_day(day))
            for day in range(_ROSTER_DAYS)
        ]

    def _stays_of_day(self, day: int) -> list[Stay]:
        random = Random(f"{self._seed}/{day % _ROSTER_DAYS}")
        count = random.choice([2, 3])
        plugged_us = DAY_US * random.uniform(0.70, 0.85)
        lengths_us = _shares(random, count, plugged_us)
        # A drive goes past the end of the day, so there is one drive more than there are stays.
        drives_us = _shares(random, count + 1, DAY_US - plugged_us)
        stays = []
        at_us = self._day_starts_us + day * DAY_US
        for drive_us, length_us in zip(drives_us, lengths_us, strict=False):
            start_us = at_us + drive_us
            at_us = start_us + length_us
            stays.append(Stay(self._battery, start_us, at_us, random.uniform(15, 50)))
        return stays


def _shares(random: Random, count: int, total: float) -> list[int]:
    """Divides a total into shares of about the same size, none less than 6/10 of another."""
    weights = [random.uniform(0.75, 1.25) for _ in range(count)]
    return [int(total * weight / sum(weights)) for weight in weights]
