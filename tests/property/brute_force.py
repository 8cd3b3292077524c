"""The numbers of the performance answer, computed the slow way from raw readings.

It follows the sentences of the definition one by one, by elementary stretches of time, and shares no code with the
service, so that the two can be compared. Readings are the stored ones: distinct by device and instant.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import Any

from app.analytics.efficiency.pairs import Evidence
from app.analytics.efficiency.rows import Mapping
from app.telemetry.reading import MeterReading, VehicleReading
from tests.property.counter_twin import Device, Minute, Twin, spans_of

MINUTE_US = 60_000_000
_LIMIT_MILLIWATT = 1_000_000_000

_Energy = tuple[str, str | None, int, int]
"""Device, the meter that a vehicle's reading names, instant, energy."""

VehicleMeter = tuple[str, str, float, float]
"""Vehicle, meter, from, to: microseconds since 1970 UTC; `to` is excluded, -inf and inf mean no limit."""


@dataclass(frozen=True)
class Performance:
    """Energy in thousandths of a Wh; averages are exact, in percent and degrees Celsius."""

    dc_milliwh: int
    evidence: Evidence
    data_points: int
    avg_soc: Fraction | None
    avg_battery_temp: Fraction | None
    status: str

    def answer(self) -> dict[str, Any]:
        """Returns the members of the JSON answer that hold these numbers, each rounded once."""
        ac, dc, unsure = (
            Fraction(milliwh, 1_000_000)
            for milliwh in (
                self.evidence.paired_ac_milliwh,
                self.evidence.paired_dc_milliwh,
                self.evidence.unsure_milliwh,
            )
        )
        paired, shared, unpaired, doubtful = map(minutes_of, self.evidence[6:])
        return {
            "totalAcConsumption": float(ac),
            "totalDcDelivery": float(Fraction(self.dc_milliwh, 1_000_000)),
            "pairedDcDelivery": float(dc),
            "efficiencyRatio": float(dc / ac) if ac else None,
            "uncertainty": float(unsure / ac + self._lowered()) if ac else None,
            "avgSoc": None if self.avg_soc is None else float(self.avg_soc),
            "avgBatteryTemp": None if self.avg_battery_temp is None else float(self.avg_battery_temp),
            "dataPoints": self.data_points,
            "energyLossKwh": float(ac - dc),
            "coverage": {
                "minutes": paired + shared + unpaired,
                "paired": paired,
                "shared": shared,
                "unpaired": unpaired,
                "doubtful": doubtful,
            },
            "status": self.status,
        }

    def _lowered(self) -> Fraction:
        """Returns by how much doubtful time lowers the ratio, if there is enough energy to tell."""
        evidence = self.evidence
        ac, dc = evidence.paired_ac_milliwh, evidence.paired_dc_milliwh
        sure_ac, sure_dc = ac - evidence.doubtful_ac_milliwh, dc - evidence.doubtful_dc_milliwh
        return max(Fraction(0), Fraction(sure_dc, sure_ac) - Fraction(dc, ac)) if sure_ac >= 500_000 else Fraction(0)


def minutes_of(us: int) -> int:
    """Returns the nearest number of minutes; half a minute is rounded up."""
    return int(Fraction(us, MINUTE_US) + Fraction(1, 2))


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
    start, end = from_us // MINUTE_US * MINUTE_US, -(-to_us // MINUTE_US) * MINUTE_US
    vehicles = list(vehicle_readings)
    fleet = Fleet(meter_readings, vehicles, mappings, gap_minutes)
    by_meter = fleet.evidence(vehicle_id, start, end)
    evidence = Evidence(*map(sum, zip(Evidence(), *by_meter.values(), strict=True)))
    own = [reading for reading in vehicles if reading.vehicle_id == vehicle_id and start <= reading.ts_us < end]
    return Performance(
        dc_milliwh=sum(reading.dc_milliwh or 0 for reading in own),
        evidence=evidence,
        data_points=len(own),
        avg_soc=average_of_hundredths([reading.soc_centipercent for reading in own]),
        avg_battery_temp=average_of_hundredths([reading.battery_temp_centic for reading in own]),
        status=status_of(evidence, low_efficiency) if by_meter.keys() - {None} else "no_meter",
    )


