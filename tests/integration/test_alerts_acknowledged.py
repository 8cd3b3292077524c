"""Acknowledged alerts: they say who and why, and webhooks do not mention them again until they reopen."""

import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import psycopg
import pytest

from app.database import connect, os_user
from tests.fixtures.alerts import expect_all, judge_all, standing_alerts
from tests.fixtures.commands import command
from tests.fixtures.readings import meter_reading, midnight, store
from tests.fixtures.receiver import Receiver, receiving
from tests.fixtures.sending import stamp
from tests.integration.test_alerts import HOUR, MINUTE, session, spans
from tests.integration.test_webhooks import Sender

DAY = midnight(4)
LOW = f"low_efficiency/vehicle/V/{stamp(DAY + 11 * HOUR)}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
async def sender(database_url: str, receiver: Receiver) -> AsyncIterator[Sender]:
    """Makes a sender in a database that has had webhooks before."""
    async with httpx.AsyncClient() as client, await connect(database_url) as own:
        sender = Sender(own, client, receiver.url)
        await sender.deliver()
        yield sender


def listed(url: str) -> dict[str, Any]:
    """Returns the alerts by id."""
    answer = json.loads(command("alerts", "list", "--json", DATABASE_URL=url).stdout)
    return {one["id"]: one for one in answer["alerts"]}


def ack(url: str, alert: str, *options: str) -> tuple[int, str]:
    """Returns the exit status, and what the command prints."""
    done = command("alerts", "ack", alert, *options, DATABASE_URL=url)
    return done.returncode, done.stdout + done.stderr


async def test_it_survives_judging_and_is_quiet_until_the_alert_reopens(
    database_url: str, connection: psycopg.Connection, receiver: Receiver, sender: Sender
) -> None:
    def told() -> list[str]:
        return [event for event, name in receiver.told if name == LOW]

    async def judged_and_told() -> dict[tuple[str, str], Any]:
        await judge_all(database_url)
        await sender.deliver()
        return spans(standing_alerts(connection), DAY)

    await store(database_url, *session(DAY + 10 * HOUR, 120, "V", efficiency=0.8))
    assert await judged_and_told() == {("low_efficiency", "V"): [(11, None)]}
    assert told() == ["alert.opened"]
    facts = standing_alerts(connection)
    before = datetime.now(UTC)
    assert ack(database_url, LOW, "--by", "Ada", "--reason", "cable is hot") == (0, f"{LOW} is acknowledged by Ada.\n")
    acknowledged = listed(database_url)[LOW]["acknowledged"]
    assert (acknowledged["by"], acknowledged["reason"]) == ("Ada", "cable is hot")
    assert before < datetime.fromisoformat(acknowledged["at"]) < datetime.now(UTC)
    assert "by Ada: cable is hot" in command("alerts", "list", DATABASE_URL=database_url).stdout
    assert standing_alerts(connection) == facts

    # Late readings change what happened after the opening: the alert closes, then at another hour.
    better = session(DAY + 12 * HOUR, 600, "V", efficiency=0.9)
    await store(database_url, *better[:240], *better[360:])
    assert await judged_and_told() == {("low_efficiency", "V"): [(11, 18)]}
    await store(database_url, *session(DAY + 14 * HOUR, 60, "V", efficiency=0.79))
    assert await judged_and_told() == {("low_efficiency", "V"): [(11, 21)]}
    assert listed(database_url)[LOW]["acknowledged"] == acknowledged
    log = b"SELECT transition, quiet FROM alert_transition WHERE kind = 'low_efficiency' ORDER BY id"
    assert connection.execute(log).fetchall() == [("opened", False), ("closed", True), ("closed", True)]
    assert told() == ["alert.opened"]

    # Nothing proves that it was better after all: another vehicle, which was there all the time, charged since noon.
    await store(database_url, *session(DAY + 9 * HOUR, 180, "W", meter_id="V", efficiency=0)[1::2])
    await store(database_url, *session(DAY + 12 * HOUR, 600, "W", meter_id="V")[1::2])
    assert await judged_and_told() == {("low_efficiency", "V"): [(11, None)]}
    assert listed(database_url)[LOW]["acknowledged"] is None
    assert told() == ["alert.opened", "alert.opened"]

    assert ack(database_url, LOW, "--reason", "again")[0] == 0
    await store(database_url, *session(DAY + 10 * HOUR, 120, "X", meter_id="V")[1::2])
    assert await judged_and_told() == {}
    assert connection.execute(log).fetchall()[-1] == ("retracted", True)
    assert told() == ["alert.opened", "alert.opened"]


async def test_a_silence_that_ends_and_a_device_that_is_retired_are_quiet_too(
    database_url: str, connection: psycopg.Connection, receiver: Receiver, sender: Sender
) -> None:
    at = datetime.now().astimezone() - 30 * MINUTE
    names = "ends", "retired", "loud"
    await store(database_url, *(meter_reading(at, meter_id=name) for name in names))
    expect_all(connection)
    await judge_all(database_url)
    ids = {name: f"no_data/meter/{name}/{stamp(at + 10 * MINUTE)}" for name in names}
    assert listed(database_url).keys() == {*ids.values()}
    for name in "ends", "retired":
        assert ack(database_url, ids[name], "--reason", "known") == (
            0,
            f"{ids[name]} is acknowledged by {os_user()}.\n",
        )
    await store(database_url, *(meter_reading(datetime.now().astimezone(), meter_id=name) for name in ("ends", "loud")))
    assert command("device", "retire", "retired", "--stream", "meter", DATABASE_URL=database_url).returncode == 0
    await judge_all(database_url)
    assert listed(database_url) == {}
    await sender.deliver()
    assert [name for event, name in receiver.told if event == "alert.closed"] == [ids["loud"]]
    assert connection.execute("SELECT count(*) FROM alert_transition WHERE quiet").fetchone() == (2,)


async def test_who_acknowledges_says_why_and_only_what_is_open(
    database_url: str, connection: psycopg.Connection
) -> None:
    await store(
        database_url,
        *session(DAY + 10 * HOUR, 120, "V", efficiency=0.8),
        *session(DAY + 12 * HOUR, 600, "V", efficiency=0.9),
        *session(DAY + 10 * HOUR, 120, "W", efficiency=0.8),
    )
    await judge_all(database_url)
    other = LOW.replace("/V/", "/W/")
    for options in [], ["--reason", " "]:
        assert ack(database_url, other, *options) == (
            1,
            "wattline: An acknowledgement needs a reason: --reason TEXT.\n",
        )
    for name in LOW, other + "x", "nonsense", other.replace("/W/", "/U/"):
        refused = f"wattline: There is no open alert {name}: `wattline alerts list --open` shows the ids.\n"
        assert ack(database_url, name, "--reason", "so") == (1, refused)
    for reason in "first", "second":
        assert ack(database_url, other, "--by", "Ada", "--reason", reason)[0] == 0
        assert listed(database_url)[other]["acknowledged"]["reason"] == reason
    assert ack(database_url, other, "--undo") == (0, f"{other} is not acknowledged any more.\n")
    assert listed(database_url)[other]["acknowledged"] is None
    connection.execute("UPDATE vehicle SET retired_at = now() WHERE external_id = 'W'")
    assert ack(database_url, other, "--reason", "so")[0] == 1
