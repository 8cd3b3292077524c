"""The examples of the earlier systems' documents, posted as printed, except that their times are moved."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.fixtures.sending import Reading, map_vehicle, minutes_ago, performance, problem, send, stamp

# The columns are vehicle, kWh DC, state of charge, battery temperature and time.
VEHICLE_TABLE = """
    V1  0.4227  20.70  30.10  14:47:24.841
    V1  0.4037  21.38  30.20  14:48:24.843
    V1  0.4670  22.16  30.30  14:49:24.843
    V1  0.5588  23.09  30.40  14:50:24.843
    V1  0.5986  24.08  30.50  14:51:24.843
    V2  0.5568  45.93  30.60  14:52:24.843
    V2  0.4347  46.65  30.70  14:53:24.843
    V2  0.5990  47.65  30.80  14:54:24.843
    V2  0.4371  48.38  30.90  14:55:24.843
    V2  0.5218  49.25  31.00  14:56:24.843
"""
# The columns are kWh AC, voltage and time.
METER_TABLE = """
    0.4796  232.00  14:47:24.841
    0.4457  232.34  14:48:24.843
    0.5210  231.43  14:49:24.843
    0.6093  233.92  14:50:24.843
    0.6646  231.93  14:51:24.843
    0.6258  230.90  14:52:24.843
    0.4910  229.87  14:53:24.843
    0.6636  230.17  14:54:24.843
    0.4867  228.26  14:55:24.843
    0.5904  231.85  14:56:24.843
