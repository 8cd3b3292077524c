"""Who charges where: the vehicles at a meter and the meters of a vehicle, with whom it shared them."""

from datetime import datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest

from tests.fixtures.readings import Reading, meter_reading, midnight, store, vehicle_reading
from tests.fixtures.sending import problem

DAY = midnight(2)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
HOURS = {"from": DAY.isoformat(), "to": (DAY + 24 * HOUR).isoformat()}


def metered(meter_id: str, start: datetime, minutes: int, kwh: float) -> list[Reading]:
    return [meter_reading(start + minute * MINUTE, kwh, meter_id=meter_id) for minute in range(minutes + 1)]


def charging(vehicle_id: str, meter_id: str | None, start: datetime, minutes: int) -> list[Reading]:
    """Returns a charge of 0.18 kWh a minute, which its first reading opens without energy."""
    return [
        vehicle_reading(start + minute * MINUTE, 0.18 if minute else 0, vehicle_id=vehicle_id, meter_id=meter_id)
        for minute in range(minutes + 1)
    ]


async def ask(client: httpx.AsyncClient, path: str, **window: Any) -> Any:
    answer = await client.get(f"/v1/analytics/{path}", params=window or HOURS)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def a_day(url: str) -> None:
    """V1 charges at M1 from 10:00 to 11:00, V2 from 10:40 to 10:50; V1 charges at M2 from 20:00 to 20:30."""
    ten, twenty = DAY + 10 * HOUR, DAY + 20 * HOUR
    await store(
        url,
        *metered("M1", ten - 5 * MINUTE, 4, 0),
        *metered("M1", ten, 40, 0.2),
        *metered("M1", ten + 41 * MINUTE, 9, 0.4),
        *metered("M1", ten + 51 * MINUTE, 9, 0.2),
        *metered("M2", twenty, 30, 0.2),
        *charging("V1", "M1", ten, 60),
        *charging("V2", "M1", ten + 40 * MINUTE, 10),
        *charging("V1", "M2", twenty, 30),
        *charging("elsewhere", "M3", ten, 30),
    )


async def test_a_meter_names_its_vehicles_with_energy_time_and_company(
    database_url: str, client: httpx.AsyncClient
) -> None:
    await a_day(database_url)
    answer = await ask(client, "meters/M1/vehicles")
    first, second = answer["visits"]
    assert (answer["id"], first["id"], second["id"]) == ("M1", "V1", "V2")
    assert first["dcKwh"] == pytest.approx(60 * 0.18)
    assert first["pairedDcKwh"] == pytest.approx(50 * 0.18)
    assert first["pairedAcKwh"] == pytest.approx(50 * 0.2, rel=0.03)
    assert (first["coverage"]["paired"], first["coverage"]["shared"]) == (50, 10)
    assert first["firstAt"] == (DAY + 10 * HOUR).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert first["lastAt"] == (DAY + 11 * HOUR).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert (first["sharedWith"], second["sharedWith"]) == (["V2"], ["V1"])
    assert second["dcKwh"] == pytest.approx(1.8)
    assert (second["coverage"]["paired"], second["coverage"]["shared"]) == (0, 10)


async def test_a_vehicle_names_its_meters_and_adds_up_to_its_performance(
    database_url: str, client: httpx.AsyncClient
) -> None:
    await a_day(database_url)
    answer = await ask(client, "vehicles/V1/meters")
    performance = await ask(client, "performance/V1")
    assert [(one["id"], one["sharedWith"]) for one in answer["visits"]] == [("M1", ["V2"]), ("M2", [])]
    for member, of_performance in ("dcKwh", "totalDcDelivery"), ("pairedDcKwh", "pairedDcDelivery"):
        assert sum(one[member] for one in answer["visits"]) == pytest.approx(performance[of_performance])
    of_meter = (await ask(client, "meters/M1/vehicles"))["visits"][0]
    assert {**of_meter, "id": "M1"} == answer["visits"][0]


async def test_only_the_window_counts(database_url: str, client: httpx.AsyncClient) -> None:
    await a_day(database_url)
    window = {"from": (DAY + 10 * HOUR + 50 * MINUTE).isoformat(), "to": (DAY + 12 * HOUR).isoformat()}
    (only,) = (await ask(client, "meters/M1/vehicles", **window))["visits"]
    assert (only["id"], only["sharedWith"], only["dcKwh"]) == ("V1", [], pytest.approx(1.8))
    assert (await ask(client, "vehicles/V2/meters", **window))["visits"] == []


async def test_a_vehicle_that_names_no_meter_charges_where_it_is_mapped(
    database_url: str, client: httpx.AsyncClient
) -> None:
    mapping = {"vehicleId": "mapped", "meterId": "M5", "validFrom": (DAY + HOUR).isoformat()}
    assert (await client.post("/v1/ingestion/mapping", json=mapping)).status_code == 200
    await store(database_url, *metered("M5", DAY + 2 * HOUR, 20, 0.2), *charging("mapped", None, DAY + 2 * HOUR, 20))
    (only,) = (await ask(client, "meters/M5/vehicles"))["visits"]
    assert (only["id"], only["dcKwh"], only["coverage"]["paired"]) == ("mapped", pytest.approx(3.6), 20)


async def test_what_cannot_be_answered_is_a_problem(database_url: str, client: httpx.AsyncClient) -> None:
    await a_day(database_url)
    for path in "meters/V1/vehicles", "vehicles/M1/meters":
        problem(await client.get(f"/v1/analytics/{path}"), 404, "unknown_device")
        problem(await client.get(f"/v1/analytics/{path}?hours=2161"), 400, "invalid_time_range")
        problem(await client.get(f"/v1/analytics/{path}?hour=1"), 400, "invalid_parameter")


async def test_too_many_vehicles_for_so_long_a_window_are_refused(
    database_url: str, client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    await store(database_url, *charging("V1", "M1", DAY + HOUR, 5))
    connection.execute(
        """
        WITH mapped AS (INSERT INTO vehicle (external_id) SELECT 'mapped-' || n FROM generate_series(1, 8) AS n
                        RETURNING id)
        INSERT INTO vehicle_meter (vehicle_id, meter_id, valid)
        SELECT mapped.id, meter.id, '(,)' FROM mapped, meter WHERE external_id = 'M1'
        """
    )
    refused = await client.get("/v1/analytics/meters/M1/vehicles?hours=2160")
    problem(refused, 400, "invalid_time_range")
    assert refused.json()["detail"] == "9 vehicles charge at this meter: ask for a shorter window."
    assert [one["id"] for one in (await ask(client, "meters/M1/vehicles", hours=96))["visits"]] == ["V1"]
