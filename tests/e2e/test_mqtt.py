"""Acknowledged means committed, over MQTT: whatever is killed or stopped, each reading is stored exactly once."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import psycopg
import pytest

from app.migrate import migrate
from app.postgres.embedded import running
from tests.fixtures.broker import Broker, ConsumerProcess, consuming
from tests.fixtures.database import PLAIN_SETTINGS, SETTINGS, available_engines, await_nobody, lock_waits
from tests.fixtures.engines import on_plain
from tests.fixtures.flood import publish_all
from tests.fixtures.service import serving
from tests.fixtures.waiting import DEADLINE_S, eventually

Messages = list[tuple[str, bytes]]


class OwnDatabase:
    """A server of the test's own, which the test can stop."""

    def __init__(self, engine: str, directory: Path) -> None:
        self._engine, self._directory = engine, directory
        self._stack = ExitStack()
        self.start()
        migrate(self.url, engine=engine)  # type: ignore[arg-type]

    def start(self) -> None:
        pg_bin = available_engines()[self._engine].bin
        settings = SETTINGS if self._engine == "timescale" else PLAIN_SETTINGS
        self.url = self._stack.enter_context(running(self._directory, pg_bin=pg_bin, settings=settings))

    def stop(self) -> None:
        self._stack.close()


@pytest.fixture
def own_database(engine: str, tmp_path: Path) -> Iterator[OwnDatabase]:
    database = OwnDatabase(engine, tmp_path / "database")
    yield database
    database.stop()


def messages(count: int, *, devices: int = 1000, first: int = 0) -> Messages:
    """Returns single readings of both streams, all different; every tenth comes twice."""
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=5)
    sent = []
    for n in range(first, first + count):
        at = (start + timedelta(milliseconds=n)).isoformat()
        stream, energy = ("meter", "kwhConsumedAc") if n % 2 else ("vehicle", "kwhDeliveredDc")
        message = (f"telemetry/{stream}/d{n % devices}", json.dumps({"timestamp": at, energy: n / 1e6}).encode())
        sent += [message, message] if n % 10 == 0 else [message]
    return sent


def energies(connection: psycopg.Connection) -> list[int]:
    rows = connection.execute("SELECT ac_milliwh FROM meter_reading UNION ALL SELECT dc_milliwh FROM vehicle_reading")
    return sorted(energy for (energy,) in rows)


def await_stored(url: str, count: int, seconds: float = DEADLINE_S) -> None:
    """Waits until readings 0 to `count` are stored, none twice, and none in quarantine."""
    with psycopg.connect(url, autocommit=True) as connection:
        eventually(lambda: len(energies(connection)) >= count, seconds, shown=lambda: len(energies(connection)))
        assert energies(connection) == list(range(count))
        assert connection.execute("SELECT count(*) FROM quarantine").fetchall() == [(0,)]


def ordeal(database: OwnDatabase, broker: Broker, count: int, kills: int, away_seconds: float) -> None:
    """Publishes readings while the consumer is killed, and the broker and the database are stopped once."""
    seed = time.time_ns() % 1_000_000
    print(f"seed: {seed}")  # noqa: T201 - pytest shows it with a failure
    random = Random(seed)
    parts = kills + 2
    per_part = count // parts
    with consuming(database.url, broker) as consumer:
        for part in range(parts):
            first, last = part * per_part, (part + 1) * per_part if part < parts - 1 else count
            sending = threading.Thread(target=publish_all, args=(broker.port, messages(last - first, first=first)))
            sending.start()
            time.sleep(random.uniform(0, 0.3))
            if part == 1:
                broker.stop()
                time.sleep(away_seconds)
                broker.start()
            elif part == 2:
                database.stop()
                time.sleep(away_seconds)
                database.start()
            if part != 1:
                consumer.kill()
                time.sleep(random.uniform(0, 0.2))
                consumer.start()
                time.sleep(random.uniform(0.2, 1))
            sending.join()
        await_stored(database.url, count, seconds=300)
        assert consumer.stop() == 0


