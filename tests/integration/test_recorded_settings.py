"""The settings that change what answers mean are recorded in the database; a process with others is told."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import httpx
import psycopg
import pytest
import structlog

from app.migrate import migrate
from app.settings import Settings, variable_of
from tests.fixtures.commands import command
from tests.fixtures.engines import on_plain
from tests.fixtures.readings import midnight, store
from tests.fixtures.sending import performance
from tests.fixtures.service import service
from tests.fixtures.waiting import eventually_here
from tests.integration.test_alerts import HOUR, session
from tests.integration.test_doctor import complaints

DAY = midnight(2)
DIFFERS = (
    "WATTLINE_LOW_EFFICIENCY is 0.95 here, and 0.85 in the database's record: processes with different values answer "
    "differently. Set it to 0.85; or, if 0.95 is right, run `wattline migrate` with that value, and restart all other "
    "processes with it."
)
OTHERS = {
    "pairing_gap_minutes": 7,
    "low_efficiency": 0.8,
    "max_power_kw": 350.5,
    "session_min_kw": 0.5,
    "session_pause_minutes": 20,
}


async def looked(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """Returns the warnings of the service about settings, once it has looked at the database."""

    async def has_looked() -> bool:
        return (await client.get("/health/ready")).json()["checkedAt"] is not None

    await eventually_here(has_looked)
    return [one for one in (await client.get("/health/ready")).json()["warnings"] if one["code"] == "other_setting"]


async def test_of_two_services_that_answer_differently_the_one_with_another_setting_is_told(database_url: str) -> None:
    await store(database_url, *session(DAY + 10 * HOUR, 120, "V", efficiency=0.9))
    window = {"from": f"{DAY:%Y-%m-%d}T09:00:00Z", "to": f"{DAY:%Y-%m-%d}T13:00:00Z"}
    with structlog.testing.capture_logs() as log:
        async with AsyncExitStack() as stack:
            ours, other = [
                await stack.enter_async_context(service(Settings(database_url=database_url, low_efficiency=low)))
                for low in (0.85, 0.95)
            ]
            answers = [(await performance(client, "V", **window))["status"] for client in (ours, other)]
            assert answers == ["ok", "low_efficiency"]
            assert await looked(ours) == []
            assert await looked(other) == [{"code": "other_setting", "detail": DIFFERS}]
    told = [line for line in log if line["event"] == "finding" and line["code"] == "other_setting"]
    assert [(line["log_level"], line["sentence"]) for line in told] == [("warning", DIFFERS)]
    assert await asyncio.to_thread(complaints, database_url) == []
    assert await asyncio.to_thread(complaints, database_url, WATTLINE_LOW_EFFICIENCY="0.95") == [DIFFERS]


@on_plain
def test_the_first_migration_records_the_settings(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for field, value in OTHERS.items():
        monkeypatch.setenv(variable_of(field), str(value))
    migrate(empty_database_url)
    assert recorded(empty_database_url) == OTHERS
    assert complaints(empty_database_url, **{variable_of(field): str(value) for field, value in OTHERS.items()}) == []
    # Each that differs is told.
    for field in OTHERS:
        monkeypatch.delenv(variable_of(field))
    told = complaints(empty_database_url)
    assert [sentence.split()[0] for sentence in told] == [variable_of(field) for field in OTHERS]


def test_the_command_migrate_records_other_settings_but_not_the_limit_of_registers(
    database_url: str, connection: psycopg.Connection
) -> None:
    environment = {variable_of(field): str(value) for field, value in OTHERS.items()}
    done = command("migrate", DATABASE_URL=database_url, **environment)
    assert done.stdout.splitlines()[1:-1] == [
        "WATTLINE_PAIRING_GAP_MINUTES: recorded as 7 (was 5), for all processes",
        "WATTLINE_LOW_EFFICIENCY: recorded as 0.8 (was 0.85), for all processes",
        "WATTLINE_MAX_POWER_KW: recorded as 350.5 (was 1000), for all processes",
        "WATTLINE_SESSION_MIN_KW: recorded as 0.5 (was 0.2), for all processes",
        "WATTLINE_SESSION_PAUSE_MINUTES: recorded as 20 (was 15), for all processes",
    ]
    assert recorded(database_url) == OTHERS
    assert connection.execute("SELECT max_milliwatt FROM installation").fetchone() == (1_000_000_000,)
    assert len(command("migrate", DATABASE_URL=database_url, **environment).stdout.splitlines()) == 2


@on_plain
def test_a_command_that_migrates_by_the_way_records_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # `serve` and `import` migrate Wattline's own database, whatever the shell has in which they are started.
    monkeypatch.setenv("WATTLINE_LOW_EFFICIENCY", "0.5")
    migrate(database_url)
    assert recorded(database_url) == Settings().recorded()


def recorded(url: str) -> dict[str, float]:
    with psycopg.connect(url) as connection:
        ((settings,),) = connection.execute("SELECT settings FROM installation").fetchall()
    found: dict[str, float] = settings
    return found
