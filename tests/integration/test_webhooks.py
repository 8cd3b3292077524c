"""Webhooks: a real receiver on loopback, which answers, refuses, hangs or hangs up."""

import asyncio
import base64
import signal
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.types.json import Jsonb

from app.database import connect
from app.settings import Settings
from app.webhooks import deliver
from app.webhooks.queue import GIVE_UP_DAYS, LEASE_SECONDS, postpone, take
from tests.fixtures.engines import on_plain
from tests.fixtures.receiver import SECRET, Receiver, receiving, shown_program
from tests.fixtures.service import free_port, service, serving
from tests.fixtures.waiting import DEADLINE_S
from tests.integration.test_metrics import metrics

KEY = base64.b64decode(SECRET.removeprefix("whsec_"))
OPENED = datetime(2026, 2, 10, 14, tzinfo=UTC)
EVIDENCE = {"efficiencyRatio": 0.8, "acKwh": 40.0, "dcKwh": 32.0, "lossKwh": 8.0, "others": [2, 1]}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def _short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver, "TIMEOUT_SECONDS", 0.4)


class Sender:
    """The sending part of one process, of several."""

    def __init__(self, connection: psycopg.AsyncConnection, client: httpx.AsyncClient, url: str) -> None:
        self.connection, self.client, self.url = connection, client, url

    async def deliver(self) -> None:
        """Delivers until nothing is due."""
        await deliver.deliver_due(self.connection, self.client, self.url, KEY)


@pytest.fixture
async def senders(database_url: str, connection: psycopg.Connection, receiver: Receiver) -> AsyncIterator[list[Sender]]:
    """Makes two senders, in a database with three devices of each stream that has had webhooks before."""
    connection.execute("INSERT INTO meter (external_id) SELECT 'M' || n FROM generate_series(1, 3) AS n")
    connection.execute("INSERT INTO vehicle (external_id) SELECT 'V' || n FROM generate_series(1, 3) AS n")
    async with httpx.AsyncClient() as client:
        connections = [await connect(database_url) for _ in range(2)]
        senders = [Sender(each, client, receiver.url) for each in connections]
        await senders[0].deliver()
        yield senders
        for each in connections:
            await each.close()


def log(connection: psycopg.Connection, transition: str, device: int = 1, *, days_ago: int = 0, **other: Any) -> None:
    """Logs a transition of an alert, as the evaluator does."""
    row = {"kind": "low_efficiency", "stream": "vehicle", "evidence": EVIDENCE, "opened": OPENED, **other}
    connection.execute(
        """
        INSERT INTO alert_transition (at, transition, kind, stream, device_id, opened, closed, evidence)
        VALUES (now() - make_interval(days => %s), %s, %s, %s, %s, %s, %s, %s)
        """,
        [
            days_ago,
            transition,
            row["kind"],
            row["stream"],
            device,
            row["opened"],
            OPENED + timedelta(hours=3) if transition == "closed" else None,
            Jsonb(row["evidence"]),
        ],
    )


def told(transition: str, device: int = 1) -> tuple[str, str]:
    return f"alert.{transition}", f"low_efficiency/vehicle/V{device}/2026-02-10T14:00:00Z"


def pass_time(connection: psycopg.Connection, seconds: float) -> None:
    connection.execute("UPDATE webhook SET next_at = next_at - make_interval(secs => %s)", [seconds])


def waiting(connection: psycopg.Connection) -> list[tuple[int, float]]:
    """Returns the attempts, and the seconds to the next one."""
    return connection.execute(
        "SELECT attempts, extract(epoch FROM next_at - now())::float FROM webhook ORDER BY transition_id"
    ).fetchall()


