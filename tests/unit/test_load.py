"""Load tests: their readings and times, their counts, and the summary of their latencies."""

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.load.latency import Latencies
from app.load.run import Run, Tally
from app.load.service import Outcome
from app.load.source import SECOND_US, Batch, device_of, realistic, sustained, whole_fleet
from app.simulator.charging import DAY_US
from app.simulator.devices import Reading
from app.simulator.fleet import Fleet

START = datetime(2026, 2, 10, 12, tzinfo=UTC)
START_US = int(START.timestamp()) * SECOND_US


def timestamp(reading: Reading) -> datetime:
    return datetime.fromisoformat(reading["timestamp"])


def keys(batches: list[Batch]) -> list[tuple[str, str]]:
    return [(device_of(reading), reading["timestamp"]) for batch in batches for reading in batch.readings]


def reading(number: int) -> Reading:
    return {"meterId": f"M{number}", "timestamp": START.isoformat(), "kwhConsumedAc": 0.1}


@given(st.lists(st.floats(1e-5, 1e4), min_size=1, max_size=300), st.floats(1, 100))
def test_a_percentile_is_within_half_a_percent_of_the_exact_one(seconds: list[float], percent: float) -> None:
    latencies = Latencies()
    for one in seconds:
        latencies.add(one)
    exact = next(one for n, one in enumerate(sorted(seconds), 1) if n >= percent / 100 * len(seconds) - 1e-9)
    assert latencies.percentile_s(percent) == pytest.approx(exact, rel=0.0051)
    assert latencies.greatest_s == max(seconds)


def test_without_latencies_there_is_no_percentile() -> None:
    assert Latencies().percentile_s(50) is None


@given(st.integers(1, 40), st.integers(1, 100))
def test_the_whole_fleet_is_each_device_once(chargers: int, batch_readings: int) -> None:
    batches = list(whole_fleet("run", chargers, START_US, batch_readings))
    devices = Counter(device for device, _ in keys(batches))
    assert devices == {f"{kind}s/run-{kind}-{n + 1:05d}": 1 for n in range(chargers) for kind in ("meter", "vehicle")}
    assert [len(batch.readings) for batch in batches[:-1]] == [batch_readings] * (len(batches) - 1)
    assert {batch.due_s for batch in batches} == {None}


@given(st.integers(1, 5), st.integers(1, 5_000), st.integers(1, 700))
def test_a_sustained_rate_is_as_many_distinct_readings_each_due_when_it_is_measured(
    chargers: int, rate: int, batch_readings: int
) -> None:
    batches = list(sustained("run", chargers, START_US, batch_readings, rate=rate, minutes=0.01))
    assert len(set(keys(batches))) == sum(len(batch.readings) for batch in batches) == round(rate * 0.6)
    due = [batch.due_s for batch in batches if batch.due_s is not None]
    assert len(due) == len(batches)
    assert all(before < after for before, after in pairwise(due))
    for batch in batches:
        last = timestamp(batch.readings[-1]) - START
        assert last / timedelta(seconds=1) == pytest.approx((batch.due_s or 0) - 1 / rate, abs=2e-6)


def test_realistic_is_what_the_simulated_fleet_delivers_when_it_does() -> None:
    chargers, minutes = 30, 3
    batches = list(realistic("run", Fleet(chargers), START_US, 1_000, minutes=minutes))
    delivered = Fleet(chargers).deliveries(START_US, START_US + minutes * 60 * SECOND_US)
    sent = [reading for batch in batches for reading in batch.readings]
    assert len(sent) > chargers
    assert [(one["timestamp"], device_of(one).replace("run-", "")) for one in sent] == [
        (one["timestamp"], device_of(one)) for one in delivered
    ]
    assert all("/run-" in device_of(one) for one in sent)
    assert all(one["meterId"].startswith("run-meter-") for one in sent if "meterId" in one)
    for batch in batches:
        assert batch.due_s is not None
        assert all(timestamp(one) <= START + timedelta(seconds=batch.due_s) for one in batch.readings)


def test_realistic_sends_some_readings_again() -> None:
    batches = list(realistic("run", Fleet(20), START_US, 100, minutes=DAY_US / 24 / 60 / SECOND_US))
    sent = keys(batches)
    assert len(sent) * 0.98 < len(set(sent)) < len(sent)


def test_what_was_sent_is_acknowledged_rejected_or_unanswered() -> None:
    tally = Tally()
    tally.sent = 9
    tally.answered([reading(n) for n in range(4)], Outcome({2: "too_old"}, 3, 0, START), 0.1)
    tally.answered([reading(n) for n in range(3)], Outcome({}, 1, 2, START - timedelta(seconds=1)), 0.1)
    assert (tally.acknowledged, tally.inserted, tally.duplicates, tally.unanswered) == (6, 4, 2, 2)
    assert tally.rejected == {"too_old": 1}
    assert tally.of_device == {"meters/M0": 1, "meters/M1": 1, "meters/M3": 1, "meters/M2": 1}
    assert tally.committed_at == START


async def test_a_stalled_service_shows_in_the_latency_of_all_that_was_due_meanwhile() -> None:
    stalled_until_s = time.monotonic() + 0.5

    async def send(readings: list[Reading]) -> Outcome:
        await asyncio.sleep(stalled_until_s - time.monotonic())
        return Outcome({}, len(readings), 0, START)

    tally = Tally()
    await Run(send, tally, connections=2).send_all(Batch(n / 100, [reading(n)]) for n in range(100))
    assert tally.acknowledged == 100
    # Half of a second's readings were due during the stall, though only two could wait in it at a time.
    late, early = (tally.latencies.percentile_s(percent) or 0 for percent in (75, 25))
    assert late > 0.2
    assert early < late / 2


async def test_stopped_it_waits_for_what_is_under_way_and_sends_no_more() -> None:
    async def send(readings: list[Reading]) -> Outcome:
        await asyncio.sleep(0.2)
        return Outcome({}, len(readings), 0, START)

    tally = Tally()
    run = Run(send, tally, connections=3)
    asyncio.get_running_loop().call_later(0.1, run.stop)
    await run.send_all(Batch(None, [reading(n)]) for n in range(1_000))
    assert (tally.sent, tally.acknowledged) == (3, 3)


async def test_stopped_twice_it_waits_no_longer_and_says_what_is_unanswered() -> None:
    tally = Tally()

    async def send(_: list[Reading]) -> Outcome:
        await asyncio.sleep(60)
        raise AssertionError

    run, began_s = Run(send, tally, connections=3), time.monotonic()
    for seconds in (0.1, 0.2):
        asyncio.get_running_loop().call_later(seconds, run.stop)
    await run.send_all(Batch(None, [reading(n)]) for n in range(1_000))
    assert (tally.sent, tally.unanswered) == (3, 3)
    assert time.monotonic() - began_s < 9  # of the ten seconds that it would wait