"""
PRINTED = {
    "V1": {
        "timeWindowHours": 24,
        "totalAcConsumption": 2.7202,
        "totalDcDelivery": 2.4508,
        "efficiencyRatio": 0.900963164473201,
        "avgSoc": 22.282,
        "avgBatteryTemp": 30.3,
        "dataPoints": 5,
    },
    "V2": {
        "timeWindowHours": 24,
        "totalAcConsumption": 2.8575,
        "totalDcDelivery": 2.5494,
        "efficiencyRatio": 0.892178477690289,
        "avgSoc": 47.572,
        "avgBatteryTemp": 30.8,
        "dataPoints": 5,
    },
}


def worked_example(*, with_meter_id: bool) -> list[Reading]:
    """Returns the two tables, moved by whole minutes so that 14:47 lies three hours back."""
    moved = minutes_ago(180) - datetime(2026, 2, 10, 14, 47, tzinfo=UTC)
    return [*_vehicle_readings(moved, with_meter_id=with_meter_id), *_meter_readings(moved)]


def _vehicle_readings(moved: timedelta, *, with_meter_id: bool) -> list[Reading]:
    return [
        {
            "vehicleId": vehicle,
            **({"meterId": "M1"} if with_meter_id else {}),
            "kwhDeliveredDc": float(kwh),
            "soc": float(soc),
            "batteryTemp": float(temperature),
            "timestamp": _at(time, moved),
        }
        for vehicle, kwh, soc, temperature, time in map(str.split, VEHICLE_TABLE.strip().splitlines())
    ]


def _meter_readings(moved: timedelta) -> list[Reading]:
    return [
        {"meterId": "M1", "kwhConsumedAc": float(kwh), "voltage": float(voltage), "timestamp": _at(time, moved)}
        for kwh, voltage, time in map(str.split, METER_TABLE.strip().splitlines())
    ]


def _at(time: str, moved: timedelta) -> str:
    return stamp(datetime.fromisoformat(f"2026-02-10T{time}+00:00") + moved)


async def assert_answers_as_printed(client: httpx.AsyncClient) -> None:
    for vehicle, printed in PRINTED.items():
        answer = await performance(client, vehicle)
        assert {name: answer[name] for name in printed} == pytest.approx(printed, rel=1e-12, abs=0)
        assert answer["coverage"] == {"minutes": 5, "paired": 5, "shared": 0, "unpaired": 0, "doubtful": 5}
        assert (answer["status"], answer["alert"]) == ("ok", None)
    unknown = problem(await client.get("/v1/analytics/performance/V3"), 404, "no_charging_data")
    assert unknown["vehicleId"] == "V3"
    assert unknown["detail"] == "No charging data found in last 24 hours"


async def test_the_worked_example_gives_the_printed_numbers(client: httpx.AsyncClient) -> None:
    receipt = await send(client, worked_example(with_meter_id=True), "/v1/ingest")
    assert (receipt["received"], receipt["inserted"]) == (20, 20)
    await assert_answers_as_printed(client)


async def test_the_worked_example_through_mappings_gives_the_same_numbers(client: httpx.AsyncClient) -> None:
    for vehicle in PRINTED:
        assert (await map_vehicle(client, vehicle, "M1")).status_code == httpx.codes.OK
    for reading in worked_example(with_meter_id=False):
        await send(client, reading, "/v1/ingest")
    await assert_answers_as_printed(client)


async def test_vehicle_performance_and_states_of_the_smart_ev_analytics_engine(client: httpx.AsyncClient) -> None:
    vehicle_id, first = "e6551740-f76d-4586-82c2-86164a9b05a4", minutes_ago(30)
    readings: list[Reading] = []
    for minute in range(10):
        at = stamp(first + timedelta(minutes=minute, seconds=18.295))
        readings += [
            {"meterId": "m", "kwhConsumedAc": 0.2877, "voltage": 230, "timestamp": at},
            {"vehicleId": vehicle_id, "meterId": "m", "soc": 80.72, "kwhDeliveredDc": 0.2499, "batteryTemp": 24.07}
            | {"timestamp": at},
        ]
    await send(client, readings, "/v1/telemetry")
    printed = {
        "totalAcConsumption": 2.877,
        "totalDcDelivery": 2.499,
        "efficiencyRatio": 0.8686131386861314,
        "avgBatteryTemp": 24.07,
        "dataPoints": 10,
    }
    answer = await performance(client, vehicle_id)
    assert {name: answer[name] for name in printed} == pytest.approx(printed, rel=1e-12, abs=0)

    (state,) = (await client.get("/v1/analytics/vehicles/states")).json()
    last = stamp(first + timedelta(minutes=9, seconds=18.295))
    assert state | {"lastUpdated": stamp(datetime.fromisoformat(state["lastUpdated"]))} == {
        "vehicleId": vehicle_id,
        "soc": 80.72,
        "kwhDeliveredDc": 0.2499,
        "kwhRegisterDc": None,
        "batteryTemp": 24.07,
        "lastUpdated": last,
        "site": None,
    }


async def test_telemetry_by_stream_of_the_energy_ingestion_engine(client: httpx.AsyncClient) -> None:
    meter_id, vehicle_id = "550e8400-e29b-41d4-a716-446655440000", "660e8400-e29b-41d4-a716-446655440000"
    at = stamp(minutes_ago(60))
    meter = {"meterId": meter_id, "kwhConsumedAc": 50.5, "voltage": 230, "timestamp": at}
    vehicle = {"vehicleId": vehicle_id, "soc": 75.5, "kwhDeliveredDc": 40.3, "batteryTemp": 25.5, "timestamp": at}
    assert (await send(client, meter, "/v1/telemetry/meter"))["inserted"] == 1
    assert (await send(client, vehicle, "/v1/telemetry/vehicle"))["inserted"] == 1
    await map_vehicle(client, vehicle_id, meter_id)

    answer = await performance(client, vehicle_id)
    assert answer["vehicleId"] == vehicle_id
    assert (answer["totalAcConsumption"], answer["totalDcDelivery"]) == (50.5, 40.3)
    assert (answer["efficiencyRatio"], answer["avgBatteryTemp"], answer["dataPoints"]) == (403 / 505, 25.5, 1)


async def test_telemetry_of_the_fleet_platform(client: httpx.AsyncClient) -> None:
    reading = {"vehicleId": "VH001", "soc": 85.5, "kwhDeliveredDc": 12.3, "batteryTemp": 25.0}
    answer = await client.post("/v1/telemetry", json=reading | {"timestamp": stamp(minutes_ago(60))})
    assert answer.status_code == httpx.codes.OK
    without_meter = await performance(client, "VH001")
    assert (without_meter["totalDcDelivery"], without_meter["avgBatteryTemp"]) == (12.3, 25.0)
    assert (without_meter["totalAcConsumption"], without_meter["status"]) == (0, "no_meter")


async def test_ingestion_mapping_and_alert_of_the_energy_fleet_platform(client: httpx.AsyncClient) -> None:
    at = stamp(minutes_ago(60))
    meter = {"meterId": "meter-001", "kwhConsumedAc": 150.5, "voltage": 230.0, "timestamp": at}
    await send(client, meter, "/v1/ingestion")
    mapped = await client.post("/v1/ingestion/mapping", json={"vehicleId": "vehicle-001", "meterId": "meter-001"})
    assert mapped.status_code == httpx.codes.OK
    expected: dict[str, Any] = {"vehicleId": "vehicle-001", "meterId": "meter-001", "validFrom": None, "validTo": None}
    assert mapped.json() == expected

    vehicle = {"vehicleId": "vehicle-001", "kwhDeliveredDc": 120.4, "batteryTemp": 35.5, "timestamp": at}
    await send(client, vehicle, "/v1/ingestion")
    answer = await performance(client, "vehicle-001")
    assert answer["efficiencyRatio"] == pytest.approx(0.8, rel=1e-12)
    assert (answer["avgBatteryTemp"], answer["status"]) == (35.5, "low_efficiency")
    assert "below 85 %" in answer["alert"]
