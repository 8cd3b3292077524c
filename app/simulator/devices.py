"""A fleet's chargers (each with a meter) and vehicles, and their readings in the form of the API."""

from datetime import UTC, datetime
from itertools import accumulate, pairwise
from math import exp, pi, sin
from random import Random
from typing import Any

from app.simulator.charging import DAY_US, HOUR_US, Battery, Plan, Stay
from app.simulator.clock import (
    NETWORK_OUTAGES,
    OFTEN_S,
    OFTEN_SILENT,
    SECOND_US,
    SELDOM_S,
    SILENCES,
    Clock,
    Moment,
    Outages,
)

Reading = dict[str, Any]
"""A reading in the form of the API."""


class Charger:
    """A meter, and the truth about the charger behind it. The charger's number decides its kind."""

    def __init__(self, number: int, seed: int) -> None:
        random = Random(f"{seed}/charger/{number}")
        self.meter_id = f"meter-{number:04d}"
        self.is_failing = number % 25 == 5
        self.sends_register = number % 4 == 1
        self.efficiency = random.uniform(0.70, 0.82) if self.is_failing else random.uniform(0.88, 0.92)
        self.ac_kw = random.choice([7.4, 11.0, 22.0])
        self.network = Outages(f"{seed}/network/{number}", NETWORK_OUTAGES)
        every_s = SELDOM_S if number % 25 == 10 else OFTEN_S
        reports = self._has_charged if number % 25 == 11 else None
        self.clock = Clock(f"{seed}/meter/{number}", self.network, every_s, reports=reports)
        self.vehicles: list[Vehicle] = []

    def readings(self, moments: list[Moment]) -> list[Reading]:
        """Returns a reading for each moment after the first: its register, or the energy since the moment before."""
        times_us = [at_us for at_us, _ in moments]
        by_vehicle = [vehicle.drawn_milliwh(times_us) for vehicle in self.vehicles]
        energies_milliwh = [*map(sum, zip(*by_vehicle, strict=True))] if by_vehicle else [0] * (len(moments) - 1)
        before = sum(vehicle.drawn_before(times_us[0]) for vehicle in self.vehicles) if self.sends_register else None
        shown = _shown("kwhConsumedAc", "kwhRegisterAc", energies_milliwh, before)
        return [
            {
                "meterId": self.meter_id,
                "timestamp": _timestamp(at_us),
                **energy,
                "voltage": self._voltage(ac_milliwh * 3600 / (at_us - previous_us), bits),
            }
            for ((previous_us, _), (at_us, bits)), ac_milliwh, energy in zip(
                pairwise(moments), energies_milliwh, shown, strict=True
            )
        ]

    def _has_charged(self, from_us: int, to_us: int) -> bool:
        return any(vehicle.plan.has_charged(from_us, to_us) for vehicle in self.vehicles)

    def _voltage(self, ac_kw: float, bits: int) -> float:
        """Returns about 230 V: the voltage sags under load, and the grid is never quiet."""
        return round(231.5 - 0.2 * ac_kw + (bits >> 48) / 0x8000, 1)