def status_of(evidence: Evidence, low: Fraction) -> str:
    """Returns the status of a vehicle that was at a meter."""
    ac, dc, unsure = evidence.paired_ac_milliwh, evidence.paired_dc_milliwh, evidence.unsure_milliwh
    if ac < 500_000 or Fraction(dc) < Fraction(evidence.dc_milliwh, 2):
        return "insufficient_data"
    least, most, highest = Fraction(dc - unsure, ac), Fraction(dc + unsure, ac), Fraction(102, 100)
    if least > highest:
        return "impossible"
    if least >= low and most <= highest:
        return "ok"
    sure_ac, sure_dc = ac - evidence.doubtful_ac_milliwh, dc - evidence.doubtful_dc_milliwh
    is_low = most < low and sure_ac >= 500_000 and Fraction(sure_dc + unsure, sure_ac) < low
    return "low_efficiency" if is_low else "insufficient_data"


class Fleet:
    """The devices of some readings."""

    def __init__(
        self,
        meter_readings: Iterable[MeterReading],
        vehicle_readings: Iterable[VehicleReading],
        mappings: Sequence[VehicleMeter],
        gap_minutes: int,
    ) -> None:
        meters: list[_Energy] = [(one.meter_id, None, one.ts_us, one.ac_milliwh or 0) for one in meter_readings]
        vehicles: list[_Energy] = [
            (one.vehicle_id, one.meter_id, one.ts_us, one.dc_milliwh or 0) for one in vehicle_readings
        ]
        names = sorted(
            {name for name, *_ in meters} | {at for _, at, *_ in vehicles if at} | {at for _, at, *_ in mappings}
        )
        self.number = {name: number for number, name in enumerate(names, 1)}
        self.mappings: dict[str, list[Mapping]] = {}
        for vehicle, meter, from_us, to_us in mappings:
            bounds = int(max(from_us, -1e15)), int(min(to_us, 1e16))
            self.mappings.setdefault(vehicle, []).append(Mapping(0, self.number[meter], *bounds))
        self.meter_minutes, self.vehicle_minutes = self._by_device(meters), self._by_device(vehicles)

        def devices(minutes: dict[str, list[Minute]]) -> dict[str, Device]:
            gap_us = gap_minutes * MINUTE_US
            return {
                name: Device(spans_of(rows, self.mappings.get(name, []), gap_us, _LIMIT_MILLIWATT))
                for name, rows in minutes.items()
            }

        self.meters, self.vehicles = devices(self.meter_minutes), devices(self.vehicle_minutes)

    def _by_device(self, readings: list[_Energy]) -> dict[str, list[Minute]]:
        return {
            name: [*self._minutes(one for one in readings if one[0] == name)]
            for name in {name for name, *_ in readings}
        }

    def _minutes(self, readings: Iterable[_Energy]) -> Iterable[Minute]:
        def key(reading: _Energy) -> tuple[int, str]:
            return reading[2] // MINUTE_US, reading[1] or ""

        for (_, meter), together in groupby(sorted(readings, key=lambda one: (*key(one), one[2])), key=key):
            some = [*together]
            instants = [at for _, _, at, _ in some]
            energy = sum(milliwh for *_, milliwh in some)
            yield Minute(min(instants), max(instants), energy, len(some), self.number[meter] if meter else None)

    def evidence(self, vehicle_id: str, start: int, end: int) -> dict[int | None, Evidence]:
        """Returns the vehicle's evidence in a window by meter; None is no meter."""
        own = self.vehicles.get(vehicle_id)
        if own is None:
            return {}
        others = [device for name, device in self.vehicles.items() if name != vehicle_id]
        found: dict[int | None, Evidence] = {}
        for name, meter_id in self.number.items():
            if any(span.meter == meter_id for span in own.over(start, end)):
                twin = Twin(own, self.meters.get(name, Device([])), meter_id, others)
                found[meter_id] = twin.evidence(start, end)
        taking = [span for span in own.over(start, end) if span.meter is None and span.takes]
        if taking:
            unpaired = sum(min(span.end, end) - max(span.start, start) for span in taking)
            found[None] = Evidence(unpaired_us=unpaired)
        return found


def average_of_hundredths(values: Iterable[int | None]) -> Fraction | None:
    """Returns the average, in whole units, of the values that are not None; None when there is none."""
    there = [value for value in values if value is not None]
    return Fraction(sum(there), 100 * len(there)) if there else None
