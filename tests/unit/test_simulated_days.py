"""Days of charging with a known truth, at any cadence and with silences of all kinds: how near the answers come."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pytest

from app.analytics.efficiency.pairs import evidence_between, pair_counters, total
from app.analytics.efficiency.rhythm import HOUR_US
from app.analytics.efficiency.verdict import Status, efficiency_ratio, uncertainty, verdict
from tests.fixtures.charges import METER, Sharing, Station, counter

START = 20_467 * 24 * HOUR_US
DAY_US = 24 * HOUR_US
ENOUGH_AC_MILLIWH = 1_000_000


class Answer(NamedTuple):
    """A verdict on a vehicle's day: how far the ratio is off, its uncertainty, and whether the verdict is false."""

    off: float
    uncertainty: float
    is_false: bool


def answers(sharing: Sharing, *, slow: bool, day: int, stations: int) -> Iterator[Answer | None]:
    """Yields the answer on each vehicle with 1 kWh AC in a day of some stations; None without a verdict."""
    for number in range(stations):
        station = Station(f"{day}/{number}/{slow}", START, sharing, slow=slow)
        meters = {METER: counter(station.meter_rows)}
        counters = [counter(*one.rows, mappings=one.mappings) for one in station.vehicles]
        for vehicle, own in zip(station.vehicles, counters, strict=True):
            if vehicle.ac_between(START, START + DAY_US) < ENOUGH_AC_MILLIWH:
                continue
            pairs = pair_counters(own, meters, [other for other in counters if other is not own])
            by_meter = evidence_between(pairs, START, START + DAY_US)
            evidence = total(by_meter.values())
            status, _ = verdict(evidence, has_meter=METER in by_meter, low_efficiency=0.85)
            if status in (Status.NO_METER, Status.INSUFFICIENT_DATA):
                yield None
                continue
            ratio, unsure = efficiency_ratio(evidence), uncertainty(evidence)
            assert ratio is not None
            assert unsure is not None
            is_false = (
                status is Status.IMPOSSIBLE
                or (status is Status.LOW_EFFICIENCY and vehicle.efficiency >= 0.86)
                or (status is Status.OK and vehicle.efficiency <= 0.84)
            )
            yield Answer(abs(ratio - vehicle.efficiency), unsure, is_false)


class Measured(NamedTuple):
    """Shares of some vehicle-days: with a verdict, and of these near the truth; the worst, and the false ones."""

    days: int
    verdicts: int
    within_1: float
    within_2: float
    worst: float
    false: int
    in_uncertainty: float


def measure(found: Iterable[Answer | None]) -> Measured:
    every = [*found]
    judged = [answer for answer in every if answer is not None]

    def share(chosen: Iterable[bool]) -> float:
        return sum(chosen) / len(judged)

    return Measured(
        len(every),
        len(judged),
        share(answer.off <= 0.01 for answer in judged),
        share(answer.off <= 0.02 for answer in judged),
        max(answer.off for answer in judged),
        sum(answer.is_false for answer in judged),
        share(answer.off <= answer.uncertainty + 0.002 for answer in judged),
    )


class Demand(NamedTuple):
    """The least shares and the largest error that are good enough."""

    verdicts: float
    within_1: float
    within_2: float
    worst: float
    false: float
    in_uncertainty: float


ALONE: tuple[Sharing, ...] = ("alone",)
SHARED: tuple[Sharing, ...] = ("in turns", "at once")
GROUPS: list[tuple[tuple[Sharing, ...], bool, Demand]] = [
    (ALONE, False, Demand(0.95, 0.98, 0.98, 0.03, 0, 0.98)),
    (ALONE, True, Demand(0.80, 0, 0.90, 0.08, 0.01, 0.83)),
    (SHARED, False, Demand(0.60, 0, 0.92, 1, 0, 0.98)),
    (SHARED, True, Demand(0.35, 0, 0.92, 1, 0.01, 0.83)),
]
NAMES = ["alone-fast", "alone-slow", "shared-fast", "shared-slow"]


def measured(sharing: tuple[Sharing, ...], *, slow: bool, days: int, stations: int) -> Measured:
    of_days = ((way, day) for way in sharing for day in range(days))
    return measure(answer for way, day in of_days for answer in answers(way, slow=slow, day=day, stations=stations))


@pytest.mark.parametrize(("sharing", "slow", "demand"), GROUPS, ids=NAMES)
def test_some_days_are_near_the_truth(sharing: tuple[Sharing, ...], slow: bool, demand: Demand) -> None:
    found = measured(sharing, slow=slow, days=1, stations=8 // len(sharing))
    assert found.verdicts >= (demand.verdicts - 0.15) * found.days, found
    assert found.within_2 >= demand.within_2 - 0.1, found
    assert found.worst <= max(demand.worst, 0.1), found
    assert found.false <= 1, found


@pytest.mark.soak
@pytest.mark.parametrize(("sharing", "slow", "demand"), GROUPS, ids=NAMES)
def test_49_days_are_near_the_truth(sharing: tuple[Sharing, ...], slow: bool, demand: Demand) -> None:
    found = measured(sharing, slow=slow, days=49, stations=11 if len(sharing) == 1 else 3)
    assert found.verdicts >= demand.verdicts * found.days, found
    assert found.within_1 >= demand.within_1, found
    assert found.within_2 >= demand.within_2, found
    assert found.worst <= demand.worst, found
    assert found.false <= demand.false * found.verdicts, found
    assert found.in_uncertainty >= demand.in_uncertainty, found
