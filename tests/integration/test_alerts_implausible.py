"""Implausible energy: totals, Wh and steps as they come from the field, in any order, with limits of their own."""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import httpx
import psycopg
import pytest

from app.settings import Settings
from tests.fixtures.alerts import judge_all, standing_alerts
from tests.fixtures.commands import command
from tests.fixtures.database import Server
from tests.fixtures.readings import Rows
from tests.fixtures.sending import Reading, map_vehicle, meter, send, vehicle
from tests.fixtures.service import service

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
ROWS = """
    SELECT device.stream, external_id, hour, readings, implausible_hour.milliwh, first_ts, last_ts, looks_like
    FROM implausible_hour JOIN device USING (stream) WHERE id = device_id ORDER BY 1, 2, 3
"""
LOG = "SELECT transition, stream FROM alert_transition WHERE kind = 'implausible_energy' ORDER BY id"


def start(hours: int = 4) -> datetime:
    """Returns 19 minutes past an hour that is over, as are the two that follow."""
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - hours * HOUR + 19 * MINUTE


def charge(ac: Iterable[float], dc: Iterable[float], at: datetime) -> Iterator[Reading]:
    """Yields what a meter and a vehicle send each minute."""
    for n, (of_meter, of_vehicle) in enumerate(zip(ac, dc, strict=True)):
        yield meter(at + n * MINUTE, of_meter, meter_id="M")
        yield vehicle(at + n * MINUTE, of_vehicle, vehicle_id="V", meterId="M")


def totals(at: datetime) -> list[Reading]:
    """Returns two hours of totals in place of differences: 14.4 kWh AC, 12.96 kWh DC."""
    return [*charge([166 + 0.12 * n for n in range(121)], [150 + 0.108 * n for n in range(121)], at)]


async def told(client: httpx.AsyncClient) -> dict[str, Any]:
    """Returns the alerts by device, each of which has one."""
    alerts = (await client.get("/v1/analytics/alerts?kind=implausible_energy")).json()["alerts"]
    assert len({one["deviceId"] for one in alerts}) == len(alerts)
    return {one["deviceId"]: one for one in alerts}


async def looks(client: httpx.AsyncClient) -> dict[str, tuple[str, int]]:
    """Returns what they look like, and the number of readings."""
    alerts = await told(client)
    return {name: (one["evidence"]["looksLike"], one["evidence"]["readings"]) for name, one in alerts.items()}


def device(url: str, *arguments: str, stream: str = "meter") -> str:
    done = command("device", *arguments, "--stream", stream, DATABASE_URL=url)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


async def test_totals_look_like_a_register(database_url: str, client: httpx.AsyncClient) -> None:
    at = start()
    await send(client, totals(at))
    await judge_all(database_url)
    alerts = await told(client)
    assert alerts.keys() == {"M", "V"}
    evidence = alerts["M"]["evidence"]
    assert (evidence["readings"], evidence["limitKw"], evidence["looksLike"]) == (120, 1000, "register")
    assert evidence["acKwh"] == pytest.approx(sum(166 + 0.12 * n for n in range(1, 121)))
    assert [datetime.fromisoformat(evidence[name]) for name in ("from", "to")] == [at + MINUTE, at + 120 * MINUTE]
    assert alerts["V"]["evidence"]["dcKwh"] == pytest.approx(sum(150 + 0.108 * n for n in range(1, 121)))
    assert alerts["V"]["evidence"]["looksLike"] == "register"
    assert datetime.fromisoformat(alerts["M"]["openedAt"]) == at + 41 * MINUTE
    assert (alerts["M"]["current"], alerts["M"]["lossToDateKwh"]) == (None, None)
    assert alerts["M"]["text"] == (
        "M sent 120 readings with 20,791.20 kWh, which would take more than its limit of 1000 kW: it looks like a "
        "register, the total of a meter, sent as the energy since the previous reading. Send it as "
        "kwhRegisterAc, of a vehicle as kwhRegisterDc."
    )


async def test_wh_in_place_of_kwh_look_like_wh(database_url: str, client: httpx.AsyncClient) -> None:
    await send(client, [*charge([120] * 121, [108] * 121, start())])
    await judge_all(database_url)
    assert await looks(client) == {"M": ("wh", 120), "V": ("wh", 120)}


@pytest.mark.parametrize(("factor", "like"), [(1000, "wh"), (100, "step")])
async def test_the_vehicle_says_whether_the_meter_sends_wh(
    database_url: str, client: httpx.AsyncClient, factor: int, like: str
) -> None:
    """A mapped vehicle says so too, also when its readings come after the meter was judged."""
    random = Random(1)
    ac = [random.uniform(0.4, 0.5) for _ in range(61)]
    readings = [*charge([factor * energy for energy in ac], [0.9 * energy for energy in ac], start())]
    await send(client, readings[::2])
    await judge_all(database_url)
    assert await looks(client) == {"M": ("wh", 60)}
    await map_vehicle(client, "V", "M")
    await send(client, [{name: one[name] for name in one if name != "meterId"} for one in readings[1::2]])
    await judge_all(database_url)
    assert await looks(client) == {"M": (like, 60)}


