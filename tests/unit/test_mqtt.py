"""The meaning of topics for their readings, and the merging of batches into one."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from app.broker import Message
from app.ingest.batch import REJECTIONS, Batch, reject
from app.ingest.mqtt import decode_message, merged
from app.ingest.store.device_ids import DeviceIds
from app.ingest.topics import Topics
from app.settings import Settings
from app.telemetry.reading import MeterReading, Stream, VehicleReading


@pytest.mark.parametrize(
    ("meter_topic", "topic", "stream", "device_id"),
    [
        ("telemetry/meter/#", "telemetry/meter/M1", Stream.METER, "M1"),
        ("telemetry/meter/#", "telemetry/meter/site/M1", Stream.METER, None),
        ("telemetry/meter/#", "telemetry/meter/site9/charger1/energy", Stream.METER, None),
        ("telemetry/meter/#", "telemetry/meter/M1/", Stream.METER, None),
        ("telemetry/meter/#", "telemetry/meter", Stream.METER, None),
        ("telemetry/meter/#", "telemetry/meter/", Stream.METER, ""),
        ("telemetry/meter/#", "telemetry/vehicle/V1", Stream.VEHICLE, "V1"),
        ("telemetry/meter/#", "elsewhere/M1", None, None),
        ("site/+/meter/+", "site/7/meter/M1", Stream.METER, "M1"),
        ("+", "M1", Stream.METER, "M1"),
        ("#", "M1", Stream.METER, "M1"),
        ("telemetry/meter/+/{id}/energy", "telemetry/meter/site9/charger1/energy", Stream.METER, "charger1"),
        ("telemetry/meter/+/{id}/energy", "telemetry/meter/site9/charger1/power", None, None),
        ("telemetry/meter/{id}/#", "telemetry/meter/M1", Stream.METER, "M1"),
        ("telemetry/meter/{id}/#", "telemetry/meter/M1/energy/total", Stream.METER, "M1"),
        ("{id}/meter", "M1/meter", Stream.METER, "M1"),
        ("site/+/{id}", "site/7/M1", Stream.METER, "M1"),
        ("site/+/energy", "site/7/energy", Stream.METER, None),
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


def test_the_level_of_the_device_is_subscribed_for_all_devices() -> None:
    settings = Settings(mqtt_meter_topic="m/+/{id}/energy", mqtt_vehicle_topic="v/{id}/#")
    assert Topics(settings).filters == ["m/+/+/energy", "v/+/#"]


def charger(topic: str, reading: dict[str, Any], **settings: Any) -> Batch:
    message = Message(1, 1, topic, None, json.dumps(reading).encode())
    return decode_message(message, Topics(Settings(**settings)))


def test_chargers_whose_topics_end_alike_are_two_meters_or_refused_by_name() -> None:
    reading = {"timestamp": datetime.now(UTC).isoformat(), "kwhConsumedAc": 0.11}
    for charger_id in ("charger1", "charger2"):
        topic = f"telemetry/meter/site9/{charger_id}/energy"
        (refused,) = charger(topic, reading).rejected
        assert (refused.code, refused.field, refused.device, refused.topic) == (
            "no_device_in_topic",
            "meterId",
            None,
            topic,
        )
        assert refused.message == REJECTIONS["no_device_in_topic"]
        for setting in ("telemetry/meter/+/{id}/energy", "telemetry/meter/+/{id}/#"):
            (stored,) = charger(topic, reading, mqtt_meter_topic=setting).meter
            assert stored.meter_id == charger_id
        (named,) = charger(topic, reading | {"meterId": "M1"}).meter
        assert named.meter_id == "M1"


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
