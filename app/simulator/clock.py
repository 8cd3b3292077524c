"""A device's clock and network: the instants of its readings and of their arrivals. The network fails at times.

Everything is a function of seed, device and time, so that any range can be computed without those before it.
"""

from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import NamedTuple, TypeAlias

from app.simulator.charging import DAY_US

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US

Kinds: TypeAlias = tuple[tuple[float, int, int], ...]
"""Kinds of outages: the chance of one on a day, its shortest and its longest duration in minutes."""

SILENCES: Kinds = ((0.05, 10, 90), (0.003, 960, 1320))
OFTEN_SILENT: Kinds = ((0.7, 20, 240),)
# Readings that a network holds back arrive at the end.
NETWORK_OUTAGES: Kinds = ((0.07, 15, 120),)

OFTEN_S = 34, 108
SELDOM_S = 360, 810
"""The shortest and the longest interval of devices that report each 30 to 120 s, and each 6 to 15 minutes."""

_LATENCY_US = 2 * SECOND_US
_REPEATED_ONE_IN = 200
_REPEATED_WITHIN_S = 300


class Outage(NamedTuple):
    """An outage from start_us until before end_us.

    A silent device sends nothing. Its energy is lost, or carried on: then its next reading holds it.
    """

    start_us: int
    end_us: int
    is_carried: bool


class Outages:
    """The outages of a device or a network; on most UTC days none begins, and on none more than one."""

    def __init__(self, seed: str, kinds: Kinds) -> None:
        self._seed = seed
        self._kinds = kinds
        self._day = lru_cache(maxsize=8)(self._of_day)

    def touching(self, from_us: int, to_us: int) -> list[Outage]:
        """Returns the outages that touch [from_us, to_us)."""
        days = range(from_us // DAY_US - 1, to_us // DAY_US + 1)
        found = (outage for day in days if (outage := self._day(day)) is not None)
        return [outage for outage in found if outage.start_us < to_us and outage.end_us > from_us]

    def _of_day(self, day: int) -> Outage | None:
        random = Random(f"{self._seed}/{day}")
        for chance, shortest, longest in self._kinds:
            if random.random() < chance:
                start_us = day * DAY_US + random.randrange(DAY_US)
                end_us = start_us + random.randint(shortest, longest) * MINUTE_US
                return Outage(start_us, end_us, is_carried=random.random() < 0.5)
        return None


class Moment(NamedTuple):
    """An instant at which a device measures, with 64 random bits for everything random about the reading."""

    at_us: int
    bits: int


class Clock:
    """A device's clock: it measures at an interval of its own; readings arrive later, some twice, some never.

    `reports` tells whether the device measures at an instant, of which it also gets the interval before; by default
    it always does.
    """

    def __init__(
        self,
        seed: str,
        network: Outages,
        every_s: tuple[int, int] = OFTEN_S,
        silences: Kinds = SILENCES,
        reports: Callable[[int, int], bool] | None = None,
    ) -> None:
        random = Random(seed)
        self._salt = random.getrandbits(64)
        self._interval_us = random.randint(*every_s) * SECOND_US
        self._phase_us = random.randrange(self._interval_us)
        self._silences = Outages(f"{seed}/silent", silences)
        self._network = network
        self._reports = reports

    def moments(self, from_us: int, to_us: int) -> list[Moment]:
        """Returns the one before and the instants in [from_us, to_us), if any: readings hold the energy in between."""
        # Jitter adds a tenth of the interval at most, so the one before `first` lies before `from_us`.
        first, last = ((at_us - self._phase_us) // self._interval_us for at_us in (from_us, to_us))
        moments = [moment for moment in map(self._moment, range(first - 1, last + 1)) if self._measures(moment.at_us)]
        moments = [moment for moment in moments if moment.at_us < to_us]
        if not moments or moments[-1].at_us < from_us:
            return []
        # A device that has been silent, or had nothing to report, measured before.
        before = first - 1
        while moments[0].at_us >= from_us:
            before -= 1
            if self._measures((moment := self._moment(before)).at_us):
                moments.insert(0, moment)
        start = next(index for index, moment in enumerate(moments) if moment.at_us >= from_us)
        return moments[start - 1 :]

    def _measures(self, at_us: int) -> bool:
        if self._reports is not None and not self._reports(at_us - self._interval_us, at_us):
            return False
        return not any(outage.is_carried for outage in self._silences.touching(at_us, at_us + 1))

    def arrivals(self, moments: list[Moment], from_us: int, to_us: int) -> list[tuple[int, int]]:
        """Returns the arrivals in [from_us, to_us): instant and index of the moment; repeated readings arrive twice."""
        silent = self._silences.touching(moments[0].at_us, to_us)
        away = self._network.touching(moments[0].at_us, to_us)
        found = []
        for index, (at_us, bits) in enumerate(moments[1:], 1):
            if _end_us(silent, at_us):
                continue
            sent_us = _end_us(away, at_us) or at_us
            arrival_us = sent_us + (bits >> 16 & 0xFFFF) * _LATENCY_US // 0x10000
            if from_us <= arrival_us < to_us:
                found.append((arrival_us, index))
            if (bits >> 32) % _REPEATED_ONE_IN == 0:
                again_us = arrival_us + ((bits >> 44) % _REPEATED_WITHIN_S + 1) * SECOND_US
                if from_us <= again_us < to_us:
                    found.append((again_us, index))
        return found

    def measured_from_us(self, from_us: int) -> int:
        """Returns the earliest instant of measurement of a reading that arrives at `from_us` or later."""
        earliest_us = from_us - _LATENCY_US - _REPEATED_WITHIN_S * SECOND_US
        return min([earliest_us, *(outage.start_us for outage in self._network.touching(earliest_us, from_us))])

    def _moment(self, number: int) -> Moment:
        bits = _mixed(self._salt + number)
        jitter_us = (bits & 0xFFFF) * self._interval_us // 0xA0000
        return Moment(self._phase_us + number * self._interval_us + jitter_us // 1000 * 1000, bits)


def _end_us(outages: list[Outage], at_us: int) -> int | None:
    """Returns the end of the outage that contains the instant; None when there is none."""
    for outage in outages:
        if outage.start_us <= at_us < outage.end_us:
            return outage.end_us
    return None


def _mixed(number: int) -> int:
    """Returns SplitMix64 of the number: 64 bits that look random."""
    bits = number * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return bits ^ bits >> 31
