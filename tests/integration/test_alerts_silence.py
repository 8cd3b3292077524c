"""Silence is an alert only for devices that are expected to report: by their own rhythm, or by an operator."""

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random

import psycopg
import pytest

from app.analytics.alerts.silence import Reported, replace_silent, reported_in
from app.database import connect
from tests.fixtures.alerts import judge_all
from tests.fixtures.commands import command
from tests.fixtures.readings import Reading, meter_reading, store, vehicle_reading

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
DAYS = 3
OPENED = "SELECT external_id FROM alert JOIN device USING (stream) WHERE kind = 'no_data' AND id = device_id ORDER BY 1"


async def silent(url: str, connection: psycopg.Connection, at: datetime) -> set[str]:
    """Returns the devices that have an alert if nothing is heard of any until then."""
    async with await connect(url) as own, own.transaction():
        await replace_silent(own, at)
    return {name for (name,) in connection.execute(OPENED.encode())}


def first_charge(first: int, ago: int) -> bool:
    """A first charge on the day before, and one that goes on since so many minutes."""
    return ago < first or 1500 <= ago < 1700


# The rhythms: whether a device reports so many minutes before its last reading.
RHYTHMS: dict[str, Callable[[int], bool]] = {
    "each-minute": lambda _: True,
    "each-5": lambda ago: ago % 5 == 0,
    "each-15": lambda ago: ago % 15 == 0,
    "each-hour": lambda ago: ago % 60 == 0,
    "busy": lambda ago: ago % 60 < 40,
    "outage": lambda ago: not 600 <= ago < 960,
    "car": lambda ago: ago % 1440 < 180,
    "charger": lambda ago: ago % 1440 < 600,
    "new": lambda ago: ago < 300,
    **{f"first-charge-{first}": partial(first_charge, first) for first in (5, 65, 125)},
    "late": lambda _: True,
}


def readings_of(name: str, last: datetime) -> list[Reading]:
    reports, minutes = RHYTHMS[name], range(DAYS * 1440 + 90)
    if name in ("car", "each-15"):
        return [vehicle_reading(last - ago * MINUTE, 0.1, vehicle_id=name) for ago in minutes if reports(ago)]
    return [meter_reading(last - ago * MINUTE, 0.1, meter_id=name) for ago in minutes if reports(ago)]


async def test_a_rhythm_tells_when_a_silence_is_an_alert(database_url: str, connection: psycopg.Connection) -> None:
    # The hour of this instant has begun by the clock of the evaluator, which lets 5 minutes pass.
    last = datetime.now(UTC) - 8 * MINUTE
    history = {name: readings_of(name, last - 12 * MINUTE if name == "late" else last) for name in RHYTHMS}
    await store(database_url, *(readings[0] for readings in history.values()))
    rest = [one for readings in history.values() for one in readings[1:]]
    Random(1).shuffle(rest)
    await store(database_url, *rest)
    await judge_all(database_url)
    expected = set[str]()
    for minutes, more in (
        (9, []),
        (12, ["each-minute", "outage"]),
        (17, ["each-5"]),
        (50, ["each-15"]),
        (70, ["busy"]),
        (185, ["each-hour"]),
        (7 * 1440, []),
    ):
        expected.update(more)
        assert await silent(database_url, connection, last + minutes * MINUTE) == expected, minutes
    opened = connection.execute("SELECT opened FROM alert JOIN vehicle ON id = device_id WHERE stream = 'vehicle'")
    assert opened.fetchall() == [(last + 45 * MINUTE,)]


@pytest.mark.parametrize("order", range(2))
async def test_the_order_of_arrival_does_not_show(
    database_url: str, connection: psycopg.Connection, order: int
) -> None:
    last = datetime.now(UTC) - 8 * MINUTE
    readings = readings_of("each-15", last)
    await store(database_url, readings[0])
    parts = [readings[1::2], readings[2::2]]
    for part in parts if order else parts[::-1]:
        await store(database_url, *part)
        await judge_all(database_url)
    assert await silent(database_url, connection, last + 44 * MINUTE) == set()
    assert await silent(database_url, connection, last + 46 * MINUTE) == {"each-15"}


def device(url: str, *arguments: str) -> str:
    done = command("device", *arguments, DATABASE_URL=url)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


