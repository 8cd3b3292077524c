"""The topics of readings over MQTT: the stream that each carries, and its level that names the device."""

from functools import lru_cache

from paho.mqtt.client import topic_matches_sub

from app.ingest.batch import REJECTIONS, Batch
from app.settings import ID_LEVEL, Settings
from app.telemetry.reading import Stream

# Longer topics are matched each time and cut in quarantine: MQTT allows 64 KiB, and each device has a topic.
LONGEST_TOPIC = 256


class Topics:
    """The stream that each topic carries, and the device that it names."""

    def __init__(self, settings: Settings) -> None:
        of_stream = {Stream.METER: settings.mqtt_meter_topic, Stream.VEHICLE: settings.mqtt_vehicle_topic}
        self._levels = {stream: setting.split("/") for stream, setting in of_stream.items()}
        self._filters = {stream: setting.replace(ID_LEVEL, "+") for stream, setting in of_stream.items()}
        self.filters = sorted(set(self._filters.values()))
        # Each device has its topic, and matching a topic takes longer than decoding its reading.
        self._known = lru_cache(maxsize=100_000)(self._of)

    def of(self, topic: str) -> tuple[Stream | None, str | None]:
        """Returns the stream, None when the readings decide, and the device, None when only the readings can name it.

        A topic of neither stream comes from a subscription that the session still has from earlier settings.
        """
        return self._known(topic) if len(topic) <= LONGEST_TOPIC else self._of(topic)

    def _of(self, topic: str) -> tuple[Stream | None, str | None]:
        streams = [stream for stream, pattern in self._filters.items() if topic_matches_sub(pattern, topic)]
        if len(streams) != 1:
            return None, None
        levels, setting = topic.split("/"), self._levels[streams[0]]
        if ID_LEVEL in setting:
            return streams[0], levels[setting.index(ID_LEVEL)]
        # Below a `#`, one level alone can be the device: of `site9/charger1/energy`, any may be.
        named = setting[-1] in ("#", "+") and len(levels) == len(setting)
        return streams[0], levels[-1] if named else None


def reject_unnamed(batch: Batch, stream: Stream) -> None:
    """Gives another reason to the rejected readings that name no device, where their topic names none either."""
    for reading in batch.rejected:
        if (reading.code, reading.field) == ("missing_field", f"{stream}Id"):
            reading.code, reading.message = "no_device_in_topic", REJECTIONS["no_device_in_topic"]
