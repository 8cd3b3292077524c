"""Readings over MQTT, through a real broker: the fate of each kind of message."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psycopg
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from psycopg import sql
from structlog.testing import capture_logs
from structlog.typing import EventDict

from app.ingest.mqtt import Consumer
from app.main import create_writer, ingesting
from app.ops.watch import Watch
from app.settings import Settings
from tests.fixtures.broker import Broker, await_published, publish, publishing
from tests.fixtures.commands import command
from tests.fixtures.flood import publish_all
from tests.fixtures.sending import meter, minutes_ago, vehicle
from tests.fixtures.waiting import eventually_here


class Here(NamedTuple):
    """A consumer in this process, and its log."""

    consumer: Consumer
    log: list[EventDict]

    def has_logged(self, event: str) -> bool:
        return any(line["event"] == event for line in self.log)


@asynccontextmanager
async def consuming_here(database_url: str, **settings: Any) -> AsyncIterator[Here]:
    """Runs a consumer in this process, which has subscribed."""
    in_force = Settings(**settings)
    writer = create_writer(database_url, in_force)
    consumer = Consumer(in_force, writer)
    with capture_logs() as log:
        async with ingesting(database_url, in_force, writer, consumer, Watch(database_url, in_force)):
            here = Here(consumer, log)
            await eventually_here(lambda: here.has_logged("mqtt_connected"))
            yield here


def count(connection: psycopg.Connection, table: str) -> int:
    query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
    ((rows,),) = connection.execute(query).fetchall()
    return int(rows)


async def await_rows(connection: psycopg.Connection, **expected: int) -> None:
    """Waits until the tables have so many rows each, and not one more."""
    await eventually_here(lambda: all(count(connection, table) >= rows for table, rows in expected.items()))
    assert {table: count(connection, table) for table in expected} == expected


def of_meters(count: int) -> list[tuple[str, bytes]]:
    """Returns a message of each of M0, M1 and so on."""
    at = minutes_ago(1)
    return [(f"telemetry/meter/M{n}", json.dumps(meter(at, meter_id=f"M{n}")).encode()) for n in range(count)]


def quarantined(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT topic, code, field, stream, length(payload) FROM quarantine WHERE source = 'mqtt' ORDER BY topic, code"
    ).fetchall()


async def test_each_form_is_stored_once(database_url: str, connection: psycopg.Connection, broker: Broker) -> None:
    first, second, third = minutes_ago(3), minutes_ago(2), minutes_ago(1)
    no_id = {"timestamp": first.isoformat(), "kwhConsumedAc": 0.1}
    messages: list[tuple[str, bytes, str | None]] = [
        ("telemetry/meter/M1", json.dumps(no_id).encode(), None),
        ("telemetry/meter/M1", json.dumps([meter(second), meter(third)]).encode(), "application/json; charset=utf-8"),
        ("telemetry/meter/M2", msgspec.msgpack.encode(no_id), None),
        ("telemetry/meter/M9", msgspec.msgpack.encode([meter(first, meter_id="M3")]), "application/msgpack"),
        ("telemetry/meter", b"\n".join(json.dumps(meter(at, meter_id="M4")).encode() for at in (first, second)),
         "application/x-ndjson"),
        ("telemetry/vehicle/V1", json.dumps({"timestamp": first.isoformat(), "kwhDeliveredDc": 0.1}).encode(), None),
        ("telemetry/vehicle/V1", json.dumps(vehicle(second, meterId="M1")).encode(), None),
    ]  # fmt: skip
    async with consuming_here(database_url, mqtt_url=broker.url):
        with publishing(broker) as client:
            await asyncio.to_thread(await_published, [publish(client, *message) for message in 2 * messages])
        await await_rows(connection, meter_reading=7, vehicle_reading=2, meter=4, vehicle=1, quarantine=0)
    meters = connection.execute("SELECT external_id FROM meter ORDER BY 1").fetchall()
    assert meters == [("M1",), ("M2",), ("M3",), ("M4",)]


async def test_whatever_cannot_be_stored_is_in_quarantine_with_its_reason(
    database_url: str, connection: psycopg.Connection, broker: Broker
) -> None:
    now = minutes_ago(1)
    good = json.dumps(meter(now)).encode()
    bad: dict[tuple[str, str, str | None, str | None], tuple[str, bytes, str | None]] = {
        ("telemetry/meter/binary", "malformed_body", None, "meter"): ("binary", bytes(range(256)), None),
        ("telemetry/meter/high", "malformed_body", None, "meter"): ("high", b"\xff\xfe\xfd", None),
        ("telemetry/meter/empty", "empty_batch", None, "meter"): ("empty", b"", None),
        ("telemetry/meter/none", "empty_batch", None, "meter"): ("none", b"[]", None),
        ("telemetry/meter/huge", "malformed_body", None, "meter"): ("huge", b"x" * 10_000_000, None),
        ("telemetry/meter/many", "batch_too_large", None, "meter"): ("many", b"[" + b"," * 1_100_000, None),
        ("telemetry/meter/deep", "malformed_body", None, "meter"): ("deep", b"[" * 100_000, None),
        ("telemetry/meter/deep2", "malformed_body", None, "meter"): ("deep2", b"\x91" * 100_000, None),
        ("telemetry/meter/cut", "malformed_body", None, "meter"): ("cut", good[:-5], None),
        ("telemetry/meter/text", "malformed_body", None, "meter"): ("text", b'"text"', None),
        ("telemetry/meter/form", "unsupported_media_type", None, "meter"): ("form", good, "text/csv"),
        ("telemetry/meter/lie", "malformed_body", None, "meter"): ("lie", good, "application/msgpack"),
        ("telemetry/meter/types", "malformed", "timestamp", "meter"): ("types", b'{"timestamp": true}', None),
        ("telemetry/meter/epoch", "too_old", "timestamp", "meter"): ("epoch", b'{"timestamp": 7}', None),
        ("telemetry/meter/list", "malformed", None, "meter"): ("list", b"[[]]", None),
        ("telemetry/meter/of a vehicle", "invalid_id", "meterId", "meter"): (
            "of a vehicle", json.dumps(vehicle(now)).encode(), None),
        ("telemetry/meter/stream", "missing_field", "kwhConsumedAc", "meter"): (
            "stream", json.dumps(vehicle(now)).encode(), None),
    }  # fmt: skip
    async with consuming_here(database_url, mqtt_url=broker.url):
        with publishing(broker) as client:
            sent = [publish(client, f"telemetry/meter/{name}", *rest) for name, *rest in bad.values()]  # type: ignore[arg-type]
            await asyncio.to_thread(await_published, sent)
            await_published([publish(client, "telemetry/meter/M1", good)])
        await await_rows(connection, meter_reading=1)
        await eventually_here(lambda: count(connection, "quarantine") == len(bad))
    kept = quarantined(connection)
    assert sorted(row[:4] for row in kept) == sorted(bad)
    sizes = {row[0]: row[4] for row in kept}
    assert sizes["telemetry/meter/huge"] == sizes["telemetry/meter/many"] == 64 * 1024
    assert sizes["telemetry/meter/cut"] == len(good) - 5


async def test_a_rejected_reading_stops_no_neighbour(
    database_url: str, connection: psycopg.Connection, broker: Broker
) -> None:
    batch = [meter(minutes_ago(2)), meter(minutes_ago(1), -1), meter(minutes_ago(1))]
    async with consuming_here(database_url, mqtt_url=broker.url):
        with publishing(broker) as client:
            for device in ("M1", "M2"):
                await_published([publish(client, f"telemetry/meter/{device}", json.dumps(batch).encode())])
        await await_rows(connection, meter_reading=2, quarantine=2)
    assert [row[:3] for row in quarantined(connection)] == [
        (f"telemetry/meter/{device}", "energy_out_of_range", "kwhConsumedAc") for device in ("M1", "M2")
    ]


async def test_a_topic_below_the_level_of_the_device_names_none_until_the_setting_says_which(
    database_url: str, connection: psycopg.Connection, broker: Broker
) -> None:
    """Two chargers whose topics end alike were once one meter, and the readings of one vanished as duplicates."""
    at = minutes_ago(2).isoformat()
    messages = [
        (f"telemetry/meter/site9/charger{n}/energy", json.dumps({"timestamp": at, "kwhConsumedAc": kwh}).encode())
        for n, kwh in ((1, 0.11), (2, 0.17))
    ]
    chargers = "SELECT external_id, ac_milliwh FROM meter_reading JOIN meter ON id = meter_id ORDER BY 1"
    async with consuming_here(database_url, mqtt_url=broker.url):
        await asyncio.to_thread(publish_all, broker.port, messages)
        await await_rows(connection, quarantine=2)
    assert [row[:3] for row in quarantined(connection)] == [
        (topic, "no_device_in_topic", "meterId") for topic, _ in messages
    ]
    assert connection.execute(chargers.encode()).fetchall() == []

    telling = {"WATTLINE_MQTT_METER_TOPIC": "telemetry/meter/+/{id}/energy", "DATABASE_URL": database_url}
    for still, environ in ((2, telling | {"WATTLINE_MQTT_METER_TOPIC": "telemetry/meter/#"}), (0, telling)):
        driven = await asyncio.to_thread(command, "quarantine", "redrive", **environ)
        assert f", {still} still rejected" in driven.stdout, driven
    assert connection.execute(chargers.encode()).fetchall() == [("charger1", 110_000), ("charger2", 170_000)]

    connection.execute("TRUNCATE meter_reading")
    by_level = {"mqtt_client_id": "by-level", "mqtt_meter_topic": telling["WATTLINE_MQTT_METER_TOPIC"]}
    async with consuming_here(database_url, mqtt_url=broker.url, **by_level):
        await asyncio.to_thread(publish_all, broker.port, messages)
        await await_rows(connection, meter_reading=2, quarantine=0)
    assert connection.execute(chargers.encode()).fetchall() == [("charger1", 110_000), ("charger2", 170_000)]


async def test_topics_of_former_settings_are_read_by_what_the_readings_say(
    database_url: str, connection: psycopg.Connection, broker: Broker
) -> None:
    async with consuming_here(database_url, mqtt_url=broker.url, mqtt_meter_topic="old/#"):
        pass
    async with consuming_here(database_url, mqtt_url=broker.url):
        with publishing(broker) as client:
            payload = json.dumps([meter(minutes_ago(1)), vehicle(minutes_ago(1))]).encode()
            await_published([publish(client, "old/anything", payload)])
        await await_rows(connection, meter_reading=1, vehicle_reading=1, quarantine=0)


async def test_a_message_on_which_the_store_fails_goes_to_quarantine_and_stops_no_other(
    database_url: str, connection: psycopg.Connection, broker: Broker
) -> None:
    """The store fails as it would with a bug."""
    connection.execute("ALTER TABLE meter ADD CONSTRAINT bug CHECK (external_id != 'M3')")
    messages = of_meters(9)
    async with consuming_here(database_url, mqtt_url=broker.url):
        await asyncio.to_thread(publish_all, broker.port, messages)
        await await_rows(connection, meter_reading=8, quarantine=1)
    assert quarantined(connection)[0][:2] == ("telemetry/meter/M3", "internal_error")


async def test_a_fault_that_passes_sends_nothing_to_quarantine(
    database_url: str, connection: psycopg.Connection, broker: Broker
) -> None:
    """The fault is a missing right: everything waits until it is granted."""
    connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN RAISE insufficient_privilege USING MESSAGE = 'not now'; END $$"
    )
    connection.execute("CREATE TRIGGER refuse BEFORE INSERT ON meter_state EXECUTE FUNCTION refuse()")
    batch = [meter(minutes_ago(1), meter_id=f"M{n}", pad="x" * 1_000) for n in range(100)]
    async with consuming_here(database_url, mqtt_url=broker.url) as here:
        await asyncio.to_thread(publish_all, broker.port, [("telemetry/meter/x", json.dumps(batch).encode())] * 2)
        await eventually_here(lambda: here.has_logged("mqtt_store_waits"))
        await asyncio.to_thread(connection.execute, "DROP TRIGGER refuse ON meter_state")
        await await_rows(connection, meter_reading=100, quarantine=0)


async def test_of_what_is_too_much_for_a_slow_database_less_is_tried(
    database_url: str, connection: psycopg.Connection, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.ingest.mqtt.FIRST_PAUSE_SECONDS", 0.05)
    connection.execute(
        """
        CREATE FUNCTION tire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF (SELECT count(*) FROM new) > 300 THEN RAISE EXCEPTION USING ERRCODE = 'transaction_timeout'; END IF;
            RETURN NULL;
        END $$
        """
    )
    connection.execute(
        "CREATE TRIGGER tire AFTER INSERT ON meter_state REFERENCING NEW TABLE AS new EXECUTE FUNCTION tire()"
    )
    messages = of_meters(3_000)
    async with consuming_here(database_url, mqtt_url=broker.url) as here:
        with connection.transaction():
            # The lock makes one group of all that comes behind the first message.
            await asyncio.to_thread(connection.execute, "LOCK TABLE meter IN SHARE MODE")
            await asyncio.to_thread(publish_all, broker.port, messages)
            # Where publishing takes longer than a transaction may wait, a group has failed before all have come.
            await eventually_here(lambda: len(here.consumer._inbox) > 600 or here.has_logged("mqtt_store_waits"))
        await await_rows(connection, meter_reading=3_000, quarantine=0)
        assert here.has_logged("mqtt_store_waits")


async def test_what_the_client_library_cannot_read_is_in_quarantine_and_stops_nothing(
    database_url: str, connection: psycopg.Connection, broker: Broker
) -> None:
    """It has U+FEFF in a property, which MQTT allows, Mosquitto passes on, and paho refuses."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.UserProperty = ("note", "\ufeffx")
    good = json.dumps(meter(minutes_ago(1))).encode()
    async with consuming_here(database_url, mqtt_url=broker.url):
        with publishing(broker) as client:
            unreadable = [client.publish("telemetry/meter/M1", good, qos, properties=properties) for qos in (1, 0)]
            sent = [*unreadable, publish(client, "telemetry/meter/M2", good)]
            await asyncio.to_thread(await_published, sent)
        await await_rows(connection, meter_reading=1, quarantine=1)
    ((topic, code, *_),) = quarantined(connection)
    assert (topic, code) == ("telemetry/meter/M1", "malformed_body")
    assert connection.execute("SELECT times FROM quarantine").fetchall() == [(2,)]


