"""Simulated days sent to the service: its answers against the truth, as docs/efficiency.md tells them."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from random import Random

import httpx
import psycopg
import pytest

from app.analytics.efficiency.evidence import fetch_near, fetch_sides, pair_each, us
from app.analytics.efficiency.neighbours import REACH
from app.analytics.efficiency.pairs import evidence_between
from app.database import create_pool
from app.settings import Settings
from app.telemetry.reading import MeterReading, VehicleReading
from tests.fixtures.alerts import judge_all
from tests.fixtures.charges import METER, Sharing, Station
from tests.fixtures.readings import meter_reading, vehicle_reading
from tests.fixtures.readings import store as stored
from tests.fixtures.sending import Reading, map_vehicle, minutes_ago, performance, send, stamp
from tests.fixtures.simulated_days import (
    DAY_US,
    GROUPS,
    NAMES,
    START,
    Answer,
    Demand,
    Measured,
    answer_of,
    check,
    check_few,
    has_enough,
    measure,
    stations_of,
)
from tests.integration.test_sessions import made

# A shared station's readings end 47 hours after the start of its day.
HOURS_AGO = 48
SHARINGS: tuple[Sharing, ...] = ("alone", "in turns", "at once")


async def store(client: httpx.AsyncClient, name: str, station: Station, start: datetime) -> None:
    """Sends all readings of a station, as if its day had begun at `start`."""
    sent = await mapped_readings(client, name, station, start)
    for first in range(0, len(sent), 20_000):
        await send(client, sent[first : first + 20_000])


async def mapped_readings(client: httpx.AsyncClient, name: str, station: Station, start: datetime) -> list[Reading]:
    """Maps a station's vehicles, and returns all readings, as if its day had begun at `start`."""

    def at(instant: int) -> str:
        return stamp(start + timedelta(microseconds=instant - START))

    def kwh(milliwh: int | None) -> float:
        assert milliwh is not None
        return milliwh / 1_000_000

    sent: list[Reading] = [
        {"meterId": name, "timestamp": at(instant), "kwhConsumedAc": kwh(milliwh)}
        for instant, milliwh in station.meter_sent
    ]
    for number, vehicle in enumerate(station.vehicles):
        vehicle_id = f"{name}-{number}"
        if vehicle.mappings:
            assert (await map_vehicle(client, vehicle_id, name)).status_code == httpx.codes.OK
        for instant, milliwh, meter in vehicle.sent:
            reading = {"vehicleId": vehicle_id, "timestamp": at(instant), "kwhDeliveredDc": kwh(milliwh)}
            sent.append({**reading, "meterId": name} if meter == METER else reading)
    return sent


async def answers(
    client: httpx.AsyncClient, group: str, stations: list[Station], start: datetime
) -> AsyncIterator[Answer | None]:
    """Yields the service's answer on each vehicle with enough energy."""
    window = {"from": stamp(start), "to": stamp(start + timedelta(microseconds=DAY_US))}
    for index, station in enumerate(stations):
        for number, vehicle in enumerate(station.vehicles):
            if has_enough(vehicle):
                answer = await performance(client, f"{group}-{index}-{number}", **window)
                yield answer_of(vehicle, answer["efficiencyRatio"], answer["uncertainty"], answer["status"])


async def ask_for_days(
    client: httpx.AsyncClient,
    connection: psycopg.Connection,
    group: str,
    stations: list[Station],
) -> Measured:
    start = minutes_ago(HOURS_AGO * 60)
    for index, station in enumerate(stations):
        await store(client, f"{group}-{index}", station, start)
    connection.execute("CALL refresh_aggregates()")
    return measure([answer async for answer in answers(client, group, stations, start)])