async def test_an_operator_knows_better(database_url: str, connection: psycopg.Connection) -> None:
    at = datetime.now(UTC) - 30 * MINUTE
    charging, idle = ([f"{kind}-{n}" for n in range(2)] for kind in ("charging", "idle"))
    await store(
        database_url,
        *(meter_reading(at, 0.1, meter_id=name) for name in charging),
        *(meter_reading(at, 0, meter_id=name) for name in idle),
        vehicle_reading(at, vehicle_id="V", meter_id=None),
    )
    await judge_all(database_url)
    assert connection.execute(OPENED).fetchall() == []

    def expect(name: str, *expectation: str, stream: str = "meter") -> str:
        return device(database_url, "expect", name, *expectation, "--stream", stream)

    assert expect("V", "always", stream="vehicle") == "The vehicle V is expected to report always.\n"
    for name in charging[0], idle[0]:
        assert expect(name, "charging") == f"The meter {name} is expected to report while it charges.\n"
    for name in charging[1], idle[1]:
        expect(name, "never")
    await judge_all(database_url)
    assert connection.execute(OPENED).fetchall() == [("V",), ("charging-0",)]
    listed = json.loads(device(database_url, "list", "--json"))
    assert {one["id"]: one["expectation"] for one in listed} == {
        "V": "always",
        "charging-0": "charging",
        "charging-1": "never",
        "idle-0": "charging",
        "idle-1": "never",
    }
    assert " always " in device(database_url, "list", "--stream", "vehicle")

    assert expect("V", "--undo", stream="vehicle") == "The vehicle V is expected to report by its own rhythm.\n"
    await judge_all(database_url)
    assert connection.execute(OPENED).fetchall() == [("charging-0",)]
    log = "SELECT transition FROM alert_transition WHERE kind = 'no_data' AND stream = 'vehicle' ORDER BY id"
    assert connection.execute(log).fetchall() == [("opened",), ("retracted",)]
    for arguments in ["V"], ["V", "never", "--undo"]:
        refused = command("device", "expect", *arguments, "--stream", "vehicle", DATABASE_URL=database_url)
        assert (refused.returncode, refused.stderr) == (
            1,
            "wattline: Give either an expectation (always, charging or never) or --undo.\n",
        )
    assert command("device", "expect", "V", "often", "--stream", "vehicle", DATABASE_URL=database_url).returncode == 2


async def test_an_expected_device_that_reports_seldom_has_its_own_time(
    database_url: str, connection: psycopg.Connection
) -> None:
    """It charges for two hours a day, and reports each 15 minutes meanwhile."""
    last = datetime.now(UTC) - 8 * MINUTE
    times = [last - day * 1440 * MINUTE - 15 * n * MINUTE for day in range(DAYS) for n in range(8)]
    await store(database_url, *(meter_reading(at) for at in times))
    await judge_all(database_url)
    device(database_url, "expect", "M1", "charging", "--stream", "meter")
    assert await silent(database_url, connection, last + 44 * MINUTE) == set()
    assert await silent(database_url, connection, last + 46 * MINUTE) == {"M1"}


async def test_what_is_imported_up_to_now_opens_no_alert(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    last = datetime.now(UTC) - 8 * MINUTE
    rows = [f"{(last - ago * MINUTE).isoformat()},M1,0.1" for ago in range(DAYS * 1440)]
    file = tmp_path / "history.csv"
    file.write_text("\n".join(["timestamp,meterId,kwhConsumedAc", *rows]))
    assert command("import", str(file), DATABASE_URL=database_url).returncode == 0
    await judge_all(database_url)
    assert await silent(database_url, connection, last + HOUR) == set()
    # Once it reports by itself, it is expected to.
    await store(database_url, meter_reading(last + 4 * MINUTE))
    assert await silent(database_url, connection, last + HOUR) == {"M1"}


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        ([0], (0, 0, 0)),
        ([59], (59, 59, 0)),
        (range(60), (0, 59, 1)),
        ([3, 18, 33, 48], (3, 48, 15)),
        ([0, 1, 2, 40, 59], (0, 59, 38)),
    ],
)
def test_what_the_minutes_of_an_hour_say(minutes: Iterable[int], expected: tuple[int, int, int]) -> None:
    assert reported_in(sum(1 << minute for minute in minutes)) == Reported(*expected)
