"""What Prometheus collects."""

import httpx
import psycopg
from prometheus_client.parser import text_string_to_metric_families

from app.settings import Settings
from tests.fixtures.sending import meter, minutes_ago, send, vehicle
from tests.fixtures.service import free_port, service


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """The values by name and labels, as they are written; counters go on from test to test."""
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
    batch = [meter(minutes_ago(1)), vehicle(minutes_ago(1)), vehicle(minutes_ago(1), soc=207), {}, {}]
    assert (await client.post("/v1/telemetry", json=batch)).status_code == httpx.codes.OK
    connection.execute("UPDATE installation SET quarantine_dropped = 17")
    after = await metrics(client)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("wattline_readings_received_total") == 5
    assert grown("wattline_readings_inserted_total") == grown("wattline_readings_duplicate_total") == 1
    assert grown("wattline_readings_rejected_total,soc_out_of_range") == 1
    assert grown("wattline_readings_rejected_total,missing_field") == 2
    assert grown("wattline_request_seconds_count,POST,/v1/telemetry,200") == 1
    assert after["wattline_readings_waiting"] == 0
    assert (after["wattline_meters"], after["wattline_vehicles"]) == (1, 1)
    assert (after["wattline_quarantine_readings"], after["wattline_quarantine_dropped_readings"]) == (2, 17)


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