async def test_each_transition_is_told_once_signed_and_as_the_alert_is_answered(
    senders: list[Sender], receiver: Receiver, connection: psycopg.Connection
) -> None:
    for transition in ("opened", "closed", "retracted"):
        log(connection, transition)
    log(connection, "opened", 3, stream="meter", kind="no_data", evidence={"lastSeen": "2026-02-10T13:50:00Z"})
    await senders[0].deliver()
    await senders[1].deliver()
    of_vehicle = [each for each in receiver.told if "vehicle" in each[1]]
    assert of_vehicle == [told("opened"), told("closed"), told("retracted")]
    assert ("alert.opened", "no_data/meter/M3/2026-02-10T14:00:00Z") in receiver.told
    assert len(receiver.got) == len(set(receiver.ids)) == 4
    assert waiting(connection) == []
    for headers, event, is_genuine in receiver.got:
        assert is_genuine
        assert headers["content-type"] == "application/json"
        assert datetime.fromisoformat(event["timestamp"]).tzinfo is not None
    (closed,) = (event for _, event, _ in receiver.got if event["type"] == "alert.closed")
    assert closed["data"] == {
        "id": "low_efficiency/vehicle/V1/2026-02-10T14:00:00Z",
        "kind": "low_efficiency",
        "stream": "vehicle",
        "deviceId": "V1",
        "meterIds": ["M1", "M2"],
        "vehicleIds": ["V1"],
        "openedAt": "2026-02-10T14:00:00Z",
        "closedAt": "2026-02-10T17:00:00Z",
        "text": "8.00 of 40.00 kWh AC from M1, M2 did not reach V1 in the 24 hours before this alert: "
        "efficiency 80.0 %. Who else charges there: "
        "/v1/analytics/meters/M1/vehicles?hours=168, /v1/analytics/meters/M2/vehicles?hours=168",
        "evidence": {"efficiencyRatio": 0.8, "acKwh": 40.0, "dcKwh": 32.0, "lossKwh": 8.0},
    }


SESSION = {
    "start": "2026-02-10T14:00:00Z",
    "end": "2026-02-10T15:00:00Z",
    "dcKwh": 10.0,
    "acKwh": 11.0,
    "lossKwh": 1.0,
    "efficiencyRatio": 0.9,
    "uncertainty": 0.0,
    "status": "ok",
    "peakKw": 11.0,
    "socStart": 20.0,
    "socEnd": None,
    "batteryTempMax": None,
    "pairedMinutes": 60,
    "sharedMinutes": 0,
    "silences": 0,
}


@pytest.mark.parametrize("others", [[1], []])
async def test_a_session_is_told_as_it_is_answered(
    senders: list[Sender], receiver: Receiver, connection: psycopg.Connection, others: list[int]
) -> None:
    for transition in ("ended", "changed"):
        log(connection, transition, kind="session", evidence={**SESSION, "others": others})
    await senders[0].deliver()
    await senders[0].deliver()
    assert [event["type"] for _, event, _ in receiver.got] == ["session_ended", "session_changed"]
    for _, event, is_genuine in receiver.got:
        assert is_genuine
        assert event["data"] == {"vehicleId": "V1", "meterId": "M1" if others else None, **SESSION}


def test_the_receiver_that_is_shown_refuses_what_was_changed_or_is_old() -> None:
    program = shown_program()
    now, body = str(int(datetime.now(UTC).timestamp())), b'{"type": "alert.opened"}'
    sound = {"webhook-id": "a", "webhook-timestamp": now, "webhook-signature": deliver.signature(KEY, "a", now, body)}
    assert program["is_genuine"](sound, body)
    assert not program["is_genuine"](sound, body + b" ")
    assert not program["is_genuine"](sound | {"webhook-id": "b"}, body)
    assert not program["is_genuine"](sound | {"webhook-timestamp": str(int(now) + 1)}, body)
    assert not program["is_genuine"](sound | {"webhook-signature": "v1,AAAA v2,="}, body)
    old = str(int(now) - 400)
    signed = deliver.signature(KEY, "a", old, body)
    assert not program["is_genuine"](sound | {"webhook-timestamp": old, "webhook-signature": signed}, body)


