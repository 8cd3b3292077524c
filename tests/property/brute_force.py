"""The numbers of the performance answer, computed the slow way from raw readings.

It follows the sentences of the definition one by one, minute by minute, and shares no code with the service, so that
the two can be compared. Readings are the stored ones: distinct by device and instant.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from app.telemetry.reading import MeterReading, VehicleReading

MINUTE_US = 60_000_000

VehicleMeter = tuple[str, str, float, float]
"""Vehicle, meter, from, to: microseconds since 1970 UTC; `to` is excluded, -inf and inf mean no limit."""


@dataclass(frozen=True)
class Performance:
    """Energy in thousandths of a Wh; averages are exact, in percent and degrees Celsius."""

    dc_milliwh: int
    paired_ac_milliwh: int
    paired_dc_milliwh: int
    efficiency_ratio: Fraction | None
    minutes: int
    paired: int
    shared: int
    unpaired: int
    data_points: int
    avg_soc: Fraction | None
    avg_battery_temp: Fraction | None
    has_meter: bool
    status: str

    def answer(self) -> dict[str, Any]:
        """Returns the members of the JSON answer that hold these numbers, each rounded once."""
        return {
            "totalAcConsumption": float(Fraction(self.paired_ac_milliwh, 1_000_000)),
            "totalDcDelivery": float(Fraction(self.dc_milliwh, 1_000_000)),
            "efficiencyRatio": None if self.efficiency_ratio is None else float(self.efficiency_ratio),
            "avgSoc": None if self.avg_soc is None else float(self.avg_soc),
            "avgBatteryTemp": None if self.avg_battery_temp is None else float(self.avg_battery_temp),
            "dataPoints": self.data_points,
            "energyLossKwh": float(Fraction(self.paired_ac_milliwh - self.paired_dc_milliwh, 1_000_000)),
            "coverage": {
                "minutes": self.minutes,
                "paired": self.paired,
                "shared": self.shared,
                "unpaired": self.unpaired,
            },
            "status": self.status,
        }


def performance(
    vehicle_id: str,
    meter_readings: Iterable[MeterReading],
    vehicle_readings: Iterable[VehicleReading],
    mappings: Sequence[VehicleMeter],
    *,
    from_us: int,
    to_us: int,
    gap_minutes: int = 5,
    low_efficiency: Fraction = Fraction(85, 100),
) -> Performance:
    """Returns the performance of one vehicle over the minutes whose start is in [floor(from), ceil(to))."""
    window = range(from_us // MINUTE_US, -(-to_us // MINUTE_US))
    fleet = Fleet(window, meter_readings, vehicle_readings, mappings, gap_minutes)
    own = [reading for readings in fleet.vehicles.get(vehicle_id, {}).values() for reading in readings]
    paired = shared = unpaired = ac = dc = 0
    has_meter = False
    for minute in window:
        meters = fleet.meters_of(vehicle_id, minute)
        if meters is None:
            continue
        has_meter = has_meter or meters != set()
        shared_at = {meter for meter in meters if fleet.is_shared(vehicle_id, meter, minute)}
        paired_at = {meter for meter in meters if meter not in shared_at and fleet.meter_covers(meter, minute)}
        for meter in paired_at:
            ac += sum(reading.ac_milliwh for reading in fleet.meters[meter].get(minute, []))
            dc += sum(
                reading.dc_milliwh
                for reading in fleet.vehicles[vehicle_id].get(minute, [])
                if fleet.meter_of(reading) == meter
            )
        if paired_at:
            paired += 1
        elif shared_at:
            shared += 1
        else:
            unpaired += 1

    minutes = paired + shared + unpaired
    ratio = Fraction(dc, ac) if ac else None
    if not has_meter:
        status = "no_meter"
    elif ratio is None or Fraction(ac, 1_000_000) < Fraction(1, 2) or Fraction(paired, minutes) < Fraction(1, 2):
        status = "insufficient_data"
    elif ratio > Fraction(102, 100):
        status = "impossible"
    elif ratio < low_efficiency:
        status = "low_efficiency"
    else:
        status = "ok"
    return Performance(
        dc_milliwh=sum(reading.dc_milliwh for reading in own),
        paired_ac_milliwh=ac,
        paired_dc_milliwh=dc,
        efficiency_ratio=ratio,
        minutes=minutes,
        paired=paired,
        shared=shared,
        unpaired=unpaired,
        data_points=len(own),
        avg_soc=average_of_hundredths([reading.soc_centipercent for reading in own]),
        avg_battery_temp=average_of_hundredths([reading.battery_temp_centic for reading in own]),
        has_meter=has_meter,
        status=status,
    )


class Fleet:
    """The readings in the window by device and minute, and the minutes that each device covers."""

    def __init__(
        self,
        window: range,
        meter_readings: Iterable[MeterReading],
        vehicle_readings: Iterable[VehicleReading],
        mappings: Sequence[VehicleMeter],
        gap_minutes: int,
    ) -> None:
        self.meters: dict[str, dict[int, list[MeterReading]]] = {}
        self.vehicles: dict[str, dict[int, list[VehicleReading]]] = {}
        self.mappings = mappings
        self.gap_minutes = gap_minutes
        for meter in meter_readings:
            if meter.ts_us // MINUTE_US in window:
                self.meters.setdefault(meter.meter_id, {}).setdefault(meter.ts_us // MINUTE_US, []).append(meter)
        for vehicle in vehicle_readings:
            if vehicle.ts_us // MINUTE_US in window:
                by_minute = self.vehicles.setdefault(vehicle.vehicle_id, {})
                by_minute.setdefault(vehicle.ts_us // MINUTE_US, []).append(vehicle)

    def meter_of(self, reading: VehicleReading) -> str | None:
        """Returns the meter that the reading names, else the one mapped at the start of its minute."""
        if reading.meter_id is not None:
            return reading.meter_id
        start_us = reading.ts_us // MINUTE_US * MINUTE_US
        for vehicle_id, meter_id, from_us, to_us in self.mappings:
            if vehicle_id == reading.vehicle_id and from_us <= start_us < to_us:
                return meter_id
        return None

    def meters_of(self, vehicle_id: str, minute: int) -> set[str] | None:
        """Returns the meters at which the vehicle covers the minute; None when it does not cover it."""
        by_minute = self.vehicles.get(vehicle_id, {})
        if minute in by_minute:
            return self.meters_read_in(vehicle_id, minute)
        between = self.neighbours(set(by_minute), minute)
        if between is None:
            return None
        before, after = between
        return self.meters_read_in(vehicle_id, before) & self.meters_read_in(vehicle_id, after)

    def meters_read_in(self, vehicle_id: str, minute: int) -> set[str]:
        """Returns the meters of the vehicle's readings in the minute."""
        meters = {self.meter_of(reading) for reading in self.vehicles[vehicle_id][minute]}
        return {meter for meter in meters if meter is not None}

    def meter_covers(self, meter_id: str, minute: int) -> bool:
        """Returns True when the meter covers the minute."""
        by_minute = self.meters.get(meter_id, {})
        return minute in by_minute or self.neighbours(set(by_minute), minute) is not None

    def is_shared(self, vehicle_id: str, meter_id: str, minute: int) -> bool:
        """Returns True when another vehicle covers that meter in the minute."""
        return any(
            meter_id in (self.meters_of(other, minute) or set()) for other in self.vehicles if other != vehicle_id
        )

    def neighbours(self, with_readings: set[int], minute: int) -> tuple[int, int] | None:
        """Returns the two consecutive minutes with readings around the minute, when their starts are close enough."""
        earlier = [other for other in with_readings if other < minute]
        later = [other for other in with_readings if other > minute]
        if not earlier or not later or min(later) - max(earlier) > self.gap_minutes:
            return None
        return max(earlier), min(later)


def average_of_hundredths(values: Iterable[int | None]) -> Fraction | None:
    """Returns the average, in whole units, of the values that are not None; None when there is none."""
    there = [value for value in values if value is not None]
    return Fraction(sum(there), 100 * len(there)) if there else None
