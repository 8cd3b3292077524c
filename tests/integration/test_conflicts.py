"""A reading that comes again with other values is named, whichever door it comes by; the first values stay."""

import asyncio
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from app.database import connect
from app.ingest.batch import Source
from app.ingest.history import importer
from app.ingest.http.routes import MAX_CONFLICTING
from app.ingest.quarantine.keep import keep_rejected
from app.ingest.store.conflicts import MOST_KEPT
from app.ingest.store.statements import prepare_connection
from tests.fixtures.broker import Broker
from tests.fixtures.commands import command
from tests.fixtures.files import as_csv
from tests.fixtures.flood import publish_all
from tests.fixtures.readings import midnight, rejected
from tests.fixtures.sending import meter, minutes_ago, send, vehicle
from tests.integration.test_metrics import metrics
from tests.integration.test_mqtt import await_rows, consuming_here

Connection = psycopg.Connection[tuple[Any, ...]]
MILLISECOND = timedelta(milliseconds=1)


def quarantined(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT source, code, stream, device, topic, times FROM quarantine ORDER BY stream, device, payload"
    ).fetchall()


def payloads(connection: Connection) -> list[dict[str, Any]]:
    return [json.loads(payload) for (payload,) in connection.execute("SELECT payload FROM quarantine ORDER BY payload")]


def energies(connection: Connection) -> list[tuple[int]]:
    return connection.execute(
        "SELECT ac_milliwh FROM meter_reading UNION ALL SELECT dc_milliwh FROM vehicle_reading ORDER BY 1"
    ).fetchall()


async def test_the_receipt_names_each_conflict_and_what_is_stored(
    client: httpx.AsyncClient, connection: Connection
) -> None:
    young, late = minutes_ago(2), minutes_ago(200)
    of_meter = [meter(at, 0.5, voltage=230.5) for at in (young, late)]
    of_vehicle = vehicle(young, 0.4, meterId="M1", soc=50.5, batteryTemp=21.25)
    await send(client, [*of_meter, of_vehicle])
    before = (await metrics(client)).get("wattline_readings_conflicting_total,http", 0)
    other_meter, other_vehicle = meter(late, 0.6), vehicle(young, 0.4, meterId="M2")
    batch = [other_vehicle, {}, *of_meter, other_meter, of_vehicle, meter(minutes_ago(3)), of_meter[0] | {"voltage": 1}]
    answer = await client.post("/v1/telemetry", json=batch)
    receipt = answer.json()
    assert (receipt["inserted"], receipt["duplicates"], receipt["conflicts"]) == (1, 6, 3)
    assert receipt["conflicting"] == [
        {"index": 0, "stored": of_vehicle},
        {"index": 4, "stored": of_meter[1]},
        {"index": 7, "stored": of_meter[0]},
    ]
    assert quarantined(connection) == [
        ("http", "conflict", "meter", "M1", None, 1),
        ("http", "conflict", "meter", "M1", None, 1),
        ("http", "missing_field", "meter", None, None, 1),
        ("http", "conflict", "vehicle", "V1", None, 1),
    ]
    sent = [other_meter, of_meter[0] | {"voltage": 1.0}, other_vehicle]
    assert all(reading in payloads(connection) for reading in sent)
    ((message,),) = connection.execute("SELECT message FROM quarantine WHERE device = 'V1'").fetchall()
    assert message.endswith(" which stay: meterId M1, kwhDeliveredDc 0.4, soc 50.5, batteryTemp 21.25.")
    assert (await metrics(client))["wattline_readings_conflicting_total,http"] - before == 3
    assert energies(connection) == [(400_000,), (500_000,), (500_000,), (500_000,)]


async def test_a_duplicate_of_the_same_value_is_no_conflict(client: httpx.AsyncClient, connection: Connection) -> None:
    batch = [meter(minutes_ago(1), voltage=230), vehicle(minutes_ago(1), meterId="M1", soc=9)]
    for duplicates in (0, 2, 2):
        receipt = await send(client, batch)
        assert (receipt["duplicates"], receipt["conflicts"], receipt["conflicting"]) == (duplicates, 0, [])
    assert quarantined(connection) == []


async def test_the_receipt_names_the_first_and_quarantine_holds_more(
    client: httpx.AsyncClient, connection: Connection
) -> None:
    at, many = minutes_ago(1), MAX_CONFLICTING + 50
    await send(client, [meter(at, meter_id=f"M{n}") for n in range(many)])
    for times in (1, 2):
        receipt = await send(client, [meter(at, 0.25, meter_id=f"M{n}") for n in range(many)])
        assert receipt["conflicts"] == many
        assert [conflict["index"] for conflict in receipt["conflicting"]] == list(range(MAX_CONFLICTING))
        of_all = connection.execute("SELECT count(*), min(times), max(times) FROM quarantine").fetchall()
        assert of_all == [(many, times, times)]