@pytest.mark.parametrize("fault", [500, 404, 302, "close", "hang"])
async def test_what_was_not_taken_is_told_again_in_order_and_later_each_time(
    fault: int | str, senders: list[Sender], receiver: Receiver, connection: psycopg.Connection
) -> None:
    log(connection, "opened")
    log(connection, "closed")
    receiver.answers = [fault, fault]
    await senders[0].deliver()
    ((attempts, first), (untried, _)) = waiting(connection)
    assert (attempts, untried) == (1, 0)
    # Another alert does not wait for this one.
    receiver.answers.insert(0, 200)
    log(connection, "opened", 2)
    await senders[0].deliver()
    assert receiver.told == [told("opened"), told("opened", 2)]

    pass_time(connection, first + 1)
    await senders[0].deliver()
    ((attempts, second), _) = waiting(connection)
    assert attempts == 2
    assert 3 < first < 7 < second < 13
    pass_time(connection, second + 1)
    await senders[0].deliver()
    assert receiver.told == [told("opened"), told("opened", 2), told("opened"), told("opened"), told("closed")]
    assert len(set(receiver.ids)) == 3
    assert all(is_genuine for _, _, is_genuine in receiver.got)
    assert waiting(connection) == []


async def test_what_cannot_be_reached_is_no_error_of_the_service(
    senders: list[Sender], receiver: Receiver, connection: psycopg.Connection
) -> None:
    log(connection, "opened")
    for url in (f"http://127.0.0.1:{free_port()}/", receiver.url.replace("http", "https"), "http://\u00ad/"):
        senders[0].url = url
        await senders[0].deliver()
        pass_time(connection, 3600)
    assert waiting(connection)[0][0] == 3
    senders[0].url = receiver.url
    await senders[0].deliver()
    assert receiver.told == [told("opened")]


async def test_several_processes_tell_each_transition_once_and_those_of_an_alert_in_order(
    senders: list[Sender], receiver: Receiver, connection: psycopg.Connection
) -> None:
    for _ in range(4):
        for device in (1, 2, 3):
            log(connection, "opened", device)
            log(connection, "closed", device)
    while waiting(connection) or not receiver.got:
        await asyncio.gather(*(sender.deliver() for sender in senders))
    assert len(receiver.ids) == len(set(receiver.ids)) == 24
    numbers = [int(name.rpartition("-")[2]) for name in receiver.ids]
    for device in (1, 2, 3):
        of_device = [number for number, (_, name) in zip(numbers, receiver.told, strict=True) if f"V{device}" in name]
        assert of_device == sorted(of_device)
        assert len(of_device) == 8


async def test_no_transaction_is_open_while_a_request_runs(
    senders: list[Sender], receiver: Receiver, connection: psycopg.Connection
) -> None:
    log(connection, "opened")
    receiver.answers = ["hang"]
    telling = asyncio.ensure_future(senders[0].deliver())
    assert await asyncio.to_thread(receiver.hanging.wait, DEADLINE_S)
    states = connection.execute("SELECT state FROM pg_stat_activity WHERE application_name = 'wattline'").fetchall()
    assert states == [("idle",), ("idle",)]
    await telling


async def test_who_dies_with_a_transition_holds_it_up_for_a_lease_and_changes_nothing_later(
    senders: list[Sender], receiver: Receiver, connection: psycopg.Connection
) -> None:
    log(connection, "opened")
    log(connection, "closed")
    (taken,) = await take(senders[0].connection)
    await senders[1].deliver()
    assert receiver.told == []
    pass_time(connection, LEASE_SECONDS + 1)
    receiver.answers = [500]
    await senders[1].deliver()
    before = waiting(connection)
    assert await postpone(senders[0].connection, taken, 10_000)
    assert waiting(connection)[0][1] == pytest.approx(before[0][1], abs=1)
    pass_time(connection, 3600)
    await senders[1].deliver()
    assert receiver.told == [told("opened"), told("opened"), told("closed")]


