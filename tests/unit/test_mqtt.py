"""The meaning of topics for their readings, and the merging of batches into one."""

import pytest

from app.broker import Message
from app.ingest.batch import Batch, reject
from app.ingest.mqtt import Topics, merged
from app.ingest.store.device_ids import DeviceIds
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


def on(topic: str) -> Message:
    return Message(1, 1, topic, None, b"")


def test_merged_batches_keep_all_readings_in_their_order() -> None:
    rejected = reject(1, "malformed", None, None)
    one = Batch(2, [MeterReading("M1", 1, 1)], [], [rejected])
    two = Batch(2, [MeterReading("M2", 1, 1)], [VehicleReading("V1", 1, 1)], [], of_vehicle=b"\1\0")
    for _ in range(2):  # a group that fails is merged again, in halves
        whole = merged([(on("two"), two), (on("one"), one), (on("one"), one)])
        assert (whole.received, whole.of_vehicle) == (6, b"\1\0\0\0\0\0")
        assert whole.meter == two.meter + one.meter + one.meter
        assert whole.vehicle == two.vehicle
        assert [reading.index for reading in whole.rejected] == [3, 5]


def test_of_merged_batches_the_readings_of_devices_beyond_the_limit_are_rejected() -> None:
    bad = Batch(1, [], [], [reject(0, "malformed", None, None)])
    mixed = Batch(2, [MeterReading("M2", 1, 1)], [VehicleReading("V1", 1, 1)], [], of_vehicle=b"\1\0")
    vehicle = Batch(1, [], [VehicleReading("V2", 1, 1)], [])
    whole = merged([(on("bad"), bad), (on("mixed"), mixed), (on("bad"), bad), (on("vehicle"), vehicle)])
    ids = DeviceIds(None)
    ids.vehicle["V2"] = 1
    ids.reject_unknown(whole)
    assert [(one.index, one.code, one.device, one.topic) for one in whole.rejected] == [
        (0, "malformed", None, None),
        (1, "too_many_new_devices", "V1", "mixed"),
        (2, "too_many_new_devices", "M2", "mixed"),
        (3, "malformed", None, None),
    ]
    assert whole.vehicle == vehicle.vehicle
