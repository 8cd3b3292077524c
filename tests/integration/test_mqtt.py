"""Readings over MQTT, through a real broker: what becomes of each kind of message."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import sql
from structlog.testing import capture_logs

from app.ingest.mqtt import Consumer
from app.ingest.writer import Writer
from app.main import ingesting
from app.settings import Settings
from tests.fixtures.broker import Broker, await_published, publish, publishing
from tests.fixtures.flood import Flood
from tests.fixtures.sending import meter, minutes_ago, vehicle


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(0.02)


@asynccontextmanager
async def consuming_here(database_url: str, **settings: Any) -> AsyncIterator[Consumer]:
    """A consumer in this process, once it has subscribed."""
    writer = Writer(database_url, queue_max_readings=200_000, new_devices_per_hour=20_000)
    consumer = Consumer(Settings(**settings), writer)
    with capture_logs() as log:
        async with ingesting(database_url, writer, consumer):
            await until(lambda: any(line["event"] == "mqtt_connected" for line in log))
            yield consumer


def count(connection: psycopg.Connection, table: str) -> int:
    query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
    ((rows,),) = connection.execute(query).fetchall()
    return int(rows)


async def await_rows(connection: psycopg.Connection, **expected: int) -> None:
    """Until the tables have so many rows each, and not one more."""
    await until(lambda: all(count(connection, table) >= rows for table, rows in expected.items()))
    assert {table: count(connection, table) for table in expected} == expected


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
        ("telemetry/meter/site/M2", msgspec.msgpack.encode(no_id), None),
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
        ("telemetry/meter/types", "malformed", "timestamp", "meter"): ("types", b'{"timestamp": 7}', None),
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
        await until(lambda: count(connection, "quarantine") == len(bad))
    kept = quarantined(connection)
    assert sorted(row[:4] for row in kept) == sorted(bad)
    sizes = {row[0]: row[4] for row in kept}
    assert sizes["telemetry/meter/huge"] == sizes["telemetry/meter/many"] == 64 * 1024
    assert sizes["telemetry/meter/cut"] == len(good) - 5


async def test_a_rejected_reading_stops_no_neighbour(
    database_url: str, connection: psycopg.Connection, broker: Broker
) -> None:
    batch = [meter(minutes_ago(2)), meter(minutes_ago(1), voltage=-1), meter(minutes_ago(1))]
    async with consuming_here(database_url, mqtt_url=broker.url):
        with publishing(broker) as client:
            for device in ("M1", "M2"):
                await_published([publish(client, f"telemetry/meter/{device}", json.dumps(batch).encode())])
        await await_rows(connection, meter_reading=2, quarantine=2)
    assert [row[:3] for row in quarantined(connection)] == [
        (f"telemetry/meter/{device}", "voltage_out_of_range", "voltage") for device in ("M1", "M2")
    ]


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
    """Such as a bug would do."""
    connection.execute("ALTER TABLE meter ADD CONSTRAINT bug CHECK (external_id != 'M3')")
    messages = [
        (f"telemetry/meter/M{n}", json.dumps(meter(minutes_ago(1), meter_id=f"M{n}")).encode()) for n in range(9)
    ]
    async with consuming_here(database_url, mqtt_url=broker.url):
        flood = Flood(broker.port)
        await asyncio.to_thread(flood.publish, messages)
        flood.close()
        await await_rows(connection, meter_reading=8, quarantine=1)
    assert quarantined(connection)[0][:2] == ("telemetry/meter/M3", "internal_error")


async def test_large_messages_make_the_broker_wait(
    database_url: str, connection: psycopg.Connection, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far more than the inbox holds; all of it is stored."""
    monkeypatch.setattr("app.ingest.mqtt.INBOX_BYTES", 100_000)
    batch = [meter(minutes_ago(1), meter_id=f"M{n}", pad="x" * 1_000) for n in range(100)]
    async with consuming_here(database_url, mqtt_url=broker.url) as consumer:
        flood = Flood(broker.port)
        sending = asyncio.create_task(
            asyncio.to_thread(flood.publish, [("telemetry/meter/x", json.dumps(batch).encode())] * 200)
        )
        most = 0
        while not sending.done() or consumer._inbox:
            most = max(most, consumer._inbox_bytes)
            await asyncio.sleep(0.001)
        await await_rows(connection, meter_reading=100, quarantine=0)
        flood.close()
    assert most < 1_000_000


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """ca.pem, and server.pem and client.pem signed by it, each with its key."""
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
    """A second listener, for which all three are needed; publishers use the first."""
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
    flood = Flood(broker.port)
    for minute, (user, more) in enumerate([("user:p%40ss%2Fw%3Ard", {}), ("user", {"mqtt_password": "p@ss/w:rd"})], 1):
        async with consuming_here(database_url, mqtt_url=f"mqtts://{user}@127.0.0.1:{port}", **files, **more):
            messages = [("telemetry/meter/M1", json.dumps(meter(minutes_ago(minute))).encode())]
            # Many at once, for what TLS has read from the socket nobody else announces.
            await asyncio.to_thread(flood.publish, 2_000 * messages)
            await await_rows(connection, meter_reading=minute)
    flood.close()
    right: dict[str, Any] = {"mqtt_url": f"mqtts://user@127.0.0.1:{port}", "mqtt_password": "p@ss/w:rd", **files}
    wrongs: list[dict[str, Any]] = [{"mqtt_password": "wrong"}, {"mqtt_ca_file": certificates / "client.pem"}]
    for wrong in wrongs:
        settings = Settings(**right | wrong)
        with capture_logs() as log:
            consumer = Consumer(settings, Writer(database_url, queue_max_readings=200_000, new_devices_per_hour=20_000))
            running = asyncio.create_task(consumer.run())
            await until(lambda: any(line["event"] == "mqtt_away" for line in log))
            consumer.close()
            await running
        reason = str(log[0]["reason"])
        assert "Not authorized" in reason or "CERTIFICATE_VERIFY_FAILED" in reason
        assert "p@ss" not in str(log)
