"""The writer's cache of device ids."""

from datetime import datetime

import msgspec
import psycopg

from app.fleet.registry import register
from app.ingest.batch import Batch, RejectedReading, reject
from app.ingest.store.statements import transaction
from app.telemetry.instant import EPOCH_US, instant
from app.telemetry.reading import MeterReading, Stream, VehicleReading


class DeviceIds:
    """The id of each external id, by stream.

    An id enters only after the COMMIT of its registration. No id ever changes: after a rename, the former name still
    belongs to the device.
    """

    def __init__(self, new_per_hour: int | None) -> None:
        self.meter: dict[str, int] = {}
        self.vehicle: dict[str, int] = {}
        self._new_per_hour = new_per_hour

    async def learn(self, connection: psycopg.AsyncConnection, batches: list[Batch]) -> None:
        """Learns the ids of all devices that the batches name; registers new devices within the limit."""
        meters = {reading.meter_id for batch in batches for reading in batch.meter}
        meters |= {reading.meter_id for batch in batches for reading in batch.vehicle if reading.meter_id}
        vehicles = {reading.vehicle_id for batch in batches for reading in batch.vehicle}
        for stream, known, named in ((Stream.METER, self.meter, meters), (Stream.VEHICLE, self.vehicle, vehicles)):
            if unknown := named - known.keys():
                async with transaction(connection):
                    ids = await register(connection, stream, unknown, per_hour=self._new_per_hour)
                known |= ids

    def reject_unknown(self, batch: Batch) -> None:
        """Moves the readings of devices beyond the limit to the batch's rejected readings."""
        readings: list[MeterReading | VehicleReading] = [*batch.meter, *batch.vehicle]
        if not any(map(self._unknown, readings)):
            return
        taken = sorted(set(range(batch.received)) - {reading.index for reading in batch.rejected})
        if batch.of_vehicle:
            taken.sort(key=batch.of_vehicle.__getitem__)
        rejected = [
            _rejected(index, reading, field, batch.topics[index] if batch.topics else None)
            for index, reading in zip(taken, readings, strict=True)
            if (field := self._unknown(reading))
        ]
        batch.meter = [reading for reading in batch.meter if not self._unknown(reading)]
        batch.vehicle = [reading for reading in batch.vehicle if not self._unknown(reading)]
        batch.rejected = sorted(batch.rejected + rejected, key=lambda reading: reading.index)

    def _unknown(self, reading: MeterReading | VehicleReading) -> str | None:
        """Returns the field that names a device without an id."""
        if isinstance(reading, VehicleReading) and reading.vehicle_id not in self.vehicle:
            return "vehicleId"
        return "meterId" if reading.meter_id and reading.meter_id not in self.meter else None


def _rejected(index: int, reading: MeterReading | VehicleReading, field: str, topic: str | None) -> RejectedReading:
    """Rejects a reading. Its payload is written anew: the body is gone when the writer comes to it."""
    timestamp = instant(reading.ts_us - EPOCH_US)
    values: dict[str, str | datetime | float | None] = {"meterId": reading.meter_id, "timestamp": timestamp}
    if isinstance(reading, MeterReading):
        stream, device = Stream.METER, reading.meter_id
        values |= {
            "kwhConsumedAc": _kwh(reading.ac_milliwh),
            "kwhRegisterAc": _kwh(reading.register_milliwh),
            "voltage": _whole(reading.voltage_centiv),
        }
    else:
        stream, device = Stream.VEHICLE, reading.vehicle_id
        values |= {
            "vehicleId": reading.vehicle_id,
            "kwhDeliveredDc": _kwh(reading.dc_milliwh),
            "kwhRegisterDc": _kwh(reading.register_milliwh),
            "soc": _whole(reading.soc_centipercent),
            "batteryTemp": _whole(reading.battery_temp_centic),
        }
    rejected = reject(index, "too_many_new_devices", field, stream, device)
    rejected.topic = topic
    rejected.payload = msgspec.json.encode({name: value for name, value in values.items() if value is not None})
    return rejected


def _kwh(milliwh: int | None) -> float | None:
    return None if milliwh is None else milliwh / 1_000_000


def _whole(hundredths: int | None) -> float | None:
    return None if hundredths is None else hundredths / 100
