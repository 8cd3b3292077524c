"""The writer's cache of device ids."""

import psycopg

from app.fleet.registry import register
from app.ingest.check import Batch
from app.ingest.insert import transaction
from app.telemetry.reading import Stream


class DeviceIds:
    """External id -> id, for each stream. An id enters only after the COMMIT of its registration; none ever changes."""

    def __init__(self) -> None:
        self.meter: dict[str, int] = {}
        self.vehicle: dict[str, int] = {}

    async def learn(self, connection: psycopg.AsyncConnection, batches: list[Batch]) -> None:
        """Makes the ids of all devices that the batches name known, registering new devices."""
        meters = {reading.meter_id for batch in batches for reading in batch.meter}
        meters |= {reading.meter_id for batch in batches for reading in batch.vehicle if reading.meter_id}
        vehicles = {reading.vehicle_id for batch in batches for reading in batch.vehicle}
        for stream, known, named in ((Stream.METER, self.meter, meters), (Stream.VEHICLE, self.vehicle, vehicles)):
            if unknown := named - known.keys():
                async with transaction(connection):
                    ids = await register(connection, stream, unknown)
                known |= ids
