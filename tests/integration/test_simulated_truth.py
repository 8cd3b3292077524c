"""A simulated fleet and the service: its answers against the truth, and feeding it as the demo does."""

import json
import re
import threading
from datetime import UTC, datetime, timedelta

import httpx
import psycopg
import pytest

from app.simulator.charging import DAY_US, HOUR_US
from app.simulator.feed import feeding
from app.simulator.fleet import Fleet
from tests.fixtures.sending import map_vehicle, minutes_ago, performance, send, stamp
from tests.fixtures.service import Process
from tests.fixtures.waiting import DEADLINE_S, eventually

MAPPING = "/v1/ingestion/mapping"
CHARGERS = 40
# It is the same day each time, 2026-01-14, sent as if it were the last 24 hours.
FROM_US = 20_467 * DAY_US
# One percentage point of efficiency.
POINT = 0.01


async def store_day(client: httpx.AsyncClient, fleet: Fleet, start: datetime) -> None:
    """Sends what the fleet delivers in the day, an hour at a time, as of `start`; nothing may be rejected."""
    later = start - datetime.fromtimestamp(FROM_US / 1_000_000, UTC)
    for vehicle_id, meter_id in fleet.mappings():
        assert (await map_vehicle(client, vehicle_id, meter_id)).status_code == httpx.codes.OK
    for from_us in range(FROM_US, FROM_US + DAY_US, HOUR_US):
        readings = [
            {**reading, "timestamp": stamp(datetime.fromisoformat(reading["timestamp"]) + later)}
            for reading in fleet.deliveries(from_us, from_us + HOUR_US)
        ]
        receipt = await send(client, readings)
        assert (receipt["received"], receipt["conflicts"]) == (len(readings), 0)


async def test_efficiency_of_a_day_is_the_true_one(client: httpx.AsyncClient, connection: psycopg.Connection) -> None:
    fleet, start = Fleet(CHARGERS), minutes_ago(24 * 60)
    await store_day(client, fleet, start)
    connection.execute("CALL refresh_aggregates()")

    window = {"from": stamp(start), "to": stamp(start + timedelta(hours=24))}
    answers = {
        vehicle.vehicle_id: await performance(client, vehicle.vehicle_id, **window) for vehicle in fleet.vehicles
    }
    judged = {name for name, answer in answers.items() if answer["status"] not in ("insufficient_data", "no_meter")}
    true = {name: fleet.truth(name, FROM_US, FROM_US + DAY_US).efficiency for name in judged}
    off = {name for name in judged if answers[name]["efficiencyRatio"] != pytest.approx(true[name], abs=POINT)}
    low = {name for name in judged if answers[name]["status"] == "low_efficiency"}

    assert len(judged) >= CHARGERS / 2
    assert len(off) <= 0.05 * len(judged), off
    assert low == set(fleet.failing())


def test_feeding_sends_a_day_and_goes_on_where_it_stopped(
    server_process: Process, connection: psycopg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    told = feed_until_told(server_process.base_url, capsys)
    assert "Sending the last 24 hours; " in told
    (failing,) = re.findall(r"performance/vehicle-0005\?hours=24'\n +(.*)", told)
    assert json.loads(failing)["status"] == "low_efficiency"
    counted = "SELECT (SELECT count(*) FROM meter_reading), (SELECT count(*) FROM vehicle_reading)"
    first = connection.execute(counted).fetchone()
    assert first is not None
    assert min(first) > 2_000

    told = feed_until_told(server_process.base_url, capsys)
    assert "Sending the last 3 hours; " in told
    again = connection.execute(counted).fetchone()
    assert again is not None
    # Some seconds have passed.
    assert all(before <= after < before + 100 for before, after in zip(first, again, strict=True))


def test_feeding_leaves_a_vehicle_where_a_visitor_has_mapped_it(
    server_process: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    for valid_from in ({}, {"validFrom": "2030-01-01T00:00:00Z"}):
        mapping = {"vehicleId": "vehicle-0002", "meterId": "meter-0004", **valid_from}
        server_process.post(MAPPING, json=mapping).raise_for_status()
    mapped = server_process.get(MAPPING, params={"vehicleId": "vehicle-0002"}).json()
    feed_until_told(server_process.base_url, capsys)
    assert server_process.get(MAPPING, params={"vehicleId": "vehicle-0002"}).json() == mapped


def feed_until_told(base_url: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Feeds a fleet of five until the examples have been shown; returns the output."""
    refreshed = threading.Event()
    told = ""
    with feeding(base_url, 5, refreshed.set):
        assert refreshed.wait(DEADLINE_S)

        def tells() -> bool:
            nonlocal told
            told += capsys.readouterr().out
            return '"bucket": "1h"' in told

        eventually(tells, shown=lambda: told)
    assert "\x1b" not in told
    assert "\r" not in told
    return told
