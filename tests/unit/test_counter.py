"""Energy as a counter: the worked example, and the cases that a grid of minutes answers wrongly."""

from collections.abc import Sequence
from functools import partial
from random import Random

import pytest

from app.analytics.efficiency.pairs import Evidence, evidence_between, pair_counters, total
from app.analytics.efficiency.rhythm import HOUR_US, MINUTE_US
from app.analytics.efficiency.rows import NOT_KNOWN, Mapping, Rows
from app.analytics.efficiency.verdict import Status, verdict
from app.simulator.clock import SECOND_US, Outage
from tests.fixtures.charges import METER, Reading, charge, counter, dc_milliwh, readings, rows_of

START = 20_467 * 24 * HOUR_US
TRUTH = 0.9
AC_MILLIWATT = 8_000_000


def judged(
    meter: Sequence[Reading], vehicle: Sequence[Rows], others: Sequence[Sequence[Rows]] = ()
) -> tuple[Evidence, Status]:
    """Returns the evidence and the status over all time."""
    pairs = pair_counters(
        counter(*vehicle), {METER: counter(rows_of(meter))}, enumerate(counter(*other) for other in others)
    )
    by_meter = evidence_between(pairs, 0, 2 * START)
    evidence = total(by_meter.values())
    return evidence, verdict(evidence, has_meter=METER in by_meter, low_efficiency=0.85)[0]


def ratio(evidence: Evidence) -> float:
    return evidence.paired_dc_milliwh / evidence.paired_ac_milliwh


class Session:
    """A charge of some minutes with an efficiency of 0.9; the meter reports from an hour before to an hour after it."""

    def __init__(self, minutes: int, seed: int = 1) -> None:
        self.random = Random(seed)
        start = START + self.random.randrange(MINUTE_US)
        self.charge = charge(start, start + minutes * MINUTE_US, int(AC_MILLIWATT * TRUTH))

    def silence(self, start: int, end: int, *, is_carried: bool = True) -> list[Outage]:
        begin = self.charge.start_us
        return [Outage(begin + start * MINUTE_US, begin + end * MINUTE_US, is_carried)]

    def dc(self, instant: int) -> float:
        return dc_milliwh(self.charge, instant)

    def ac(self, instant: int) -> float:
        return self.dc(instant) / TRUTH

    def meter(self, every_s: float = 60, silences: Sequence[Outage] = ()) -> list[Reading]:
        times = [(self.charge.start_us - HOUR_US, self.charge.end_us + HOUR_US)]
        return readings(self.random, every_s, times, self.ac, silences)

    def vehicle(self, every_s: float = 60, silences: Sequence[Outage] = ()) -> list[Rows]:
        times = [(self.charge.start_us, self.charge.end_us)]
        return [rows_of(readings(self.random, every_s, times, self.dc, silences, at_end=True), METER)]


SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("minutes", "silent"), [(180, (60, 90)), (420, (60, 120)), (180, (2, 178))])
def test_a_meter_that_falls_silent_and_carries_its_energy_on(minutes: int, silent: tuple[int, int], seed: int) -> None:
    session = Session(minutes, seed)
    evidence, status = judged(session.meter(silences=session.silence(*silent)), session.vehicle())
    assert status is Status.OK
    assert ratio(evidence) == pytest.approx(TRUTH, abs=0.002)
    assert evidence.paired_us == pytest.approx(minutes * MINUTE_US, abs=MINUTE_US)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("is_carried", [True, False])
def test_a_vehicle_that_falls_silent(seed: int, is_carried: bool) -> None:
    session = Session(180, seed)
    silent = session.silence(60, 90, is_carried=is_carried)
    evidence, status = judged(session.meter(), session.vehicle(silences=silent))
    assert status is Status.OK
    assert ratio(evidence) == pytest.approx(TRUTH, abs=0.002)
    # What was lost cannot be paired, and what was carried on is.
    assert evidence.paired_us == pytest.approx((180 if is_carried else 150) * MINUTE_US, abs=3 * MINUTE_US)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("vehicle_s", "meter_s"), [(360, 60), (600, 60), (60, 600), (900, 900)])