async def test_what_fails_when_it_is_too_old_is_given_up_and_counted(
    senders: list[Sender], receiver: Receiver, connection: psycopg.Connection, database_url: str
) -> None:
    log(connection, "opened")
    log(connection, "closed")
    receiver.answers = [500, 500]
    await senders[0].deliver()
    connection.execute("UPDATE alert_transition SET at = at - make_interval(days => %s)", [GIVE_UP_DAYS])
    async with service(Settings(database_url=database_url)) as client:
        of_database = await metrics(client)
        assert (of_database["wattline_webhooks_waiting"], of_database["wattline_webhooks_given_up"]) == (2, 0)
        pass_time(connection, 3600)
        await senders[0].deliver()
        of_database = await metrics(client)
        assert (of_database["wattline_webhooks_waiting"], of_database["wattline_webhooks_given_up"]) == (0, 1)
    assert receiver.told == [told("opened"), told("opened"), told("closed")]


async def test_the_first_start_tells_nothing_of_before_and_a_later_one_nothing_too_old(
    database_url: str, connection: psycopg.Connection, receiver: Receiver
) -> None:
    connection.execute("INSERT INTO vehicle (external_id) VALUES ('V1'), ('V2')")
    log(connection, "opened")
    async with httpx.AsyncClient() as client, await connect(database_url) as own:
        sender = Sender(own, client, receiver.url)
        await sender.deliver()
        assert receiver.told == []
        log(connection, "closed", days_ago=GIVE_UP_DAYS)
        log(connection, "opened", 2, days_ago=GIVE_UP_DAYS - 1)
        await sender.deliver()
        assert receiver.told == [told("opened", 2)]
        assert receiver.got[0][1]["timestamp"] < datetime.now(UTC).isoformat()


@on_plain
async def test_a_service_that_is_stopped_while_it_tells_tells_again_once_it_runs(
    database_url: str, connection: psycopg.Connection, receiver: Receiver
) -> None:
    settings = Settings(database_url=database_url, webhook_url=receiver.url, webhook_secret=SECRET)
    connection.execute("INSERT INTO vehicle (external_id) VALUES ('V1')")
    connection.execute("UPDATE installation SET webhooks_queued = 0")
    receiver.answers = ["hang"]
    log(connection, "opened")
    async with service(settings):
        assert await asyncio.to_thread(receiver.hanging.wait, DEADLINE_S)
    assert [attempts for attempts, _ in waiting(connection)] == [1]
    pass_time(connection, LEASE_SECONDS)
    async with service(settings):
        await asyncio.to_thread(receiver.await_count, 2)
    assert receiver.told == [told("opened"), told("opened")]
    assert len(set(receiver.ids)) == 1


@on_plain
async def test_no_proxy_of_the_environment_is_used(
    database_url: str, connection: psycopg.Connection, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    connection.execute("INSERT INTO vehicle (external_id) VALUES ('V1')")
    connection.execute("UPDATE installation SET webhooks_queued = 0")
    log(connection, "opened")
    async with service(Settings(database_url=database_url, webhook_url=receiver.url, webhook_secret=SECRET)):
        await asyncio.to_thread(receiver.await_count, 1)


@pytest.mark.soak
@on_plain
def test_a_service_that_is_killed_while_it_tells_tells_again_once_it_runs(
    database_url: str, connection: psycopg.Connection, receiver: Receiver
) -> None:
    connection.execute("INSERT INTO vehicle (external_id) VALUES ('V1')")
    connection.execute("UPDATE installation SET webhooks_queued = 0")
    receiver.answers = ["hang"]
    log(connection, "opened")
    with serving(
        database_url, WATTLINE_WEBHOOK_URL=receiver.url, WATTLINE_WEBHOOK_SECRET=SECRET, WATTLINE_LOG_LEVEL="error"
    ) as process:
        receiver.await_count(1)
        process.signal_all(signal.SIGKILL)
        process.popen.wait()
        assert [attempts for attempts, _ in waiting(connection)] == [1]
        pass_time(connection, LEASE_SECONDS)
        process.start()
        receiver.await_count(2)
    assert receiver.told == [told("opened"), told("opened")]
    assert len(set(receiver.ids)) == 1