async def test_a_broker_that_has_to_wait_for_long_is_left_and_found_again(
    database_url: str, connection: psycopg.Connection, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.ingest.mqtt.INBOX_BYTES", 10_000)
    monkeypatch.setattr("app.broker.LONGEST_HOLD_SECONDS", 0.5)
    messages = of_meters(200)
    async with consuming_here(database_url, mqtt_url=broker.url) as here:
        with connection.transaction():
            await asyncio.to_thread(connection.execute, "LOCK TABLE meter IN SHARE MODE")
            await asyncio.to_thread(publish_all, broker.port, messages)
            await eventually_here(lambda: here.has_logged("mqtt_held_back"))
        await await_rows(connection, meter_reading=200, quarantine=0)
        assert "Keep alive" not in str(here.log)


async def test_topics_of_any_length_take_bounded_memory_and_room(
    database_url: str, connection: psycopg.Connection, broker: Broker
) -> None:
    long = "telemetry/meter/" + "x" * 60_000
    async with consuming_here(database_url, mqtt_url=broker.url) as here:
        with publishing(broker) as client:
            sent = [publish(client, long, b"{}"), publish(client, long, json.dumps(meter(minutes_ago(1))).encode())]
            await asyncio.to_thread(await_published, sent)
        await await_rows(connection, meter_reading=1, quarantine=1)
        assert here.consumer._topics._known.cache_info().currsize == 0
    assert connection.execute("SELECT length(topic), device FROM quarantine").fetchall() == [(256, None)]


async def test_large_messages_make_the_broker_wait(
    database_url: str, connection: psycopg.Connection, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are far more than the inbox holds, and all are stored."""
    monkeypatch.setattr("app.ingest.mqtt.INBOX_BYTES", 100_000)
    batch = [meter(minutes_ago(1), meter_id=f"M{n}", pad="x" * 1_000) for n in range(100)]
    async with consuming_here(database_url, mqtt_url=broker.url) as here:
        sending = asyncio.create_task(
            asyncio.to_thread(publish_all, broker.port, [("telemetry/meter/x", json.dumps(batch).encode())] * 200)
        )
        most = 0
        while not sending.done() or here.consumer._inbox:
            most = max(most, here.consumer._inbox_bytes)
            await asyncio.sleep(0.001)
        await await_rows(connection, meter_reading=100, quarantine=0)
    assert most < 1_000_000


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """Makes ca.pem, and server.pem and client.pem signed by it, each with its key."""
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "1"]
    openssl(tmp_path, "req", "-x509", *new, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"]
        openssl(tmp_path, "req", "-x509", *new, *signed, "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                "-addext", "basicConstraints=CA:FALSE", "-out", f"{name}.pem")  # fmt: skip
    subprocess.run(
        ["mosquitto_passwd", "-b", "-c", tmp_path / "passwords", "user", "p@ss/w:rd"], check=True, capture_output=True
    )
    return tmp_path


# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_tls_with_client_certificate_and_password(
    database_url: str, connection: psycopg.Connection, certificates: Path, broker: Broker
) -> None:
    """A second listener needs all three; publishers use the first one."""
    passwords = certificates / "passwords"
    port = broker.add_listener(
        "allow_anonymous false", f"password_file {passwords}", "require_certificate true",
        *(f"{name} {certificates / file}" for name, file in
          {"cafile": "ca.pem", "certfile": "server.pem", "keyfile": "server.key"}.items()),
    )  # fmt: skip
    files = {
        "mqtt_ca_file": certificates / "ca.pem",
        "mqtt_cert_file": certificates / "client.pem",
        "mqtt_key_file": certificates / "client.key",
    }
    at = minutes_ago(1)
    for number, (user, more) in enumerate([("user:p%40ss%2Fw%3Ard", {}), ("user", {"mqtt_password": "p@ss/w:rd"})], 1):
        async with consuming_here(database_url, mqtt_url=f"mqtts://{user}@127.0.0.1:{port}", **files, **more):
            messages = [("telemetry/meter/M1", json.dumps(meter(at - timedelta(minutes=number))).encode())]
            # There are many at once, since nothing else reports what TLS has already read from the socket.
            await asyncio.to_thread(publish_all, broker.port, 2_000 * messages)
            await await_rows(connection, meter_reading=number)
    right: dict[str, Any] = {"mqtt_url": f"mqtts://user@127.0.0.1:{port}", "mqtt_password": "p@ss/w:rd", **files}
    wrongs: list[dict[str, Any]] = [{"mqtt_password": "wrong"}, {"mqtt_ca_file": certificates / "client.pem"}]
    for wrong in wrongs:
        settings = Settings(**right | wrong)
        with capture_logs() as log:
            consumer = Consumer(settings, create_writer(database_url, settings))
            running = asyncio.create_task(consumer.run())
            await eventually_here(lambda: any(line["event"] == "mqtt_away" for line in log))
            consumer.close()
            await running
        reason = str(log[0]["reason"])
        assert "Not authorized" in reason or "CERTIFICATE_VERIFY_FAILED" in reason
        assert "p@ss" not in str(log)
