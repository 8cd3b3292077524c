"""The error of an efficiency after a short charge: the figures of docs/efficiency.md, simulated again."""

import re
from pathlib import Path

import pytest

from app.analytics.efficiency.pairs import pair_counters
from app.analytics.efficiency.rhythm import HOUR_US, MINUTE_US
from app.analytics.efficiency.verdict import Status, efficiency_ratio, verdict
from tests.fixtures.charges import METER, counter, readings, rows_of
from tests.unit.test_counter import START, Session

EFFICIENCY = (Path(__file__).parents[2] / "docs" / "efficiency.md").read_text()
SESSIONS = 200
MINUTES = {"ten minutes": 10, "half an hour": 30, "an hour": 60}
INTERVALS = {"30 to 120 s": (30, 120), "2 to 5 min": (120, 300), "5 to 15 min": (300, 900)}


def ratio(seed: int, minutes: int, every_s: tuple[float, float]) -> float | None:
    """Returns the ratio if it is judged. The vehicle does not report when it stops to charge."""
    session = Session(minutes, seed)
    stay, random = session.charge, session.random
    meter = counter(rows_of(session.meter(random.uniform(30, 120))))
    times = [(stay.start_us, stay.end_us)]
    sent = readings(random, random.uniform(*every_s), times, session.dc)
    pairs = pair_counters(counter(rows_of(sent, METER)), {METER: meter})
    if METER not in pairs:
        return None
    evidence = pairs[METER].between(START - HOUR_US, START + (minutes + 60) * MINUTE_US)
    status, _ = verdict(evidence, has_meter=True, low_efficiency=0.85)
    return None if status is Status.INSUFFICIENT_DATA else efficiency_ratio(evidence)


@pytest.mark.parametrize("charging", MINUTES)
@pytest.mark.parametrize("each", INTERVALS)
def test_the_measured_range_is_the_documented_one(charging: str, each: str) -> None:
    row = re.search(rf"^\| {charging} \| {each} \| (\S+) % \| (\S+) to (\S+) \|$", EFFICIENCY, re.MULTILINE)
    assert row
    found = [ratio(seed, MINUTES[charging], INTERVALS[each]) for seed in range(SESSIONS)]
    judged = [one for one in found if one is not None]
    share = round(100 * len(judged) / SESSIONS)
    assert (f"{share}", f"{min(judged):.2f}", f"{max(judged):.2f}") == row.groups()
