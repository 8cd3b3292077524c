"""A reading as a client would have written it: the way back from the store's units, which check.py goes forth."""

from typing import Any

from app.telemetry.instant import EPOCH_US, instant
from app.telemetry.reading import MeterReading, Stream, VehicleReading


def members_of(reading: MeterReading | VehicleReading) -> dict[str, Any]:
    """Returns the members that the reading has, by their JSON names."""
    timestamp = instant(reading.ts_us - EPOCH_US)
    values: dict[str, Any] = {"meterId": reading.meter_id, "timestamp": timestamp}
    if isinstance(reading, MeterReading):
        values |= {
            "kwhConsumedAc": _kwh(reading.ac_milliwh),
            "kwhRegisterAc": _kwh(reading.register_milliwh),
            "voltage": _whole(reading.voltage_centiv),
        }
    else:
        values |= {
            "vehicleId": reading.vehicle_id,
            "kwhDeliveredDc": _kwh(reading.dc_milliwh),
            "kwhRegisterDc": _kwh(reading.register_milliwh),
            "soc": _whole(reading.soc_centipercent),
            "batteryTemp": _whole(reading.battery_temp_centic),
        }
    return {name: value for name, value in values.items() if value is not None}


def device_of(reading: MeterReading | VehicleReading) -> tuple[Stream, str]:
    """Returns the stream and the device of a reading."""
    if isinstance(reading, MeterReading):
        return Stream.METER, reading.meter_id
    return Stream.VEHICLE, reading.vehicle_id


def _kwh(milliwh: int | None) -> float | None:
    return None if milliwh is None else milliwh / 1_000_000


def _whole(hundredths: int | None) -> float | None:
    return None if hundredths is None else hundredths / 100