def test_a_device_that_reports_seldom(vehicle_s: int, meter_s: int, seed: int) -> None:
    session = Session(240, seed)
    evidence, status = judged(session.meter(meter_s), session.vehicle(vehicle_s))
    assert status is Status.OK
    assert ratio(evidence) == pytest.approx(TRUTH, abs=0.002)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("every_s", [30, 60, 65])
def test_a_session_of_ten_minutes(every_s: int, seed: int) -> None:
    session = Session(10, seed)
    evidence, status = judged(session.meter(), session.vehicle(every_s))
    assert status is Status.OK
    assert ratio(evidence) == pytest.approx(TRUTH, abs=0.002)


def test_a_car_that_reports_while_it_drives() -> None:
    session = Session(180)
    drive = [(session.charge.end_us + HOUR_US, session.charge.end_us + 9 * HOUR_US)]
    driving = rows_of(readings(session.random, 60, drive, lambda _: 0))
    evidence, status = judged(session.meter(), [*session.vehicle(), driving])
    assert status is Status.OK
    assert ratio(evidence) == pytest.approx(TRUTH, abs=0.002)
    assert evidence.unpaired_us == 0


@pytest.mark.parametrize("is_carried", [True, False])
def test_a_neighbour_that_falls_silent_while_it_charges(is_carried: bool) -> None:
    session = Session(420)
    start = session.charge.start_us + 200 * MINUTE_US
    beside = charge(start, start + 120 * MINUTE_US, 20_000_000)
    silent = Outage(start + 40 * MINUTE_US, beside.end_us + 30 * MINUTE_US, is_carried)
    always = [(session.charge.start_us, session.charge.end_us)]
    neighbour = [rows_of(readings(session.random, 60, always, partial(dc_milliwh, beside), [silent]), METER)]
    times = [(session.charge.start_us - HOUR_US, session.charge.end_us + HOUR_US)]

    def ac(instant: int) -> float:
        return session.ac(instant) + dc_milliwh(beside, instant) / TRUTH

    evidence, status = judged(readings(session.random, 60, times, ac), session.vehicle(), [neighbour])
    assert evidence.shared_us == pytest.approx((150 if is_carried else 40) * MINUTE_US, abs=3 * MINUTE_US)
    if is_carried:
        assert status is Status.OK
        assert ratio(evidence) == pytest.approx(TRUTH, abs=0.003)
    else:
        # The neighbour may have taken energy until it is seen again: a ratio that is low for it is no verdict.
        assert evidence.doubtful_us == pytest.approx(110 * MINUTE_US, abs=3 * MINUTE_US)
        assert ratio(evidence) < 0.7
        assert status is Status.INSUFFICIENT_DATA


# The worked example: the first five minutes are V1's, the others V2's.
STAMPS_MS = [24_841 + 60_000 * minute + (2 if minute else 0) for minute in range(10)]
DC_MILLIWH = [422_700, 403_700, 467_000, 558_800, 598_600, 556_800, 434_700, 599_000, 437_100, 521_800]
AC_MILLIWH = [479_600, 445_700, 521_000, 609_300, 664_600, 625_800, 491_000, 663_600, 486_700, 590_400]


@pytest.mark.parametrize("is_mapped", [False, True])
def test_the_worked_example(is_mapped: bool) -> None:
    instants = [START + stamp * 1000 for stamp in STAMPS_MS]
    dc = [*zip(instants, DC_MILLIWH, strict=True)]
    named = None if is_mapped else METER
    mapping = [Mapping(0, METER, 0, 2 * START)] if is_mapped else []
    v1, v2 = (counter(rows_of(part, named), mappings=mapping) for part in (dc[:5], dc[5:]))
    meters = {METER: counter(rows_of([*zip(instants, AC_MILLIWH, strict=True)]))}
    for vehicle, other, ac, ratio_of in (
        (v1, v2, 2_720_200, 0.900963164473201),
        (v2, v1, 2_857_500, 0.892178477690289),
    ):
        by_meter = evidence_between(pair_counters(vehicle, meters, [(2, other)]), START - HOUR_US, START + HOUR_US)
        evidence = total(by_meter.values())
        assert evidence.paired_ac_milliwh == ac
        assert ratio(evidence) == pytest.approx(ratio_of, rel=1e-12)
        assert verdict(evidence, has_meter=True, low_efficiency=0.85)[0] is Status.OK


