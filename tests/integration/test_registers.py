"""Registers: taken at every door, stored as they were sent, counted in order of time whatever order they come in."""

import asyncio
import itertools
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from app.ingest.batch import Source
from app.ingest.history.importer import Importer
from app.ingest.store.session import Session
from app.ops.refresh import refresh_aggregates
from tests.fixtures.broker import Broker, await_published, publish, publishing
from tests.fixtures.engines import on_plain, on_timescale
from tests.fixtures.files import as_csv, as_ndjson
from tests.fixtures.readings import Reading, batch_of, meter_reading, midnight, random_readings, store, writing
from tests.fixtures.sending import meter, minutes_ago, performance, send, stamp, vehicle
from tests.fixtures.waiting import eventually_here
from tests.integration.test_aggregates import ago, invalidated
from tests.integration.test_mqtt import consuming_here

KWH = 1_000_000
HOUR = timedelta(hours=1)


def shown(at: datetime, kwh: float, *, meter_id: str = "M1") -> Reading:
    """Returns a reading of a meter's register."""
    reading = meter_reading(at, meter_id=meter_id)
    return type(reading)(reading.meter_id, reading.ts_us, None, reading.voltage_centiv, round(kwh * KWH))


def register(at: datetime, kwh: float, *, meter_id: str = "M1", **more: Any) -> dict[str, Any]:
    """Returns such a reading as a client writes it."""
    return {"meterId": meter_id, "timestamp": stamp(at), "kwhRegisterAc": kwh, **more}


def energies(connection: psycopg.Connection) -> list[float | None]:
    """Returns what is stored, in order of time, in kWh."""
    rows = connection.execute("SELECT ac_milliwh FROM meter_reading ORDER BY ts").fetchall()
    return [None if energy is None else energy / KWH for (energy,) in rows]


@pytest.mark.parametrize("order", [*itertools.permutations(range(4))][::5], ids=str)
async def test_a_momentary_zero_is_no_energy_in_whatever_order_it_comes(
    order: tuple[int, ...], database_url: str, connection: psycopg.Connection
) -> None:
    start = midnight(2) + 3 * HOUR
    for number in order:
        await store(database_url, shown(start + number * HOUR, [850, 900, 0, 910][number]))
    assert energies(connection) == [None, 50, 0, 10]
    refresh_aggregates(database_url, None, None)
    hours = connection.execute("SELECT ac_milliwh FROM meter_hour(%s, %s) ORDER BY bucket", [start, start + 4 * HOUR])
    assert hours.fetchall() == [(0,), (50 * KWH,), (0,), (10 * KWH,)]
    days = connection.execute("SELECT ac_milliwh, readings FROM meter_day(%s, %s)", [midnight(2), midnight(1)])
    assert days.fetchall() == [(60 * KWH, 4)]
    assert connection.execute("SELECT ac_milliwh FROM fleet_day(%s, %s)", [midnight(2), midnight(1)]).fetchall() == [
        (60 * KWH,)
    ]


async def test_a_charge_by_registers_has_its_efficiency(client: httpx.AsyncClient) -> None:
    start = minutes_ago(150)
    meters = [register(start + n * timedelta(minutes=1), 166 + 0.12 * n, voltage=231) for n in range(121)]
    vehicles = [
        {
            "vehicleId": "V1",
            "meterId": "M1",
            "timestamp": stamp(start + n * timedelta(minutes=1)),
            "kwhRegisterDc": 150 + 0.108 * n,
        }
        for n in range(121)
    ]
    await send(client, [*meters, *vehicles])
    found = await performance(client, "V1", hours=24)
    assert found["totalAcConsumption"] == pytest.approx(14.4)
    assert found["totalDcDelivery"] == pytest.approx(12.96)
    assert found["efficiencyRatio"] == pytest.approx(0.9)
    assert (found["status"], found["dataPoints"]) == ("ok", 121)


@on_plain
async def test_every_door_takes_registers(
    database_url: str, connection: psycopg.Connection, broker: Broker, tmp_path: Path
) -> None:
    at = minutes_ago(30)
    sent = [register(at + n * timedelta(minutes=1), kwh) for n, kwh in enumerate([20_957.25, 20_957.5, 20_958])]
    of = {name: [reading | {"meterId": name} for reading in sent] for name in ("mqtt", "csv", "ndjson")}
    async with consuming_here(database_url, mqtt_url=broker.url):
        with publishing(broker) as publisher:
            message = publish(publisher, "telemetry/meter/mqtt", json.dumps(of["mqtt"]).encode())
            await asyncio.to_thread(await_published, [message])
        await eventually_here(lambda: len(energies(connection)) == len(sent))
    for name, written in (("csv", as_csv(of["csv"])), ("ndjson", as_ndjson(of["ndjson"]))):
        (tmp_path / name).write_bytes(written)
        importer = Importer(database_url, on_progress=lambda *_: None, on_pause=lambda _: None, on_rejected=None)
        await importer.run(str(tmp_path / name), {})
        await importer.close()
    stored = connection.execute(
        "SELECT external_id, ac_milliwh, register_milliwh FROM meter_reading JOIN meter ON id = meter_id ORDER BY 1, ts"
    )
    each = [(None, 20_957_250_000), (250_000, 20_957_500_000), (500_000, 20_958_000_000)]
    assert stored.fetchall() == [(name, *row) for name in sorted(of) for row in each]


