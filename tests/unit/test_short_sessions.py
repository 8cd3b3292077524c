"""The error of an efficiency after a short charge: the figures of docs/efficiency.md, simulated again."""

import re
from pathlib import Path
from random import Random

import pytest

from app.analytics.efficiency.pairing import pair
from app.analytics.efficiency.verdict import efficiency_ratio
from tests.fixtures.minutes import MeterMinute, VehicleMinute, sides_of

EFFICIENCY = (Path(__file__).parents[2] / "docs" / "efficiency.md").read_text()
SESSIONS = 1_000
TRUTH = 0.9
AC_KW = 11.0
MINUTES = {"ten minutes": 10, "an hour": 60, "six hours": 360}


def energies(random: Random, start_s: float, end_s: float, power_kw: float) -> list[tuple[int, int]]:
    """Returns minute and energy of each reading in a charge at constant power, by a device with its own clock."""
    interval_s = random.uniform(30, 120)
    at_s = start_s - random.uniform(0, interval_s)
    previous_s = at_s - interval_s
    found = []
    while previous_s < end_s:
        flowed_s = min(at_s, end_s) - max(previous_s, start_s)
        if flowed_s > 0:
            found.append((int(at_s // 60), round(power_kw * flowed_s / 3600 * 1_000_000)))
        previous_s = at_s
        at_s += interval_s * random.uniform(0.95, 1.05)
    return found


def measured(seed: int, minutes: int) -> float:
    random = Random(seed)
    start_s = 3_000_000 + random.uniform(0, 60)
    session = start_s, start_s + 60 * minutes
    meter = [MeterMinute(1, minute, energy) for minute, energy in energies(random, *session, AC_KW)]
    vehicle = [VehicleMinute(1, minute, 1, energy) for minute, energy in energies(random, *session, AC_KW * TRUTH)]
    ratio = efficiency_ratio(pair(1, sides_of(vehicle, meter), gap_minutes=5).total())
    assert ratio is not None
    return ratio


@pytest.mark.parametrize("charging", MINUTES)
def test_the_measured_range_is_the_documented_one(charging: str) -> None:
    row = re.search(rf"^\| {charging} \| (\S+) to (\S+) \|$", EFFICIENCY, re.MULTILINE)
    assert row
    ratios = [measured(seed, MINUTES[charging]) for seed in range(SESSIONS)]
    assert (f"{min(ratios):.2f}", f"{max(ratios):.2f}") == row.groups()
