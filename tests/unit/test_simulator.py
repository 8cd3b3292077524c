"""The simulated fleet: the same at every start, true to its own physics, and as untidy as devices are."""

import time
from collections import Counter
from datetime import datetime
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.ingest.decode import MediaType, decode_batch
from app.simulator.charging import DAY_US, HOUR_US, Battery, Plan, Stay
from app.simulator.clock import MINUTE_US
from app.simulator.devices import Reading
from app.simulator.feed import feeding
from app.simulator.fleet import Fleet
from tests.fixtures.service import free_port

# It is 2026-01-14, a Wednesday; but any time is like any other.
START_US = 20_467 * DAY_US
SLICE_US = 2 * MINUTE_US
MILLIWH = 1e-6

instants_us = st.integers(0, 20_000 * DAY_US)


def device(reading: Reading) -> str:
    name: str = reading.get("vehicleId") or reading["meterId"]
    return name


def measured_us(reading: Reading) -> int:
    return round(datetime.fromisoformat(reading["timestamp"]).timestamp() * 1_000_000)


def counted(readings: list[Reading]) -> Counter[bytes]:
    return Counter(map(msgspec.json.encode, readings))


def without_registers(chargers: int) -> Fleet:
    """Returns the fleet as if none of its devices counted up."""
    fleet = Fleet(chargers)
    for charger in fleet.chargers:
        charger.sends_register = False
    for vehicle in fleet.vehicles:
        vehicle.sends_register = False
    return fleet


def energy(reading: Reading) -> float:
    """Returns the energy that the reading tells, in kWh; that of a register is not known."""
    kwh: float = reading.get("kwhDeliveredDc") or reading.get("kwhConsumedAc") or 0.0
    return kwh


