"""The writer's cache of device ids."""

import msgspec
import psycopg

from app.fleet.registry import register
from app.ingest.batch import Batch, RejectedReading, indices_of, reject
from app.ingest.store.statements import transaction
from app.ingest.written import device_of, members_of
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
        rejected = [
            _rejected(index, reading, field, batch.topics[index] if batch.topics else None)
            for index, reading in zip(indices_of(batch), readings, strict=True)
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
    rejected = reject(index, "too_many_new_devices", field, *device_of(reading))
    rejected.topic = topic
    rejected.payload = msgspec.json.encode(members_of(reading))
    return rejected
