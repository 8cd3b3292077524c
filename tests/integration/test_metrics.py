"""The metrics for Prometheus."""

import asyncio
import json

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.settings import Settings
from tests.fixtures.broker import Broker, publish, publishing
from tests.fixtures.sending import meter, minutes_ago, send, vehicle
from tests.fixtures.service import free_port, service
from tests.fixtures.waiting import eventually_here


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """Returns the values by name and labels, as written; counters go on from test to test."""
    answer = await client.get("/metrics")
    assert answer.status_code == httpx.codes.OK
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        sample.name + "".join(f",{value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_readings_are_counted_by_what_became_of_them(
    client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    await send(client, meter(minutes_ago(1)))
    before = await metrics(client)
    batch = [meter(minutes_ago(1)), vehicle(minutes_ago(1), soc=207), vehicle(minutes_ago(2), -1), {}, {}]
    assert (await client.post("/v1/telemetry", json=batch)).status_code == httpx.codes.OK
    connection.execute("UPDATE installation SET quarantine_dropped = 17")
    after = await metrics(client)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("wattline_readings_received_total") == 5
    assert grown("wattline_readings_inserted_total") == grown("wattline_readings_duplicate_total") == 1
    assert grown("wattline_readings_rejected_total,energy_out_of_range") == 1
    assert grown("wattline_members_dropped_total,soc_out_of_range,soc") == 1
    assert grown("wattline_readings_rejected_total,missing_field") == 2
    assert grown("wattline_request_seconds_count,POST,/v1/telemetry,200") == 1
    assert after["wattline_readings_waiting"] == 0
    assert (after["wattline_meters"], after["wattline_vehicles"]) == (1, 1)
    assert (after["wattline_quarantine_readings"], after["wattline_quarantine_dropped_readings"]) == (2, 17)


async def test_open_alerts_are_counted_by_kind_and_by_whether_somebody_acknowledged_them(
    client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    connection.execute("INSERT INTO vehicle (external_id) SELECT 'V' || n FROM generate_series(1, 5) AS n")
    connection.execute("UPDATE vehicle SET retired_at = now() WHERE external_id = 'V5'")
    connection.execute(
        """
        INSERT INTO alert (kind, stream, device_id, opened, closed, evidence, acknowledged)
        SELECT 'low_efficiency', 'vehicle', id, '2026-02-10', CASE WHEN id = 4 THEN now() END, '{}',
               CASE WHEN id = 3 THEN '{"at": "2026-02-10T14:00:00Z", "by": "Ada", "reason": "so"}'::jsonb END
        FROM vehicle
        """
    )
    values = await metrics(client)
    counted = {name.split(",", 1)[1]: value for name, value in values.items() if "wattline_alerts_open," in name}
    kinds = "low_efficiency", "impossible_efficiency", "frozen_meter", "frozen_vehicle", "no_data", "implausible_energy"
    nothing = {f"{acknowledged},{kind}": 0 for acknowledged in ("false", "true") for kind in kinds}
    assert counted == nothing | {"false,low_efficiency": 2, "true,low_efficiency": 1}


async def test_no_request_makes_a_label(client: httpx.AsyncClient) -> None:
    await client.get("/nowhere")
    known = (await metrics(client)).keys()
    for method, path in ("GET", "/x/1"), ("GET", "/x/2"), ("BREW", "/v1/telemetry"), ("BREW", "/pot"):
        await client.request(method, path)
    more = (await metrics(client)).keys() - known
    assert {name for name in more if "BREW" in name or "/x" in name or "pot" in name} == set()


async def test_without_its_database_it_still_tells_of_the_process() -> None:
    away = Settings(database_url=f"postgresql://127.0.0.1:{free_port()}/wattline")
    async with service(away) as client:
        values = await metrics(client)
    assert "wattline_readings_waiting" in values
    assert "wattline_vehicles" not in values


async def of_mqtt(client: httpx.AsyncClient, broker: Broker) -> list[float]:
    """Returns connected, store waits, messages, and those in quarantine; nothing without a consumer of this broker."""
    values = await metrics(client)
    names = ("connected", "store_waits", "messages_total", "messages_quarantined_total")
    keys = [f"wattline_mqtt_{name},{broker.url}" for name in names]
    return [values[key] for key in keys if key in values]


async def test_of_mqtt_it_tells_the_connection_the_messages_and_a_store_that_waits(
    database_url: str, connection: psycopg.Connection, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.ingest.mqtt.FIRST_PAUSE_SECONDS", 0.05)
    settings = Settings(database_url=database_url, mqtt_url=broker.url.replace("//", "//user:secret@"))
    async with service(settings) as client:
        assert await of_mqtt(client, broker) == []

    async with service(settings, mqtt=True) as client:

        async def becomes(*expected: float) -> None:
            async def is_told() -> bool:
                return await of_mqtt(client, broker) == list(expected)

            await eventually_here(is_told)

        await becomes(1, 0, 0, 0)
        good, bad = meter(minutes_ago(1)), meter(minutes_ago(2), -1)
        with publishing(broker) as publisher:
            for payload in json.dumps([good, bad, bad]), json.dumps(good), "{", json.dumps([bad, good]):
                publish(publisher, "telemetry/meter/M1", payload.encode())
            await becomes(1, 0, 4, 3)
            connection.execute("ALTER TABLE meter_reading RENAME TO away")
            publish(publisher, "telemetry/meter/M1", json.dumps(meter(minutes_ago(3))).encode())
            await becomes(1, 1, 4, 3)
            connection.execute("ALTER TABLE away RENAME TO meter_reading")
            await becomes(1, 0, 5, 3)
        await asyncio.to_thread(broker.stop)
        await becomes(0, 0, 5, 3)
