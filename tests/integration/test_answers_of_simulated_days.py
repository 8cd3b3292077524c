"""Simulated days sent to the service: its answers against the truth, as docs/efficiency.md tells them."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from random import Random

import httpx
import psycopg
import pytest

from app.analytics.efficiency.evidence import fetch_near, fetch_sides, pair_each, us
from app.analytics.efficiency.neighbours import NEIGHBOURS, REACH
from app.analytics.efficiency.pairs import evidence_between
from app.database import create_pool
from app.settings import Settings
from tests.fixtures.charges import METER, Sharing, Station
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

# A station's readings end 42 hours after the start of its day.
HOURS_AGO = 43


async def store(client: httpx.AsyncClient, name: str, station: Station, start: datetime) -> None:
    """Sends all readings of a station, as if its day had begun at `start`."""

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
    for first in range(0, len(sent), 20_000):
        await send(client, sent[first : first + 20_000])


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
    sharings: tuple[Sharing, ...] = ("alone", "in turns", "at once")
    for index, sharing in enumerate(sharings):
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
            every = await fetch_near(reading, [vehicle], start - REACH, start + 5 * REACH, NEIGHBOURS, settings)
            found, wanted = (
                evidence_between(pair_each([vehicle], sides, settings)[vehicle], us(first), us(last))
                for sides in (few, every)
            )
            assert found == wanted, (vehicle, first, hours)
    await pool.dispose()


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
