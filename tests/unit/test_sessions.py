"""Sessions: where they begin and end, what divides them, and how near they come to the truth of simulated days."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise
from random import Random
from typing import NamedTuple

import pytest

from app.analytics.efficiency.counter import Counter
from app.analytics.efficiency.pairs import Evidence, pair_counters, total
from app.analytics.efficiency.rhythm import HOUR_US, MINUTE_US
from app.analytics.efficiency.verdict import Status, efficiency_ratio, verdict
from app.analytics.sessions.session import Part, parts_of, rule_of
from app.settings import Settings
from app.simulator.charging import Stay
from app.simulator.clock import SECOND_US, Outage
from tests.fixtures.charges import (
    METER,
    Reading,
    Sharing,
    Simulated,
    Station,
    charge,
    counter,
    dc_milliwh,
    readings,
    rows_of,
)
from tests.fixtures.simulated_days import GROUPS, NAMES, START, stations_of

RULE = rule_of(Settings())
EVER = [-(10**17), 10**17]
MILLIWATT = 7_200_000
TRUTH = 0.9


class Charges:
    """A vehicle's charges in minutes after START, with an efficiency of 0.9; the meter reports always."""

    def __init__(self, *minutes: tuple[int, int], seed: int = 1) -> None:
        self.random = Random(seed)
        self.stays = [charge(START + a * MINUTE_US, START + b * MINUTE_US, MILLIWATT) for a, b in minutes]

    def dc(self, instant: int) -> float:
        return sum(dc_milliwh(stay, instant) for stay in self.stays)

    def vehicle(
        self, every_s: float = 60, silences: Sequence[Outage] = (), *, always: bool = True, until: int = 3000
    ) -> list[Reading]:
        times = [(stay.start_us, stay.end_us) for stay in self.stays]
        if always:
            times = [(START - 2 * HOUR_US, min(self.stays[-1].end_us + 2 * HOUR_US, START + until * MINUTE_US))]
        return readings(self.random, every_s, times, self.dc, silences, at_end=not always)

    def meter(self, every_s: float = 60) -> Counter:
        times = [(START - 2 * HOUR_US, self.stays[-1].end_us + 2 * HOUR_US)]
        return counter(rows_of(readings(self.random, every_s, times, lambda at: self.dc(at) / TRUTH)))

    def sessions(self, sent: Sequence[Reading], meter_id: int | None = METER) -> list[Part]:
        return parts_of(pair_counters(counter(rows_of(sent, meter_id)), {METER: self.meter()}), RULE, EVER)


def minutes(sessions: Sequence[Part]) -> list[tuple[float, float]]:
    return [((one.start_us - START) / MINUTE_US, (one.end_us - START) / MINUTE_US) for one in sessions]


@pytest.mark.parametrize("every_s", [30, 60, 300])
def test_a_session_has_the_energy_and_the_time_of_the_charge(every_s: float) -> None:
    charges = Charges((0, 90))
    (session,) = charges.sessions(charges.vehicle(every_s))
    ((start, end),) = minutes([session])
    assert start == pytest.approx(0, abs=every_s / 60 + 0.1)
    assert end == pytest.approx(90, abs=every_s / 60 + 0.1)
    assert session.evidence.dc_milliwh == pytest.approx(charges.dc(2 * START), rel=0.001)
    assert efficiency_ratio(session.evidence) == pytest.approx(TRUTH, abs=0.002)
    assert session.peak_milliwatt == pytest.approx(MILLIWATT, rel=0.05)
    assert session.silences == 0
    assert session.meter_id == METER


@pytest.mark.parametrize("always", [True, False])
@pytest.mark.parametrize("every_s", [30, 60, 300])
def test_two_sessions_an_hour_apart_are_two(every_s: float, always: bool) -> None:
    charges = Charges((0, 60), (120, 200))
    first, second = charges.sessions(charges.vehicle(every_s, always=always))
    assert first.evidence.dc_milliwh == pytest.approx(charges.dc(START + 90 * MINUTE_US), rel=0.01)
    assert first.evidence.dc_milliwh + second.evidence.dc_milliwh == pytest.approx(charges.dc(2 * START), rel=0.001)


@pytest.mark.parametrize("always", [True, False])
def test_a_pause_of_ten_minutes_is_bridged(always: bool) -> None:
    charges = Charges((0, 60), (70, 120))
    (session,) = charges.sessions(charges.vehicle(always=always))
    assert session.evidence.dc_milliwh == pytest.approx(charges.dc(2 * START), rel=0.001)


