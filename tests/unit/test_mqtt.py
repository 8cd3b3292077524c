"""What a topic says about its readings, and how batches become one."""

import pytest

from app.ingest.check import Batch, rejected
from app.ingest.mqtt import Topics, merged
from app.settings import Settings
from app.telemetry.reading import MeterReading, Stream, VehicleReading


@pytest.mark.parametrize(
    ("meter_topic", "topic", "stream", "device_id"),
    [
        ("telemetry/meter/#", "telemetry/meter/M1", Stream.METER, "M1"),
        ("telemetry/meter/#", "telemetry/meter/site/M1", Stream.METER, "M1"),
        ("telemetry/meter/#", "telemetry/meter", Stream.METER, None),
        ("telemetry/meter/#", "telemetry/meter/", Stream.METER, ""),
        ("telemetry/meter/#", "telemetry/vehicle/V1", Stream.VEHICLE, "V1"),
        ("telemetry/meter/#", "elsewhere/M1", None, None),
        ("site/+/meter/+", "site/7/meter/M1", Stream.METER, "M1"),
        ("meters", "meters", Stream.METER, None),
        # Both patterns match: the readings have to tell.
        ("telemetry/#", "telemetry/vehicle/V1", None, None),
    ],
)
def test_a_topic_names_stream_and_device(
    meter_topic: str, topic: str, stream: Stream | None, device_id: str | None
) -> None:
    assert Topics(Settings(mqtt_meter_topic=meter_topic)).of(topic) == (stream, device_id)


def test_equal_topics_are_subscribed_once() -> None:
    assert Topics(Settings(mqtt_meter_topic="t/#", mqtt_vehicle_topic="t/#")).filters == ["t/#"]


def test_merged_batches_keep_all_readings_in_their_order() -> None:
    refused = rejected(1, "malformed", None, None)
    one = Batch(2, [MeterReading("M1", 1, 1)], [], [refused])
    two = Batch(2, [MeterReading("M2", 1, 1)], [VehicleReading("V1", 1, 1)], [])
    assert merged([one, two]) == Batch(4, one.meter + two.meter, two.vehicle, [refused])
