"""Days of charging with a known truth, at any cadence and with silences of all kinds: how near the answers come."""

from collections.abc import Iterator

import pytest

from app.analytics.efficiency.pairs import evidence_between, pair_counters, total
from app.analytics.efficiency.verdict import efficiency_ratio, uncertainty, verdict
from tests.fixtures.charges import METER, Sharing, Station, counter
from tests.fixtures.simulated_days import (
    DAY_US,
    GROUPS,
    NAMES,
    START,
    Answer,
    Demand,
    answer_of,
    check,
    check_few,
    has_enough,
    measure,
    stations_of,
)


def answers(stations: list[Station]) -> Iterator[Answer | None]:
    """Yields the answer on each vehicle with enough energy."""
    for station in stations:
        meters = {METER: counter(station.meter_rows)}
        counters = [counter(*one.rows, mappings=one.mappings) for one in station.vehicles]
        for vehicle, own in zip(station.vehicles, counters, strict=True):
            if not has_enough(vehicle):
                continue
            pairs = pair_counters(
                own, meters, ((number, other) for number, other in enumerate(counters) if other is not own)
            )
            by_meter = evidence_between(pairs, START, START + DAY_US)
            evidence = total(by_meter.values())
            status, _ = verdict(evidence, has_meter=METER in by_meter, low_efficiency=0.85)
            yield answer_of(vehicle, efficiency_ratio(evidence), uncertainty(evidence), status)


@pytest.mark.parametrize(("sharing", "slow", "demand"), GROUPS, ids=NAMES)
def test_some_days_are_near_the_truth(sharing: tuple[Sharing, ...], slow: bool, demand: Demand) -> None:
    check_few(measure(answers(stations_of(sharing, slow=slow, days=1, stations=8 // len(sharing)))), demand)


@pytest.mark.soak
@pytest.mark.parametrize(("sharing", "slow", "demand"), GROUPS, ids=NAMES)
def test_49_days_are_near_the_truth(sharing: tuple[Sharing, ...], slow: bool, demand: Demand) -> None:
    stations = stations_of(sharing, slow=slow, days=49, stations=11 if len(sharing) == 1 else 3)
    check(measure(answers(stations)), demand)