def test_a_session_that_goes_on_is_over_at_a_later_instant() -> None:
    charges = Charges((0, 120))
    overs = [charges.sessions(charges.vehicle(until=until))[0].over_us for until in range(10, 121, 10)]
    assert overs == sorted({*overs})


@pytest.mark.parametrize("seed", range(5))
def test_a_vehicle_that_reports_each_20_minutes_has_a_session_that_ends_once(seed: int) -> None:
    charges = Charges((0, 300), seed=seed)
    sent = charges.vehicle(20 * 60)
    ended = 0
    for count in range(12, len(sent) + 1):
        known = charges.sessions(sent[:count])
        # Until the next reading comes, the session is not over.
        following = sent[count][0] if count < len(sent) else 2 * START
        assert len(known) <= 1
        ended += bool(known and known[0].over_us <= following and not ended)
        if known and following < charges.stays[0].end_us:
            assert known[0].over_us > following
    assert ended == 1


def test_a_silence_in_a_charge_that_carries_its_energy_on_divides_nothing() -> None:
    charges = Charges((0, 180))
    silence = Outage(START + 60 * MINUTE_US, START + 120 * MINUTE_US, is_carried=True)
    (session,) = charges.sessions(charges.vehicle(silences=[silence]))
    assert session.silences > 0
    assert session.evidence.dc_milliwh == pytest.approx(charges.dc(2 * START), rel=0.001)


def test_late_readings_lengthen_a_session_and_join_two() -> None:
    charges = Charges((0, 180))
    sent = charges.vehicle()
    late = [one for one in sent if START + 60 * MINUTE_US < one[0] < START + 120 * MINUTE_US]
    early = [one for one in sent if one not in late]
    before, after = charges.sessions(early)
    (whole,) = charges.sessions(sent)
    assert (before.start_us, after.end_us) == (whole.start_us, whole.end_us)
    assert before.end_us < after.start_us


def test_late_readings_divide_a_session() -> None:
    charges = Charges((0, 60), (100, 160))
    silence = Outage(START + 50 * MINUTE_US, START + 110 * MINUTE_US, is_carried=True)
    with_silence = charges.vehicle(silences=[silence])
    assert len(charges.sessions(with_silence)) in (1, 2)
    assert len(charges.sessions(charges.vehicle())) == 2


def test_a_last_reading_without_a_meter_belongs_to_the_session() -> None:
    charges = Charges((0, 60))
    sent = charges.vehicle()
    named = [one for one in sent if one[0] < charges.stays[0].end_us]
    vehicle = counter(rows_of(named, METER), rows_of([one for one in sent if one not in named]))
    (session,) = parts_of(pair_counters(vehicle, {METER: charges.meter()}), RULE, EVER)
    assert session.meter_id == METER
    assert session.evidence.dc_milliwh == pytest.approx(charges.dc(2 * START), rel=0.001)


def test_a_vehicle_at_no_meter_has_sessions_without_ac() -> None:
    charges = Charges((0, 60))
    (session,) = charges.sessions(charges.vehicle(), meter_id=None)
    assert session.meter_id is None
    assert session.evidence.paired_ac_milliwh == 0
    assert session.evidence.dc_milliwh == pytest.approx(charges.dc(2 * START), rel=0.001)


@pytest.mark.parametrize(("sharing", "slow"), [(group[0], group[1]) for group in GROUPS], ids=NAMES)
def test_sums_over_sessions_are_those_of_the_whole(sharing: tuple[Sharing, ...], slow: bool) -> None:
    for station in stations_of(sharing, slow=slow, days=1, stations=4):
        for vehicle, sessions, whole in judged(station):
            if vehicle.silences:
                continue
            sums = total(one.evidence for one in sessions)
            assert sums.dc_milliwh == pytest.approx(whole.dc_milliwh, rel=0.003)
            assert sums.paired_ac_milliwh == pytest.approx(whole.paired_ac_milliwh, rel=0.003)
            assert sums.paired_dc_milliwh == pytest.approx(whole.paired_dc_milliwh, rel=0.003)


def judged(station: Station) -> list[tuple[Simulated, list[Part], Evidence]]:
    """Returns each vehicle of a station with its sessions, and the evidence of all its time."""
    meters = {METER: counter(station.meter_rows)}
    counters = [counter(*one.rows, mappings=one.mappings) for one in station.vehicles]
    found = []
    for vehicle, own in zip(station.vehicles, counters, strict=True):
        pairs = pair_counters(own, meters, [other for other in enumerate(counters) if other[1] is not own])
        whole = total(pair.between(0, 2 * START) for pair in pairs.values())
        whole = whole._replace(dc_milliwh=own.sums[-1])
        found.append((vehicle, parts_of(pairs, RULE, EVER), whole))
    return found