def test_a_lone_reading_of_each_at_the_same_instant_is_judged() -> None:
    evidence, status = judged([(START, 150_500_000)], [rows_of([(START, 120_400_000)], METER)])
    assert (evidence.paired_ac_milliwh, evidence.paired_dc_milliwh) == (150_500_000, 120_400_000)
    assert status is Status.LOW_EFFICIENCY


def test_a_lone_reading_of_a_day_is_not_compared_with_a_minute() -> None:
    session = Session(180)
    evidence, status = judged(session.meter(), [rows_of([(session.charge.end_us, 20_000_000)], METER)])
    assert evidence.paired_ac_milliwh == 0
    assert status is Status.INSUFFICIENT_DATA


def test_energy_beyond_the_limit_or_unknown_leaves_the_ratio_on_both_sides() -> None:
    session = Session(180)
    meter, vehicle = session.meter(), session.vehicle()
    sane, _ = judged(meter, vehicle)
    (rows,) = vehicle
    for wrong in (900_000_000, NOT_KNOWN):
        changed = rows.copy()
        changed[2, 60] = wrong
        evidence, status = judged(meter, [changed])
        assert status is Status.OK
        assert ratio(evidence) == pytest.approx(TRUTH, abs=0.002)
        assert evidence.paired_us == pytest.approx(sane.paired_us - MINUTE_US, abs=10 * SECOND_US)


def test_a_vehicle_pairs_at_each_of_its_meters() -> None:
    session = Session(120)
    (rows,) = session.vehicle()
    half = rows.shape[1] // 2
    rows[4, half:] = 2
    vehicle = counter(rows)
    meter = counter(rows_of(session.meter()))
    by_meter = evidence_between(pair_counters(vehicle, {1: meter, 2: meter}), 0, 2 * START)
    assert {*by_meter} == {1, 2}
    assert ratio(total(by_meter.values())) == pytest.approx(TRUTH, abs=0.002)
    assert by_meter[1].dc_milliwh + by_meter[2].dc_milliwh == rows[2].sum()


ENOUGH = Evidence(paired_ac_milliwh=1_000_000, paired_dc_milliwh=900_000, dc_milliwh=900_000)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, Status.OK),
        ({"dc_milliwh": 1_800_000}, Status.OK),
        ({"dc_milliwh": 1_800_001}, Status.INSUFFICIENT_DATA),
        ({"paired_ac_milliwh": 499_999, "paired_dc_milliwh": 450_000}, Status.INSUFFICIENT_DATA),
        ({"unsure_milliwh": 50_000}, Status.OK),
        ({"unsure_milliwh": 50_001}, Status.INSUFFICIENT_DATA),
        ({"paired_dc_milliwh": 1_020_000}, Status.OK),
        ({"paired_dc_milliwh": 1_020_001}, Status.IMPOSSIBLE),
        ({"paired_dc_milliwh": 1_020_001, "unsure_milliwh": 1}, Status.INSUFFICIENT_DATA),
        ({"paired_dc_milliwh": 850_000}, Status.OK),
        ({"paired_dc_milliwh": 849_999}, Status.LOW_EFFICIENCY),
        ({"paired_dc_milliwh": 849_999, "unsure_milliwh": 1}, Status.INSUFFICIENT_DATA),
        ({"paired_dc_milliwh": 700_000, "doubtful_ac_milliwh": 600_000}, Status.INSUFFICIENT_DATA),
        (
            {"paired_dc_milliwh": 700_000, "doubtful_ac_milliwh": 400_000, "doubtful_dc_milliwh": 100_000},
            Status.INSUFFICIENT_DATA,
        ),
        (
            {"paired_dc_milliwh": 700_000, "doubtful_ac_milliwh": 400_000, "doubtful_dc_milliwh": 300_000},
            Status.LOW_EFFICIENCY,
        ),
    ],
)
def test_the_verdict_is_the_first_that_fits(change: dict[str, int], status: Status) -> None:
    found, sentence = verdict(ENOUGH._replace(**change), has_meter=True, low_efficiency=0.85)
    assert found is status
    assert (sentence is not None) == (status in (Status.IMPOSSIBLE, Status.LOW_EFFICIENCY))
    assert verdict(ENOUGH._replace(**change), has_meter=False, low_efficiency=0.85) == (Status.NO_METER, None)