async def test_what_was_sent_is_shown(client: httpx.AsyncClient) -> None:
    at = minutes_ago(5)
    readings = [register(at, 7.5), register(at + timedelta(minutes=1), 8)]
    await send(client, [*readings, {"vehicleId": "V1", "timestamp": stamp(at), "kwhRegisterDc": 3}])
    (of_meter,) = (await client.get("/v1/analytics/meters/states")).json()
    (of_vehicle,) = (await client.get("/v1/analytics/vehicles/states")).json()
    assert (of_meter["kwhConsumedAc"], of_meter["kwhRegisterAc"]) == (None, 8)
    assert (of_vehicle["kwhDeliveredDc"], of_vehicle["kwhRegisterDc"]) == (None, 3)
    lines = await client.get("/v1/analytics/meters/M1/readings?hours=1", headers={"Accept": "application/x-ndjson"})
    assert [json.loads(line) for line in lines.text.splitlines()] == readings


@pytest.mark.parametrize("another", [{"kwhRegisterAc": 5.5}, {"kwhConsumedAc": 5}, {"kwhConsumedAc": 0.5}], ids=str)
async def test_another_register_or_form_of_a_stored_reading_is_a_conflict(
    client: httpx.AsyncClient, connection: psycopg.Connection, another: dict[str, float]
) -> None:
    at = minutes_ago(5)
    first = [register(at, 4.5), register(at + timedelta(minutes=1), 5)]
    await send(client, first)
    again = await send(client, first)
    assert (again["duplicates"], again["conflicts"]) == (2, 0)
    changed = {"meterId": "M1", "timestamp": first[1]["timestamp"], **another}
    receipt = await send(client, [changed, register(at + timedelta(minutes=2), 6)])
    assert (receipt["inserted"], receipt["duplicates"], receipt["conflicts"]) == (1, 1, 1)
    assert receipt["conflicting"] == [{"index": 0, "stored": first[1]}]
    ((payload, message),) = connection.execute("SELECT payload, message FROM quarantine").fetchall()
    assert (json.loads(payload), message[-18:]) == (changed, "kwhRegisterAc 5.0.")
    assert energies(connection) == [None, 0.5, 1]