def true_sessions(vehicle: Simulated) -> list[tuple[int, int]]:
    """Returns the times in which the vehicle charges with the least power of a session; short pauses are bridged."""
    found: list[tuple[int, int]] = []
    for stay in vehicle.charges:
        if found and stay.start_us - found[-1][1] <= RULE.pause_us:
            found[-1] = found[-1][0], charged_until(stay)
        else:
            found.append((stay.start_us, charged_until(stay)))
    return found


def charged_until(stay: Stay) -> int:
    """Returns when the power falls below the least one, to the second."""
    low, high = stay.start_us, stay.end_us
    while high - low > SECOND_US:
        middle = (low + high) // 2
        power = (dc_milliwh(stay, middle) - dc_milliwh(stay, middle - SECOND_US)) * HOUR_US // SECOND_US
        low, high = (middle, high) if power >= RULE.least_milliwatt else (low, middle)
    return high


def is_told(vehicle: Simulated, start: int, end: int) -> bool:
    """Returns True when the vehicle reports from before the session to after it, and tells how long its pauses are."""
    every = vehicle.every_s * SECOND_US
    sent = [at for at, *_ in vehicle.sent]
    first, last = bisect_left(sent, start), bisect_left(sent, end) + 1
    if first == 0 or last >= len(sent):
        return False
    if max(sent[at] - sent[at - 1] for at in range(first, last + 1)) > 3 * every // 2 + 10 * SECOND_US:
        return False
    instants = sorted((one.start_us, charged_until(one)) for one in vehicle.charges)
    pauses = [
        (previous_end, begun)
        for (_, previous_end), (begun, _) in pairwise(instants)
        if previous_end <= end + HOUR_US and begun >= start - HOUR_US
    ]
    return not any(abs(begun - ended - RULE.pause_us) <= 2 * every for ended, begun in pauses)


@pytest.mark.parametrize("days", [1, pytest.param(15, marks=pytest.mark.soak)])
def test_sessions_of_simulated_days_are_the_true_ones(days: int) -> None:
    found = []
    for sharing, slow, _ in GROUPS:
        for station in stations_of(sharing, slow=slow, days=days, stations=8 // len(sharing)):
            for vehicle, sessions, _ in judged(station):
                found += [*compared(vehicle, sessions)]
    assert len(found) > 100 * days
    wrong = [one for one in found if not one.is_right]
    assert len(wrong) <= 0.002 * len(found), wrong
    near = [one.is_near for one in found if one.is_near is not None]
    assert sum(near) >= 0.95 * len(near)


class Compared(NamedTuple):
    """A true session: whether it is found, and whether its efficiency is right, if it is judged."""

    start_us: int
    end_us: int
    found: list[Part]
    is_right: bool
    is_near: bool | None = None


def compared(vehicle: Simulated, sessions: Sequence[Part]) -> Iterator[Compared]:
    """Compares each true session with the one that is found.

    Of each minute, only the last reading is known, and clocks are some seconds off.
    """
    every = vehicle.every_s * SECOND_US
    span = max(3 * every // 2, every + MINUTE_US) + 5 * SECOND_US
    for start, end in true_sessions(vehicle):
        milliwh = vehicle.dc_milliwh(end) - vehicle.dc_milliwh(start)
        if end - start < 5 * MINUTE_US or milliwh < 500_000 or not is_told(vehicle, start, end):
            continue
        found = [one for one in sessions if one.start_us < end and one.end_us > start]
        is_right = len(found) == 1 and (
            abs(found[0].start_us - start) <= span
            and abs(found[0].end_us - end) <= span
            and abs(found[0].evidence.dc_milliwh - milliwh) <= 0.03 * milliwh
        )
        if not is_right:
            yield Compared(start, end, found, is_right=False)
            continue
        status, _ = verdict(found[0].evidence, has_meter=True, low_efficiency=0.85)
        ratio = efficiency_ratio(found[0].evidence)
        is_judged = status is not Status.INSUFFICIENT_DATA and ratio is not None
        is_near = abs((ratio or 0) - vehicle.efficiency) <= 0.02 if is_judged else None
        yield Compared(start, end, found, is_right=True, is_near=is_near)