@pytest.mark.parametrize(("sharing", "slow", "demand"), GROUPS, ids=NAMES)
async def test_the_service_answers_the_truth(
    client: httpx.AsyncClient, connection: psycopg.Connection, sharing: tuple[Sharing, ...], slow: bool, demand: Demand
) -> None:
    stations = stations_of(sharing, slow=slow, days=1, stations=2 // len(sharing))
    check_few(await ask_for_days(client, connection, "days", stations), demand)


@pytest.mark.parametrize("slow", [False, True])
async def test_rows_beyond_those_that_are_fetched_change_nothing(
    client: httpx.AsyncClient, connection: psycopg.Connection, database_url: str, slow: bool
) -> None:
    random, start, settings = Random(7), minutes_ago(HOURS_AGO * 60), Settings()
    for index, sharing in enumerate(SHARINGS):
        await store(client, f"S{index}", stations_of((sharing,), slow=slow, days=1, stations=1)[0], start)
    connection.execute("CALL refresh_aggregates()")
    vehicles = [vehicle for (vehicle,) in connection.execute("SELECT id FROM vehicle ORDER BY id")]
    pool = create_pool(database_url, 1)
    async with pool.connect() as reading:
        for _ in range(40):
            vehicle, hours = random.choice(vehicles), random.choice([1, 3, 8, 24])
            first = start + timedelta(minutes=random.randrange(36 * 60))
            last = first + timedelta(hours=hours)
            few = await fetch_sides(reading, [vehicle], first, last, settings)
            every = await fetch_near(reading, [vehicle], start - REACH, start + 5 * REACH, settings)
            found, wanted = (
                evidence_between(pair_each([vehicle], sides, settings)[vehicle], us(first), us(last))
                for sides in (few, every)
            )
            assert found == wanted, (vehicle, first, hours)
    await pool.dispose()


JUDGED = """
    SELECT vehicle.external_id, judged.*
    FROM efficiency_hour AS judged JOIN vehicle ON vehicle.id = vehicle_id
    ORDER BY 1, judged.hour, judged.meter_id
"""


def reading_of(sent: Reading) -> MeterReading | VehicleReading:
    at, meter_id = datetime.fromisoformat(sent["timestamp"]), sent.get("meterId")
    if "vehicleId" in sent:
        return vehicle_reading(at, sent["kwhDeliveredDc"], vehicle_id=sent["vehicleId"], meter_id=meter_id)
    return meter_reading(at, sent["kwhConsumedAc"], meter_id=sent["meterId"])


@pytest.mark.parametrize("slow", [False, True])
async def test_what_is_judged_while_readings_come_in_any_order_is_what_is_judged_at_once(
    client: httpx.AsyncClient, connection: psycopg.Connection, database_url: str, slow: bool
) -> None:
    random, start = Random(11), minutes_ago(HOURS_AGO * 60)
    sent: list[Reading] = []
    for index, sharing in enumerate(SHARINGS):
        (station,) = stations_of((sharing,), slow=slow, days=1, stations=1)
        sent += await mapped_readings(client, f"S{index}", station, start)
    # Each device's hours come by themselves, and some readings later.
    parts: dict[int, list[Reading]] = {part: [] for part in range(6)}
    of_hour: dict[tuple[str, str], int] = {}
    for reading in sent:
        key = reading.get("vehicleId") or reading["meterId"], reading["timestamp"][:13]
        part = of_hour.setdefault(key, random.randrange(6)) if random.random() < 0.95 else random.randrange(6)
        parts[part].append(reading)
    for some in parts.values():
        # A writer that goes on notes no hour again for a minute, and judge_all() makes notes older than they are.
        await stored(database_url, *map(reading_of, some))
        await judge_all(database_url)
    piece_by_piece, sessions = connection.execute(JUDGED).fetchall(), made(connection)
    assert len(piece_by_piece) > 100
    assert len(sessions) > 15
    connection.execute("TRUNCATE efficiency_hour, charging_session, session_hour")
    connection.execute(
        """
        INSERT INTO touched_hour (stream, device_id, hour, at)
        SELECT stream, id, hour, now() - INTERVAL '1 hour'
        FROM device, generate_series(date_trunc('hour', %s::timestamptz), now(), '1 hour') AS hour
        ON CONFLICT DO NOTHING
        """,
        [start - timedelta(days=1)],
    )
    await judge_all(database_url)
    at_once = connection.execute(JUDGED).fetchall()
    assert [row for row in at_once if row not in piece_by_piece] == []
    assert [row for row in piece_by_piece if row not in at_once] == []
    sessions_at_once = made(connection)
    assert [row for row in sessions_at_once if row not in sessions] == []
    assert [row for row in sessions if row not in sessions_at_once] == []


@pytest.mark.soak
@pytest.mark.parametrize(("sharing", "slow", "demand"), GROUPS, ids=NAMES)
async def test_49_days_of_the_service_are_near_the_truth(
    client: httpx.AsyncClient,
    connection: psycopg.Connection,
    engine: str,
    sharing: tuple[Sharing, ...],
    slow: bool,
    demand: Demand,
) -> None:
    stations = stations_of(sharing, slow=slow, days=49, stations=11 if len(sharing) == 1 else 3)
    found = await ask_for_days(client, connection, "days", stations)
    print(f"{engine}, {' and '.join(sharing)}, {'6 to 15' if slow else 'up to 5'} min: {found}")  # noqa: T201
    check(found, demand)