def test_the_same_seed_gives_the_same_readings() -> None:
    first, again, other = (Fleet(5, seed=seed).deliveries(START_US, START_US + HOUR_US) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(first) > 5 * 60


@settings(max_examples=20)
@given(start_us=instants_us, cuts_us=st.lists(st.integers(0, 4 * HOUR_US), max_size=6))
def test_a_range_cut_anywhere_gives_the_same_readings(start_us: int, cuts_us: list[int]) -> None:
    fleet = Fleet(8)
    bounds_us = sorted([start_us, start_us + 4 * HOUR_US, *(start_us + cut_us for cut_us in cuts_us)])
    parts = [reading for bounds in pairwise(bounds_us) for reading in fleet.deliveries(*bounds)]
    assert parts == Fleet(8).deliveries(bounds_us[0], bounds_us[-1])


@settings(max_examples=25)
@given(start_us=instants_us, hours=st.floats(0.1, 20))
def test_the_measured_energy_is_the_true_energy(start_us: int, hours: float) -> None:
    fleet = without_registers(8)
    end_us = start_us + round(hours * HOUR_US)
    measured = Counter[str]()
    for reading in fleet.measured(start_us, end_us):
        measured[device(reading)] += round(energy(reading) / MILLIWH)
    for charger in fleet.chargers:
        moments = [moment.at_us for moment in charger.clock.moments(start_us, end_us)] or [start_us]
        true_kwh = sum(fleet.truth(vehicle.vehicle_id, moments[0], moments[-1]).ac_kwh for vehicle in charger.vehicles)
        assert measured[charger.meter_id] * MILLIWH == pytest.approx(true_kwh, abs=20 * MILLIWH)
    for vehicle in fleet.vehicles:
        moments = [moment.at_us for moment in vehicle.clock.moments(start_us, end_us)] or [start_us]
        true_kwh = fleet.truth(vehicle.vehicle_id, moments[0], moments[-1]).dc_kwh
        assert measured[vehicle.vehicle_id] * MILLIWH == pytest.approx(true_kwh, abs=20 * MILLIWH)


@settings(max_examples=10)
@given(start_us=instants_us, hours=st.floats(0.1, 30))
def test_a_register_goes_up_by_the_energy_of_each_reading(start_us: int, hours: float) -> None:
    end_us = start_us + round(hours * HOUR_US)
    shown = dict[str, float]()
    registers = 0
    others = without_registers(8).measured(start_us, end_us)
    for reading, other in zip(Fleet(8).measured(start_us, end_us), others, strict=True):
        name = "kwhRegisterDc" if "vehicleId" in reading else "kwhRegisterAc"
        if name not in reading:
            assert reading == other
            continue
        registers += 1
        kwh = reading[name]
        assert kwh - shown.get(device(reading), kwh - energy(other)) == pytest.approx(energy(other), abs=MILLIWH / 2)
        shown[device(reading)] = kwh
    assert registers or hours < 1


def test_a_register_counts_on_from_roster_to_roster() -> None:
    fleet = Fleet(1)
    (vehicle,) = fleet.vehicles
    days_us = [START_US + day * DAY_US for day in range(60)]
    first, *shown = (vehicle.plan.register(at_us, 1 / MILLIWH) * MILLIWH for at_us in days_us)
    assert first > 1_000
    true_kwh = [fleet.truth(vehicle.vehicle_id, START_US, at_us).dc_kwh for at_us in days_us[1:]]
    assert [kwh - first for kwh in shown] == pytest.approx(true_kwh, abs=200 * MILLIWH)


def test_truth_adds_up_and_has_the_efficiency_of_the_charger() -> None:
    fleet = Fleet(8)
    for vehicle in fleet.vehicles:
        hours = [
            fleet.truth(vehicle.vehicle_id, START_US + hour * HOUR_US, START_US + (hour + 1) * HOUR_US)
            for hour in range(24)
        ]
        day = fleet.truth(vehicle.vehicle_id, START_US, START_US + DAY_US)
        assert day.dc_kwh == pytest.approx(sum(hour.dc_kwh for hour in hours))
        assert day.efficiency == pytest.approx(vehicle.charger.efficiency)
        charges = fleet.charges(vehicle.vehicle_id, START_US, START_US + DAY_US)
        assert charges
        for charge in charges:
            assert charge.truth == pytest.approx(fleet.truth(vehicle.vehicle_id, charge.start_us, charge.end_us))
            assert fleet.truth(vehicle.vehicle_id, charge.start_us, charge.start_us + MINUTE_US).dc_kwh > 0
            assert fleet.truth(vehicle.vehicle_id, charge.end_us, charge.end_us + MINUTE_US).dc_kwh < 1e-6
    idle = Stay(Battery(50, 10), 0, 10 * HOUR_US, 50).end_us
    assert fleet.truth("vehicle-0001", idle, idle).efficiency is None


def test_every_reading_is_acceptable() -> None:
    readings = Fleet(50).deliveries(START_US, START_US + 6 * HOUR_US)
    body = msgspec.json.encode(readings)
    batch = decode_batch(body, MediaType.JSON, now_us=START_US + 6 * HOUR_US)
    assert batch.rejected == []
    assert batch.received == len(readings)


@given(
    capacity_kwh=st.floats(20, 200),
    power_kw=st.floats(3, 50),
    soc=st.floats(0, 60),
    times_us=st.lists(st.integers(-HOUR_US, 12 * HOUR_US), min_size=2).map(sorted),
)
def test_a_battery_fills_at_constant_power_then_tapers(
    capacity_kwh: float, power_kw: float, soc: float, times_us: list[int]
) -> None:
    stay = Stay(Battery(capacity_kwh, power_kw), 0, 10 * HOUR_US, soc)
    for before_us, after_us in pairwise(times_us):
        kwh = stay.dc_kwh(after_us) - stay.dc_kwh(before_us)
        at_full_power = power_kw * (after_us - before_us) / HOUR_US
        assert -1e-9 <= kwh <= at_full_power + 1e-9
        if before_us >= 0 and after_us <= 10 * HOUR_US and stay.soc(after_us) < 80:
            assert kwh == pytest.approx(at_full_power, abs=1e-9)
    assert soc <= stay.soc(times_us[0]) <= stay.soc(times_us[-1]) <= 100
    assert stay.dc_kwh(10**20) == pytest.approx(capacity_kwh * (stay.soc(10**20) - soc) / 100, abs=1e-6)


def test_charging_readings_rise_in_charge_and_taper() -> None:
    fleet = without_registers(30)
    for vehicle in fleet.vehicles:
        moments = vehicle.clock.moments(START_US, START_US + 2 * DAY_US)
        readings = vehicle.readings(moments)
        assert {type(reading["soc"]) for reading in readings} == {float}
        assert all(0 <= reading["soc"] <= 100 for reading in readings)
        powers_kw = [
            reading["kwhDeliveredDc"] * HOUR_US / (after.at_us - before.at_us)
            for reading, (before, after) in zip(readings, pairwise(moments), strict=True)
        ]
        assert max(powers_kw) == pytest.approx(vehicle.battery.power_kw, rel=1e-4)
        for (earlier, earlier_kw), (later, later_kw) in pairwise(zip(readings, powers_kw, strict=True)):
            if earlier_kw and later_kw and measured_us(later) - measured_us(earlier) < 15 * MINUTE_US:
                assert later["soc"] >= earlier["soc"]
            if earlier["soc"] > 81 and later["soc"] > earlier["soc"]:
                assert later_kw < earlier_kw
        charging_temp, idle_temp = (
            [reading["batteryTemp"] for reading in readings if (reading["kwhDeliveredDc"] > 0) is charging]
            for charging in (True, False)
        )
        assert max(charging_temp) > max(idle_temp, default=0)


def test_a_vehicle_is_at_its_charger_for_most_of_the_day() -> None:
    plan = Plan("any", Battery(50, 10))
    for day in range(20):
        from_us, to_us = START_US + day * DAY_US, START_US + (day + 1) * DAY_US
        stays = plan.stays(from_us, to_us)
        plugged_us = sum(max(0, min(stay.end_us, to_us) - max(stay.start_us, from_us)) for stay in stays)
        assert 0.55 < plugged_us / DAY_US < 0.95
        assert all(later.start_us - earlier.end_us > 10 * MINUTE_US for earlier, later in pairwise(stays))
        assert all(earlier.soc(earlier.end_us) > later.soc_at_start for earlier, later in pairwise(stays))


def test_some_charge_at_any_hour() -> None:
    fleet = Fleet(50)
    for hour in range(48):
        charging = fleet.charging(START_US + hour * HOUR_US)
        assert 8 <= len(charging) <= 34, hour
        assert not {"vehicle-0002", "vehicle-0005", "vehicle-0007", "vehicle-0008"} & set(charging)


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return Fleet(50)


@pytest.fixture(scope="module")
def measured(fleet: Fleet) -> list[Reading]:
    """Returns what a fleet of 50 measures in a day."""
    return list(fleet.measured(START_US, START_US + DAY_US))


@pytest.fixture(scope="module")
def delivered(fleet: Fleet) -> list[tuple[int, Reading]]:
    """Returns the deliveries of that day, each with the start of the two minutes in which it arrives."""
    slices = pairwise(range(START_US, START_US + DAY_US + SLICE_US, SLICE_US))
    return [(start_us, reading) for start_us, end_us in slices for reading in fleet.deliveries(start_us, end_us)]


def times_by_device(measured: list[Reading]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for reading in measured:
        found.setdefault(device(reading), []).append(measured_us(reading))
    return found


def test_devices_report_every_30_to_120_seconds_or_seldom_on_clocks_that_jitter(measured: list[Reading]) -> None:
    seldom = {"vehicle-0009", "vehicle-0034", "meter-0010", "meter-0035"}
    by_device = times_by_device(measured)
    assert len(by_device) == 100
    for name, times_us in by_device.items():
        intervals_us = sorted(after_us - before_us for before_us, after_us in pairwise(times_us))
        # Some are silent at times, or sleep.
        usual_us = intervals_us[: len(intervals_us) * 9 // 10]
        shortest_s, longest_s = (300, 900) if name in seldom else (30, 120)
        assert shortest_s * 1_000_000 <= usual_us[0] < usual_us[-1] <= longest_s * 1_000_000, name


def test_some_devices_report_only_when_there_is_something_to_report(fleet: Fleet, measured: list[Reading]) -> None:
    by_device = times_by_device(measured)
    interval_us = 2 * MINUTE_US

    def charged(number: int, at_us: int) -> bool:
        plans = [vehicle.plan for vehicle in fleet.vehicles if vehicle.charger.meter_id == f"meter-{number:04d}"]
        return any(plan.has_charged(at_us - interval_us, at_us) for plan in plans)

    for number in (11, 36):
        assert all(charged(number, at_us) for at_us in by_device[f"meter-{number:04d}"])
    for number in (14, 39):
        assert all(charged(number, at_us) for at_us in by_device[f"vehicle-{number:04d}"])
    # A car that drives reports without a meter, and without energy; when it is parked and full, it sleeps.
    for vehicle in (fleet.vehicles[12], fleet.vehicles[37]):
        at_us = by_device[vehicle.vehicle_id]
        assert all(
            vehicle.plan.has_charged(at - interval_us, at) or vehicle.plan.drives(at - interval_us, at) for at in at_us
        )
        mine = [reading for reading in measured if reading.get("vehicleId") == vehicle.vehicle_id]
        away = [reading for reading in mine if "meterId" not in reading]
        assert len(away) > 30
        assert sum(reading["kwhDeliveredDc"] > 0 for reading in away) <= 3


def test_some_silences_are_carried_on(fleet: Fleet) -> None:
    measured = times_by_device([*fleet.measured(START_US, START_US + 10 * DAY_US)])
    silent = {
        vehicle.vehicle_id
        for vehicle in fleet.vehicles
        for before_us, after_us in pairwise(measured[vehicle.vehicle_id])
        if after_us - before_us > 18 * MINUTE_US
        if fleet.truth(vehicle.vehicle_id, before_us, after_us).dc_kwh > 1
    }
    # The second vehicle of a shared meter is often silent.
    assert {"vehicle-0008", "vehicle-0018", "vehicle-0028", "vehicle-0048"} <= silent
    assert len(silent) < 40


def test_nothing_arrives_before_it_is_measured_and_most_at_once(delivered: list[tuple[int, Reading]]) -> None:
    delays_us = [start_us + SLICE_US - measured_us(reading) for start_us, reading in delivered]
    assert min(delays_us) > 0
    assert sum(delay_us < 2 * SLICE_US for delay_us in delays_us) > 0.95 * len(delays_us)


def test_some_readings_arrive_late_and_some_again(delivered: list[tuple[int, Reading]]) -> None:
    late = {device(reading) for start_us, reading in delivered if start_us - measured_us(reading) > 10 * MINUTE_US}
    # All devices that use a charger's network are late together.
    assert any(f"meter-{number:04d}" in late and f"vehicle-{number:04d}" in late for number in range(1, 51))
    times = Counter(counted([reading for _, reading in delivered]).values())
    assert times.keys() == {1, 2}
    assert 0.002 < times[2] / times[1] < 0.01


def test_some_devices_are_silent_for_a_while_and_their_energy_is_lost(
    measured: list[Reading], delivered: list[tuple[int, Reading]]
) -> None:
    # Everything held back in the first 20 hours has arrived by the end.
    sent = counted([reading for _, reading in delivered])
    lost = [reading for reading in measured if msgspec.json.encode(reading) not in sent]
    lost = [reading for reading in lost if measured_us(reading) < START_US + 20 * HOUR_US]
    silent = Counter(device(reading) for reading in lost)
    assert 2 <= len(silent) <= 15
    assert min(silent.values()) > 10 * 60 / 120 - 1
    assert sum(map(energy, lost)) > 0


def test_a_shared_meter_serves_two_vehicles_and_the_next_none(fleet: Fleet, measured: list[Reading]) -> None:
    at_7 = {
        reading["vehicleId"]
        for reading in measured
        if "vehicleId" in reading and reading.get("meterId") == "meter-0007"
    }
    assert at_7 == {"vehicle-0007", "vehicle-0008"}
    first, second = fleet.chargers[6].vehicles
    both = [
        at_us
        for at_us in range(START_US, START_US + DAY_US, 10 * MINUTE_US)
        if all(stay_at(vehicle.plan, at_us) for vehicle in (first, second))
    ]
    assert both
    assert {reading["kwhConsumedAc"] for reading in measured if device(reading) == "meter-0008"} == {0}


def stay_at(plan: Plan, at_us: int) -> bool:
    return any(stay.start_us <= at_us < stay.end_us for stay in plan.stays(at_us, at_us))


def test_a_mapped_vehicle_never_names_its_meter(fleet: Fleet, measured: list[Reading]) -> None:
    naming = {reading["vehicleId"] for reading in measured if "vehicleId" in reading and "meterId" in reading}
    mapped = dict(fleet.mappings())
    assert mapped == {f"vehicle-{number:04d}": f"meter-{number:04d}" for number in (2, 12, 22, 32, 42)}
    assert naming == {vehicle.vehicle_id for vehicle in fleet.vehicles} - mapped.keys()


def test_a_few_chargers_are_failing(fleet: Fleet) -> None:
    failing = set(fleet.failing())
    assert failing == {"vehicle-0005", "vehicle-0030"}
    for vehicle in fleet.vehicles:
        efficiency = fleet.truth(vehicle.vehicle_id, START_US, START_US + DAY_US).efficiency
        assert efficiency is not None
        assert 0.70 <= efficiency <= 0.82 if vehicle.vehicle_id in failing else 0.88 <= efficiency <= 0.92


def test_feeding_a_service_that_is_not_there_ends_at_once_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def refresh() -> None:
        raise AssertionError("no history was sent")

    with feeding(f"http://127.0.0.1:{free_port()}", 3, refresh):
        time.sleep(0.3)
        began = time.monotonic()
    assert time.monotonic() - began < 9  # of the ten seconds that it would be waited for
    assert capsys.readouterr() == ("", "")
