"""Alerts: what each fault of the field is called, that order changes nothing, and that noise raises none."""

from datetime import datetime, timedelta
from random import Random

import psycopg
import pytest

from tests.fixtures.alerts import judge_all, standing_alerts
from tests.fixtures.readings import Reading, Rows, meter_reading, midnight, store, vehicle_reading

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def session(
    start: datetime,
    minutes: int,
    name: str,
    *,
    efficiency: float = 0.9,
    meter_id: str | None = None,
    stuck_meter: range = range(0),
    stuck_vehicle: range = range(0),
    seed: int = 1,
) -> list[Reading]:
    """A vehicle charges at about 11 kW, measured each minute by both; in some of them a device repeats one value."""
    random, readings = Random(f"{seed}{name}"), list[Reading]()
    for minute in range(minutes):
        ac = random.uniform(0.17, 0.19)
        at = start + minute * MINUTE
        readings += [
            meter_reading(at + timedelta(seconds=20), 0.0 if minute in stuck_meter else ac, meter_id=meter_id or name),
            vehicle_reading(
                at + timedelta(seconds=40),
                0.171 if minute in stuck_vehicle else ac * efficiency,
                vehicle_id=name,
                meter_id=meter_id or name,
            ),
        ]
    return readings


def told(rows: Rows, day: datetime) -> dict[tuple[str, str], list[tuple[float, float | None]]]:
    """Hours since the start of the day at which the alerts opened and closed, by kind and device; without no_data."""
    alerts: dict[tuple[str, str], list[tuple[float, float | None]]] = {}
    for kind, _, device, opened, closed, _ in rows:
        if kind != "no_data":
            span = (opened - day) / HOUR, None if closed is None else (closed - day) / HOUR
            alerts.setdefault((kind, device), []).append(span)
    return alerts


async def test_what_each_fault_is_called(database_url: str, connection: psycopg.Connection) -> None:
    day = midnight(3)
    at = day + 10 * HOUR
    await store(
        database_url,
        *session(at, 240, "sound"),
        *session(at, 240, "low", efficiency=0.8),
        *session(at, 240, "impossible", efficiency=1.05),
        *session(at, 240, "frozen-meter", stuck_meter=range(30, 168)),
        *session(at, 240, "frozen-vehicle", stuck_vehicle=range(30, 90)),
        *session(at, 240, "momentary-zero", stuck_meter=range(100, 101)),
        *session(at, 240, "shared-1", meter_id="shared"),
        *session(at, 240, "shared-2", meter_id="shared", efficiency=0.2),
        *session(at, 40, "short", efficiency=0.5),
    )
    await judge_all(database_url)
    rows = standing_alerts(connection)
    assert told(rows, day) == {
        ("low_efficiency", "low"): [(11, None)],
        ("impossible_efficiency", "impossible"): [(11, None)],
        ("impossible_efficiency", "frozen-meter"): [(11, None)],
        ("frozen_meter", "frozen-meter"): [(11, None)],
        ("frozen_vehicle", "frozen-vehicle"): [(11, None)],
    }