def test_nothing_is_lost_or_doubled_whatever_is_killed_or_stopped(own_database: OwnDatabase, broker: Broker) -> None:
    ordeal(own_database, broker, 6_000, kills=1, away_seconds=0.5)


@pytest.mark.soak
def test_two_hundred_thousand_readings_survive_the_ordeal(own_database: OwnDatabase, broker: Broker) -> None:
    ordeal(own_database, broker, 200_000, kills=5, away_seconds=20)


def test_only_what_is_committed_is_acknowledged(
    database_url: str, connection: psycopg.Connection, broker: Broker
) -> None:
    """A lock keeps the store from committing: killed then, the consumer gets every message again."""
    with consuming(database_url, broker) as consumer, psycopg.connect(database_url, autocommit=True) as observer:
        publish_all(broker.port, messages(100))
        await_stored(database_url, 100)
        with connection.transaction():
            connection.execute("LOCK TABLE meter_reading, vehicle_reading IN SHARE MODE")
            publish_all(broker.port, messages(400, first=100))
            eventually(lambda: lock_waits(observer))
            consumer.kill()
        await_nobody(connection)
        assert energies(connection) == list(range(100))
        consumer.start()
        await_stored(database_url, 500)
        assert consumer.stop() == 0


@on_plain
def test_two_consumers_share_the_work_and_what_a_killed_one_had_waits_for_it(
    database_url: str, connection: psycopg.Connection, broker: Broker
) -> None:
    group = {"WATTLINE_MQTT_SHARE_GROUP": "g"}
    with (
        consuming(database_url, broker, WATTLINE_MQTT_CLIENT_ID="one", **group) as one,
        consuming(database_url, broker, WATTLINE_MQTT_CLIENT_ID="two", **group) as two,
    ):
        with connection.transaction():
            connection.execute("LOCK TABLE meter_reading, vehicle_reading IN SHARE MODE")
            publish_all(broker.port, messages(500))
            one.kill()
        # Mosquitto divides in turns and gives nobody else what `one` had: one copy of each tenth, half of the others.
        publish_all(broker.port, messages(500, first=500))
        # That includes messages given to it while dead. The last comes twice: `two` gets one after all of its own.
        publish_all(broker.port, messages(1, first=1_000))
        eventually(lambda: 1_000 in energies(connection))
        assert len(energies(connection)) == 275 + 275 + 1
        one.start()
        await_stored(database_url, 1_001)
        assert (one.stop(), two.stop()) == (0, 0)


@on_plain
def test_a_consumer_without_its_broker_waits_for_it(database_url: str, broker: Broker) -> None:
    with consuming(database_url, broker) as consumer:
        broker.stop()
        consumer.kill()
        consumer.start()
        consumer.await_logged("refused")
        broker.start()
        publish_all(broker.port, messages(100))
        await_stored(database_url, 100)
        log = [json.loads(line) for line in consumer.log.read_text().splitlines()]
        assert any(line["event"] == "mqtt_away" and "refused" in line["reason"] for line in log)
        assert consumer.stop() == 0


@on_plain
def test_a_consumer_stopped_without_its_database_leaves_all_to_the_broker(
    own_database: OwnDatabase, broker: Broker, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("from app import broker; broker.RECEIVE_MAXIMUM = 2_000\n")
    with consuming(own_database.url, broker, PYTHONPATH=str(tmp_path)) as consumer:
        own_database.stop()
        # These are more than Mosquitto would keep by default, and more than this consumer takes unacknowledged.
        publish_all(broker.port, messages(4_000))
        consumer.await_logged("mqtt_store_waits")
        assert consumer.stop() == 0
        own_database.start()
        consumer.start()
        await_stored(own_database.url, 4_000)


@on_plain
def test_serve_takes_readings_from_the_broker_too(database_url: str, broker: Broker) -> None:
    session = ConsumerProcess(database_url, broker)
    session.kill()  # the broker keeps what comes for its name
    publish_all(broker.port, messages(100))
    with serving(database_url, "--mqtt", WATTLINE_MQTT_URL=broker.url) as process:
        await_stored(database_url, 100)
        process.popen.terminate()
        assert process.await_end() == 0