async def test_quarantine_takes_the_first_of_a_batch_and_all_are_counted(
    client: httpx.AsyncClient, connection: Connection
) -> None:
    """All of a large batch would take nearly the time that a transaction has."""
    start, many = minutes_ago(2), MOST_KEPT + 50
    first, again = ([meter(start + n * MILLISECOND, kwh) for n in range(many)] for kwh in (0.1, 0.2))
    await send(client, first)
    before = (await metrics(client)).get("wattline_readings_conflicting_total,http", 0)
    receipt = await send(client, again)
    assert (receipt["duplicates"], receipt["conflicts"]) == (many, many)
    assert (await metrics(client))["wattline_readings_conflicting_total,http"] - before == many
    kept = sorted(datetime.fromisoformat(reading["timestamp"]) for reading in payloads(connection))
    assert kept == [start + n * MILLISECOND for n in range(MOST_KEPT)]


async def test_over_mqtt_a_conflict_is_in_quarantine_with_its_topic(
    database_url: str, connection: Connection, broker: Broker
) -> None:
    at = minutes_ago(1)
    first, other = meter(at, 0.5, voltage=230), meter(at, 0.25)
    async with consuming_here(database_url, mqtt_url=broker.url):
        for reading in (first, first, other, first):
            await asyncio.to_thread(publish_all, broker.port, [("telemetry/meter/M1", json.dumps(reading).encode())])
        await await_rows(connection, meter_reading=1, quarantine=1)
    assert quarantined(connection) == [("mqtt", "conflict", "meter", "M1", "telemetry/meter/M1", 1)]
    assert payloads(connection) == [other]
    assert energies(connection) == [(500_000,)]


def test_an_import_counts_conflicts_and_quarantine_holds_them(
    database_url: str, connection: Connection, tmp_path: Path
) -> None:
    days = [midnight(3), midnight(6)]
    first = [vehicle(at, 0.5, meterId="M1", soc=50) for at in days] + [meter(at, 0.6) for at in days]
    others = [vehicle(at, 0.4, meterId="M1", soc=50) for at in days] + [meter(at, 0.7) for at in days]
    file, rejects = tmp_path / "history.csv", tmp_path / "rejects"
    for readings, told in (
        (first, "read 4 = inserted 4 + duplicates 0 + rejected 0"),
        (others, "read 4 = inserted 0 + duplicates 4 (4 with other values: see quarantine) + rejected 0"),
        (first + others, "read 8 = inserted 0 + duplicates 8 (4 with other values: see quarantine) + rejected 0"),
    ):
        file.write_bytes(as_csv(readings))
        done = command("import", str(file), "--rejects", str(rejects), DATABASE_URL=database_url)
        assert (done.returncode, told in done.stdout) == (0, True), done
    assert rejects.read_bytes() == b""
    assert quarantined(connection) == [("import", "conflict", *device, None, 2) for device in OF_BOTH for _ in days]
    assert len(payloads(connection)) == len(others)
    assert all(reading in payloads(connection) for reading in others)
    assert energies(connection) == [(500_000,), (500_000,), (600_000,), (600_000,)]


OF_BOTH = ("meter", "M1"), ("vehicle", "V1")


def test_one_file_fills_only_a_part_of_the_quarantine_with_conflicts(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "QUARANTINED_ROWS", 5)
    start = midnight(3)
    file = tmp_path / "history.csv"
    for kwh, conflicts in ((0.1, 0), (0.2, 9)):
        bad = [meter(start, -1, meter_id=f"M{n}") for n in range(3)]
        file.write_bytes(as_csv(bad + [meter(start + timedelta(minutes=n), kwh) for n in range(9)]))
        done = command("import", str(file), DATABASE_URL=database_url)
        assert (f"({conflicts} with other values" in done.stdout) == bool(conflicts)
    assert connection.execute("SELECT code, count(*) FROM quarantine GROUP BY 1 ORDER BY 1").fetchall() == [
        ("conflict", 2),
        ("energy_out_of_range", 3),
    ]


async def test_driven_again_a_conflict_stays_one(
    client: httpx.AsyncClient, database_url: str, connection: Connection
) -> None:
    """So does a reading that was rejected for another reason, and meets a stored one now."""
    at = minutes_ago(1)
    await send(client, [meter(at, 0.5), vehicle(at, 0.4)])
    await send(client, meter(at, 0.6))
    async with await connect(database_url) as own:
        prepare_connection(own)
        await keep_rejected(own, Source.MQTT, [rejected(vehicle(at, 0.3)), rejected(vehicle(at, 0.4))])
    for still in (1, 2):
        driven = await asyncio.to_thread(command, "quarantine", "redrive", DATABASE_URL=database_url)
        assert f"{still} still rejected" in driven.stdout, driven
        assert quarantined(connection) == [
            ("http", "conflict", "meter", "M1", None, 1),
            ("mqtt", "conflict", "vehicle", "V1", None, 1),
        ]
    assert energies(connection) == [(400_000,), (500_000,)]