async def test_a_step_is_flagged_by_the_limit_of_the_service_or_of_the_device(
    database_url: str, client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    at = start()
    steps = [meter(at, 0.1), meter(at + 3 * MINUTE, 36.9), meter(at + 4 * MINUTE, 999)]
    await send(client, steps)
    await judge_all(database_url)
    assert await looks(client) == {"M1": ("step", 1)}
    assert (await told(client))["M1"]["text"] == (
        "M1 sent 1 reading with 999.00 kWh, which would take more than its limit of 1000 kW: it looks like a step, "
        "which no charge explains. See what the device sent. If it can take so much, `wattline device limit` says so."
    )
    # 36.9 kWh within 3 minutes are 738 kW.
    for kw, count in ("43", 2), ("739", 1), ("22", 2):
        assert device(database_url, "limit", "M1", kw) == f"The limit of the meter M1 is {kw} kW now.\n"
        await judge_all(database_url)
        assert await looks(client) == {"M1": ("step", count)}
        assert (await told(client))["M1"]["evidence"]["limitKw"] == float(kw)
    (listed,) = json.loads(command("device", "list", "--json", DATABASE_URL=database_url).stdout)
    assert listed["maxPowerKw"] == 22
    device(database_url, "limit", "M1", "60000")
    await judge_all(database_url)
    assert await looks(client) == {}
    assert device(database_url, "limit", "M1", "--undo") == "The limit of the meter M1 is WATTLINE_MAX_POWER_KW now.\n"
    await judge_all(database_url, max_power_kw=700)
    assert await looks(client) == {"M1": ("step", 2)}
    assert [transition for transition, _ in connection.execute(LOG)] == ["opened", "retracted", "opened"]
    for arguments in [], ["22", "--undo"], ["nan"]:
        refused = command("device", "limit", "M1", *arguments, "--stream", "meter", DATABASE_URL=database_url)
        assert (refused.returncode, refused.stderr) == (1, "wattline: Give either a limit in kW or --undo.\n")
    assert command("device", "limit", "M1", "0", "--stream", "meter", DATABASE_URL=database_url).returncode == 2


async def test_a_limit_has_all_hours_judged_whose_minutes_are_kept(
    database_url: str, client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    at = start(6 * 24)
    await send(client, [meter(at + hours * HOUR, 0.1) for hours in (0, 100)])
    await judge_all(database_url)
    device(database_url, "limit", "M1", "22")
    touched = connection.execute("SELECT stream, hour FROM touched_hour ORDER BY hour").fetchall()
    assert touched == [("meter", (at + hours * HOUR).replace(minute=0)) for hours in (0, 100)]


async def test_it_closes_after_a_day_without_and_late_readings_take_it_back(
    database_url: str, client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    at = start(72).replace(minute=30)

    def alerts() -> list[tuple[float, float | None]]:
        rows = standing_alerts(connection)
        return [
            ((opened - at) / HOUR, None if closed is None else (closed - at) / HOUR)
            for kind, _, _, opened, closed, _ in rows
            if kind == "implausible_energy"
        ]

    async def judged(*readings: Reading) -> list[tuple[float, float | None]]:
        await send(client, readings)
        await judge_all(database_url)
        return alerts()

    step = [meter(at, 0.1), meter(at + 5 * MINUTE, 100)]
    assert await judged(*step) == [(0.5, 24.5)]
    # 24 hours after it is the last hour that goes on with it.
    later = [meter(at + 24 * HOUR + n * 5 * MINUTE, 100 * n) for n in range(2)]
    assert await judged(*later) == [(0.5, 48.5)]
    much_later = [meter(at + 49 * HOUR + n * 5 * MINUTE, 100 * n) for n in range(2)]
    assert await judged(*much_later) == [(0.5, 48.5), (49.5, None)]
    (first, _) = (one for one in standing_alerts(connection) if one[0] == "implausible_energy")
    assert (first[5]["readings"], first[5]["acKwh"]) == (1, 100)
    transitions = [row[0] for row in connection.execute(LOG)]
    assert transitions == ["opened", "closed", "closed", "opened"]


async def send_and_judge(url: str, readings: list[Reading]) -> None:
    """Sends by a service of its own: a writer relies on its notes of touched hours for a minute, which is over here."""
    async with service(Settings(database_url=url)) as client:
        await send(client, readings)
    await judge_all(url)


async def test_a_reading_between_changes_the_time_that_energy_had(database_url: str, client: httpx.AsyncClient) -> None:
    """It comes late, in another hour than the energy, or in the same one."""
    at = start()
    await send_and_judge(database_url, [meter(at, 0.1), meter(at + 85 * MINUTE, 900), meter(at + 115 * MINUTE, 400)])
    assert await looks(client) == {}
    await send_and_judge(database_url, [meter(at + 20 * MINUTE, 0.1)])
    assert await looks(client) == {}
    await send_and_judge(database_url, [meter(at + 40 * MINUTE, 0.1)])
    assert await looks(client) == {"M1": ("step", 1)}
    await send_and_judge(database_url, [meter(at + 98 * MINUTE, 0.1)])
    assert await looks(client) == {"M1": ("step", 2)}


async def test_the_order_of_arrival_does_not_show(server: Server) -> None:
    async def ends_as(readings: list[Reading], pieces: int) -> Rows:
        url = server.clone()
        try:
            for first in range(pieces):
                await send_and_judge(url, readings[first::pieces])
            with psycopg.connect(url) as connection:
                rows = connection.execute(ROWS).fetchall()
                assert {row[-1] for row in rows} == {"register"}
                return [*rows, *standing_alerts(connection)]
        finally:
            server.drop(url)

    days = [*totals(start(60)), *totals(start(30)), *totals(start())]
    at_once = await ends_as(days, 1)
    assert [row[0] for row in at_once].count("implausible_energy") == 4
    for order in range(2):
        assert await ends_as(Random(order).sample(days, len(days)), 4) == at_once, order