async def test_a_vehicles_register_that_conflicts_is_shown_as_it_was_sent(
    client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    at = minutes_ago(5)
    first = [
        {"vehicleId": "V1", "meterId": "M1", "timestamp": stamp(at + n * timedelta(minutes=1)), "kwhRegisterDc": 4 + n}
        for n in (0, 1)
    ]
    other = {"vehicleId": "V1", "timestamp": first[1]["timestamp"], "kwhRegisterDc": 5.0}
    await send(client, first)
    receipt = await send(client, [other, vehicle(at, 1)])
    assert receipt["conflicting"] == [{"index": n, "stored": stored} for n, stored in enumerate(first[::-1])]
    payloads = [json.loads(payload) for (payload,) in connection.execute("SELECT payload FROM quarantine")]
    assert sorted(payloads, key=lambda one: one["timestamp"]) == [vehicle(at, 1), other]


async def test_a_register_in_place_of_a_stored_difference_changes_nothing(
    client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    at = minutes_ago(9)
    difference = meter(at + timedelta(minutes=2), 0.5)
    await send(client, [difference])
    minutes = [register(at + n * timedelta(minutes=1), 4 + n) for n in range(5)]
    receipt = await send(client, minutes)
    assert (receipt["inserted"], receipt["conflicts"]) == (4, 1)
    assert receipt["conflicting"] == [{"index": 2, "stored": difference}]
    assert energies(connection) == [None, 1, 0.5, None, 1]


async def test_a_late_register_corrects_the_next_one_in_an_older_compressed_chunk_too(
    connection: psycopg.Connection, database_url: str, engine: str, tmp_path: Path
) -> None:
    at = midnight(12) + 5 * HOUR
    others = [{"meterId": f"O{n}", "timestamp": stamp(at + n * HOUR), "kwhConsumedAc": 0.25} for n in range(10)]
    before = [register(at, 100), register(at + 30 * HOUR, 130), *others]
    late = [register(at + 20 * HOUR, 125, voltage=230)]
    for name, readings in (("before", before), ("late", late)):
        (tmp_path / name).write_bytes(as_ndjson(readings))
        importer = Importer(database_url, on_progress=lambda *_: None, on_pause=lambda _: None, on_rejected=None)
        await importer.run(str(tmp_path / name), {})
        await importer.close()
        refresh_aggregates(database_url, None, None)
        if engine == "timescale" and name == "before":
            connection.execute("CALL cagg_set_columnstore('meter_reading', 'meter_id', 'ts')")
            connection.execute("SELECT compress_chunk(chunk) FROM show_chunks('meter_reading') AS chunk")
    days = "SELECT bucket, ac_milliwh FROM meter_day(%s, %s, ARRAY[(SELECT id FROM meter WHERE external_id = 'M1')])"
    rows = connection.execute(f"{days} ORDER BY bucket", [midnight(12), midnight(9)]).fetchall()
    assert rows == [(midnight(12), 0), (midnight(11), 30 * KWH)]
    fleet = connection.execute("SELECT sum(ac_milliwh) FROM fleet_hour(%s, %s)", [midnight(12), midnight(9)])
    assert fleet.fetchone() == (30 * KWH + 10 * 250_000,)


@on_timescale
async def test_a_late_register_and_its_successor_are_stored_in_a_transaction_each(
    connection: psycopg.Connection, database_url: str
) -> None:
    await store(database_url, *random_readings(5, ago(hours=30), 30 / 24, 300), shown(ago(hours=1), 20, meter_id="R"))
    refresh_aggregates(database_url, None, None)
    assert invalidated(connection) == []
    await store(database_url, shown(ago(hours=29), 10, meter_id="R"))
    ranges = invalidated(connection)
    assert len(ranges) == 2
    assert max(last - first for first, last in ranges) <= HOUR
    assert connection.execute("SELECT * FROM register_due").fetchall() == []


async def test_what_a_killed_process_left_due_is_corrected_with_the_next_batch(
    connection: psycopg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store(database_url, shown(midnight(2), 10), shown(midnight(1), 20))

    async def dies(self: Session, connection: object) -> None:
        raise psycopg.errors.SyntaxError

    with monkeypatch.context() as patch:
        patch.setattr(Session, "settle", dies)
        await store(database_url, shown(midnight(2) + 5 * HOUR, 14))
    assert energies(connection) == [None, 4, 10]
    await store(database_url, meter_reading(datetime.now(UTC), meter_id="M2"))
    assert energies(connection)[:3] == [None, 4, 6]
    assert connection.execute("SELECT * FROM register_due").fetchall() == []


async def test_the_hour_of_a_corrected_reading_is_judged_again(
    connection: psycopg.Connection, database_url: str
) -> None:
    await store(database_url, shown(midnight(2), 10), shown(midnight(1), 20))
    connection.execute("DELETE FROM touched_hour")
    await store(database_url, shown(midnight(2) + 5 * HOUR, 14))
    hours = connection.execute("SELECT hour FROM touched_hour ORDER BY 1").fetchall()
    assert hours == [(midnight(2) + 5 * HOUR,), (midnight(1),)]


async def test_the_fleet_s_power_follows_a_corrected_energy(connection: psycopg.Connection, database_url: str) -> None:
    start = midnight(1)
    await store(database_url, *(shown(start + n * HOUR / 4, 10 + n) for n in (0, 1, 20)))
    refresh_aggregates(database_url, None, None)
    taken = "SELECT read_milliwh, ac_milliwh FROM fleet_spread WHERE read_in = %s AND bucket = read_in"
    assert connection.execute(taken, [start + 5 * HOUR]).fetchall() == [(19 * KWH, -19 * KWH)]
    # An hour with as many readings as before, but another energy.
    await store(database_url, shown(start + HOUR / 2, 12))
    refresh_aggregates(database_url, None, None)
    assert connection.execute(taken, [start + 5 * HOUR]).fetchall() == [(18 * KWH, -18 * KWH)]


async def test_an_energy_that_is_not_known_is_counted_apart_and_proves_nothing(client: httpx.AsyncClient) -> None:
    start = minutes_ago(100)
    minutes = [start + n * timedelta(minutes=1) for n in range(61)]
    # In the middle, the meter is replaced.
    meters = [register(at, (900 if n < 30 else 50_000) + 0.1 * n) for n, at in enumerate(minutes)]
    vehicles = [{"vehicleId": "V1", "meterId": "M1", "timestamp": stamp(at), "kwhDeliveredDc": 0.09} for at in minutes]
    await send(client, [*meters, *vehicles])
    found = await performance(client, "V1", hours=24)
    assert found["totalAcConsumption"] == pytest.approx(5.8, abs=0.11)
    assert found["efficiencyRatio"] == pytest.approx(0.9)


async def test_the_limit_of_registers_is_that_of_the_first_migration(
    connection: psycopg.Connection, database_url: str
) -> None:
    assert connection.execute("SELECT max_milliwatt FROM installation").fetchone() == (1_000_000_000,)
    connection.execute("UPDATE installation SET max_milliwatt = 22000000")
    await store(database_url, shown(midnight(1), 10), shown(midnight(1) + HOUR, 32), shown(midnight(1) + 2 * HOUR, 55))
    assert energies(connection) == [None, 22, None]


async def test_a_stored_difference_takes_the_energy_of_the_register_after_it_at_once(
    connection: psycopg.Connection, database_url: str
) -> None:
    start = midnight(1)
    async with writing(database_url) as writer, writing(database_url) as other:
        await writer.store(batch_of(*(shown(start + n * HOUR, n) for n in range(4))), Source.HTTP)
        await other.store(batch_of(meter_reading(start + 1.5 * HOUR, 0.5)), Source.HTTP)
    assert energies(connection) == [None, 1, 0.5, None, 1]
