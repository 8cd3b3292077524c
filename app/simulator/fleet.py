"""A seeded fleet of chargers and vehicles, its readings, and the truth about the energy that flowed.

Everything is a function of seed, device and time: a fleet made anew goes on as if it had never stopped.
"""

from collections.abc import Iterator
from operator import itemgetter
from typing import NamedTuple

from app.simulator.devices import Charger, Reading, Vehicle


class Truth(NamedTuple):
    """The energy drawn from the grid for a vehicle, and the energy delivered to its battery."""

    ac_kwh: float
    dc_kwh: float

    @property
    def efficiency(self) -> float | None:
        """The share that reached the battery; None when nothing was drawn."""
        return self.dc_kwh / self.ac_kwh if self.ac_kwh else None


class Charge(NamedTuple):
    """A charge of a vehicle, and the energy that flowed in it."""

    start_us: int
    end_us: int
    truth: Truth


class Fleet:
    """`chargers` chargers and as many vehicles; any 25 in a row have some of every kind.

    Of ten chargers, one serves two vehicles, of which the second is often silent, and the next charger serves none. Of
    ten vehicles, one never names its meter, but is mapped to it. Of 25 chargers, one is failing, one reports each 6 to
    15 minutes, and one only while it charges. Of 25 vehicles, one reports each 6 to 15 minutes, one only while it
    charges, and one only while it charges or drives. Each fourth charger and each third vehicle sends its register.
    Times are microseconds since 1970 UTC.
    """

    def __init__(self, chargers: int, *, seed: int = 1) -> None:
        self.chargers = [Charger(number, seed) for number in range(1, chargers + 1)]
        # Vehicles 8, 18, ... charge where 7, 17, ... do.
        self.vehicles = [
            Vehicle(number, seed, self.chargers[number - 2 if number % 10 == 8 else number - 1])
            for number in range(1, chargers + 1)
        ]
        self._devices: list[Charger | Vehicle] = [*self.chargers, *self.vehicles]

    def mappings(self) -> list[tuple[str, str]]:
        """Returns the vehicle and meter of each vehicle that does not name its meter."""
        return [(vehicle.vehicle_id, vehicle.charger.meter_id) for vehicle in self.vehicles if not vehicle.names_meter]

    def measured(self, from_us: int, to_us: int) -> Iterator[Reading]:
        """Yields every reading with a timestamp in [from_us, to_us), sent or not, device by device."""
        for device in self._devices:
            if moments := device.clock.moments(from_us, to_us):
                yield from device.readings(moments)

    def deliveries(self, from_us: int, to_us: int) -> list[Reading]:
        """Returns the readings by their arrival in [from_us, to_us): some late, some twice, without the lost ones."""
        return [reading for _, reading in self.arrivals(from_us, to_us)]

    def arrivals(self, from_us: int, to_us: int) -> list[tuple[int, Reading]]:
        """Returns the deliveries, each with the instant of its arrival."""
        arrivals: list[tuple[int, Reading]] = []
        for device in self._devices:
            moments = device.clock.moments(device.clock.measured_from_us(from_us), to_us)
            if moments and (due := device.clock.arrivals(moments, from_us, to_us)):
                first, last = min(index for _, index in due), max(index for _, index in due)
                readings = device.readings(moments[first - 1 : last + 1])
                arrivals += [(arrival_us, readings[index - first]) for arrival_us, index in due]
        arrivals.sort(key=itemgetter(0))
        return arrivals

    def truth(self, vehicle_id: str, from_us: int, to_us: int) -> Truth:
        """Returns the energy that flowed into a vehicle in [from_us, to_us), measured or not."""
        vehicle = self._vehicle(vehicle_id)
        stays = vehicle.plan.stays(from_us, to_us)
        return _truth(vehicle, sum(stay.dc_kwh(to_us) - stay.dc_kwh(from_us) for stay in stays))

    def charges(self, vehicle_id: str, from_us: int, to_us: int) -> list[Charge]:
        """Returns the vehicle's charges that begin in [from_us, to_us), in order."""
        vehicle = self._vehicle(vehicle_id)
        return [
            Charge(stay.start_us, stay.charged_us, _truth(vehicle, stay.dc_kwh(stay.end_us)))
            for stay in vehicle.plan.stays(from_us, to_us)
            if from_us <= stay.start_us < to_us
        ]

    def _vehicle(self, vehicle_id: str) -> Vehicle:
        return next(vehicle for vehicle in self.vehicles if vehicle.vehicle_id == vehicle_id)

    def charging(self, at_us: int) -> list[str]:
        """Returns the vehicles that charge at that instant at a sound charger of their own, and name its meter."""
        return [
            vehicle.vehicle_id
            for vehicle in self.vehicles
            if vehicle.names_meter
            and not vehicle.charger.is_failing
            and len(vehicle.charger.vehicles) == 1
            and any(stay.is_charging(at_us) for stay in vehicle.plan.stays(at_us, at_us))
        ]

    def failing(self) -> list[str]:
        """Returns the vehicles that charge at a failing charger."""
        return [vehicle.vehicle_id for vehicle in self.vehicles if vehicle.charger.is_failing]


def _truth(vehicle: Vehicle, dc_kwh: float) -> Truth:
    return Truth(dc_kwh / vehicle.charger.efficiency, dc_kwh)
