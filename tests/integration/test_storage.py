"""GET /v1/storage: what is stored, how it grew, and what is dropped next."""

from datetime import datetime, timedelta

import httpx
import psycopg
import pytest

from app.database import connected
from app.errors import SetupError
from app.ops.maintenance import maintain
from tests.fixtures.readings import meter_reading, midnight, store
from tests.fixtures.sending import problem


async def test_sizes_are_recorded_once_an_hour_and_answered(
    client: httpx.AsyncClient, connection: psycopg.Connection, database_url: str
) -> None:
    await store(database_url, meter_reading(midnight(2)))
    await maintain_twice(database_url)
    connection.execute(
        """
        INSERT INTO storage_size
        SELECT date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - back, 'meter_reading', 7
        FROM unnest(ARRAY['10 days', '9 days 23 hours', '500 days']::interval[]) AS back
        """
    )
    await maintain_twice(database_url)
    answer = (await client.get("/v1/storage")).json()

    history = answer["history"]
    at = [datetime.fromisoformat(each) for each in history["at"]]
    # The hour between is answered no more, and the oldest one was dropped.
    assert len(at) == 2
    assert at[0] == midnight(10)
    assert history["bytes"]["meter_reading"][0] == 7
    assert history["bytes"]["meter_reading"][1] is not None
    assert history["bytes"]["meter_hour"][0] is None

    tables = {table["name"]: table for table in answer["storage"]["tables"]}
    assert tables.keys() == history["bytes"].keys()
    readings = tables["meter_reading"]
    assert readings["oldest"] <= f"{midnight(2):%Y-%m-%dT%H:%M:%SZ}" < readings["newest"]
    dropped = readings["droppedNext"]
    assert datetime.fromisoformat(dropped["at"]) == datetime.fromisoformat(dropped["part"]["rangeEnd"]) + timedelta(30)
    (kept,) = [each for each in readings["policies"] if each["kind"] == "retention"]
    assert kept["desired"].startswith("30 days")
    assert kept["live"] == kept["desired"]


async def maintain_twice(url: str) -> None:
    async with connected(url) as maintained:
        for _ in range(2):
            while not await maintain(maintained):
                pass  # the service's own round is under way


async def test_a_file_that_is_wrong_is_named(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> None:
        raise SetupError("policies.toml: it is no TOML")

    monkeypatch.setattr("app.policies.routes.read_policies", wrong)
    answer = problem(await client.get("/v1/storage"), 503, "store_unavailable")
    assert answer["detail"] == "policies.toml: it is no TOML"