class Vehicle:
    """A vehicle and the charger to which it returns."""

    def __init__(self, number: int, seed: int, charger: Charger) -> None:
        random = Random(f"{seed}/vehicle/{number}")
        self.vehicle_id = f"vehicle-{number:04d}"
        self.charger = charger
        self.names_meter = number % 10 != 2
        self.sends_register = number % 3 == 0
        power_kw = charger.ac_kw * charger.efficiency
        self.battery = Battery(capacity_kwh=power_kw * random.uniform(4, 6.5), power_kw=power_kw)
        self.plan = Plan(f"{seed}/plan/{number}", self.battery)
        every_s = SELDOM_S if number % 25 == 9 else OFTEN_S
        silences = OFTEN_SILENT if number % 10 == 8 else SILENCES
        reports = {13: self._is_awake, 14: self.plan.has_charged}.get(number % 25)
        self.clock = Clock(f"{seed}/vehicle/{number}", charger.network, every_s, silences, reports)
        charger.vehicles.append(self)

    def drawn_milliwh(self, times_us: list[int]) -> list[int]:
        """Returns the AC energy that flowed between each two consecutive times."""
        return self._milliwh(times_us, 1_000_000 / self.charger.efficiency)

    def drawn_before(self, at_us: int) -> int:
        """Returns how much of the AC register of its charger is this vehicle's, in the same unit."""
        return self.plan.register(at_us, 1_000_000 / self.charger.efficiency)

    def _milliwh(self, times_us: list[int], per_kwh: float) -> list[int]:
        # These are differences of a counter in whole units: their sum is exact, however time is divided.
        return [
            sum(int(stay.dc_kwh(at_us) * per_kwh) - int(stay.dc_kwh(previous_us) * per_kwh) for stay in stays)
            for (previous_us, at_us), stays in zip(pairwise(times_us), self.plan.along(times_us), strict=True)
        ]

    def _is_awake(self, from_us: int, to_us: int) -> bool:
        return self.plan.drives(from_us, to_us) or self.plan.has_charged(from_us, to_us)

    def readings(self, moments: list[Moment]) -> list[Reading]:
        """Returns a reading for each moment after the first: its register, or the energy since the moment before."""
        times_us = [at_us for at_us, _ in moments]
        energies_milliwh = self._milliwh(times_us, 1_000_000)
        before = self.plan.register(times_us[0], 1_000_000) if self.sends_register else None
        shown = _shown("kwhDeliveredDc", "kwhRegisterDc", energies_milliwh, before)
        spans = zip(pairwise(times_us), energies_milliwh, self.plan.along(times_us), shown, strict=True)
        return [self._reading(*times_us, dc_milliwh, stays, energy) for times_us, dc_milliwh, stays, energy in spans]

    def _reading(self, previous_us: int, at_us: int, dc_milliwh: int, stays: list[Stay], energy: Reading) -> Reading:
        before, stay = stays[-2:]
        # Between two stays, an interval touches neither; a silence may reach from a stay far into a drive.
        is_driving = len(stays) == 2 or at_us - before.end_us > SELDOM_S[1] * SECOND_US
        soc = _driven_soc(at_us, before, stay) if is_driving else before.soc(at_us)
        reading = {
            "vehicleId": self.vehicle_id,
            "timestamp": _timestamp(at_us),
            **energy,
            "soc": round(soc, 2),
            "batteryTemp": round(self._battery_temp(at_us, before, dc_milliwh * 3600 / (at_us - previous_us)), 1),
        }
        if self.names_meter and not is_driving:
            reading["meterId"] = self.charger.meter_id
        return reading

    def _battery_temp(self, at_us: int, stay: Stay, dc_kw: float) -> float:
        """Returns a temperature: highest in the afternoon, and up to 12 degrees higher after an hour of charging."""
        ambient = 16 + 5 * sin(2 * pi * (at_us % DAY_US / DAY_US - 9 / 24))
        if dc_kw == 0:
            return ambient
        return ambient + 12 * dc_kw / self.battery.power_kw * (1 - exp((stay.start_us - at_us) / HOUR_US))


def _shown(difference: str, register: str, energies_milliwh: list[int], before_milliwh: int | None) -> list[Reading]:
    """Returns the energies as members: each for itself or, with the register before them, what it shows after each."""
    if before_milliwh is None:
        return [{difference: energy / 1_000_000} for energy in energies_milliwh]
    return [{register: shown / 1_000_000} for shown in accumulate(energies_milliwh, initial=before_milliwh)][1:]


def _driven_soc(at_us: int, before: Stay, after: Stay) -> float:
    """Returns the state of charge in percent during the drive between two stays."""
    left = before.soc(before.end_us)
    return left + (after.soc_at_start - left) * (at_us - before.end_us) / (after.start_us - before.end_us)


def _timestamp(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1_000_000, UTC).isoformat(timespec="milliseconds")
