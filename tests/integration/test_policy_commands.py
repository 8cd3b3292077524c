"""`wattline policy` shows what is in force and what a change would do, applies it when told to, and takes it back."""

import json
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import psycopg
import pytest
from click.testing import CliRunner, Result

from app.cli import cli
from app.migrate import migrate
from app.policies.desired import Policies
from app.policies.invariants import read_policies
from tests.fixtures.engines import on_timescale, policy_jobs, run_policies
from tests.fixtures.readings import meter_reading, midnight, store, vehicle_reading

Policy = Callable[..., Result]


@pytest.fixture
def policy(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """Returns `wattline policy`, run on the test's database."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    return lambda *arguments: CliRunner().invoke(cli, ["policy", *arguments])


@pytest.fixture
def change_file(monkeypatch: pytest.MonkeyPatch) -> Callable[[Policies], None]:
    """Returns a function that puts other policies in the place of timescale/policies.toml."""

    def change(policies: Policies) -> None:
        monkeypatch.setattr("app.cli.policy.read_policies", lambda: policies)
        monkeypatch.setattr("app.migrate.read_policies", lambda: policies)

    return change


def retaining(name: str, age: str) -> Policies:
    policies = read_policies()
    return msgspec.structs.replace(policies, retention=policies.retention | {name: age})


def test_a_shortened_retention_is_left_by_migrate_applied_by_policy_apply_and_reverted(
    connection: psycopg.Connection, database_url: str, policy: Policy, change_file: Callable[[Policies], None]
) -> None:
    change_file(retaining("meter_hour", "400 days"))
    change = "keep meter_hour for 400 days (was 1095 days)"
    (line,) = migrate(database_url)
    assert change in line
    planned = policy("plan")
    assert (planned.exit_code, change in planned.output) == (2, True)
    assert policy("apply").exit_code == 1
    assert policy("plan").exit_code == 2
    assert policy("apply", "--yes", "--reason", "disk").exit_code == 0
    assert policy("plan").exit_code == 0
    reverted = policy("revert", "--yes")
    assert "keep meter_hour for 1095 days (was 400 days)" in reverted.output
    assert policy("plan").exit_code == 2
    rows = connection.execute("SELECT reason FROM policy_change ORDER BY id").fetchall()
    assert rows == [("first installation",), ("disk",), ("wattline policy revert",)]


async def test_the_parts_that_a_plan_names_are_those_that_are_dropped(
    connection: psycopg.Connection,
    database_url: str,
    engine: str,
    policy: Policy,
    change_file: Callable[[Policies], None],
) -> None:
    days = 29, 15, 14, 13, 12, 11, 10, 1
    await store(database_url, *(make(midnight(day)) for day in days for make in (meter_reading, vehicle_reading)))
    change_file(retaining("meter_reading", "12 days"))
    (change,) = json.loads(policy("plan", "--json").output)["changes"]
    now = datetime.now(UTC)
    parts = [(part["part"], datetime.fromisoformat(part["at"])) for part in change["parts"]]
    # A chunk counts from its end.
    assert [at for _, at in parts] == [midnight(day - 1 - 12) for day in days]
    expected = {name for name, at in parts if at <= now}
    assert len(expected) == 4
    said = policy("plan").output
    assert f"drops 4 parts at the first run, {midnight(29):%Y-%m-%d} to {midnight(12):%Y-%m-%d}: about 4 rows" in said
    assert f"{parts[4][0]} next, from {midnight(-1):%Y-%m-%d %H:%M} UTC" in said
    assert ("meter_minute 180 days" if engine == "timescale" else "meter_minute as long as its readings") in said
    assert "meter_day for good" in said

    before = stored_parts(connection)
    assert policy("apply", "--yes").exit_code == 0
    run_policies(connection, "policy_retention") if engine == "timescale" else drop_all(connection)
    assert before - stored_parts(connection) == expected


def stored_parts(connection: psycopg.Connection) -> set[str]:
    rows = connection.execute("SELECT part FROM storage_parts() WHERE name = 'meter_reading'").fetchall()
    return {part for (part,) in rows}


def drop_all(connection: psycopg.Connection) -> None:
    while connection.execute("SELECT drop_expired()").fetchone() == (True,):
        pass


@on_timescale
async def test_show_tells_what_is_stored_and_where_the_database_differs_from_the_file(
    connection: psycopg.Connection, database_url: str, policy: Policy
) -> None:
    await store(database_url, *(meter_reading(midnight(day)) for day in (25, 20, 1)))
    run_policies(connection, "policy_compression")
    connection.execute("SELECT remove_retention_policy('meter_reading')")
    connection.execute("SELECT add_retention_policy('meter_reading', INTERVAL '26 days')")
    shown = policy("show").output
    section = shown[shown.index("\nmeter_reading: ") :].split("\n\n")[0]
    assert f"3 parts from {midnight(25):%Y-%m-%d} to {midnight(0):%Y-%m-%d}, 67% compressed" in section
    assert "keep     26 days" in section
    assert "differs from timescale/policies.toml: 30 days" in section
    assert f"from {midnight(-2):%Y-%m-%d} 00:00 UTC" in section

    tables = {table["name"]: table for table in json.loads(policy("show", "--json").output)["tables"]}
    readings = tables["meter_reading"]
    assert (readings["parts"], readings["compressedParts"], readings["rowsEstimated"]) == (3, 2, 3)
    assert readings["compressionRatio"] > 0
    assert readings["droppedNext"]["part"]["rangeStart"] == f"{midnight(25):%Y-%m-%dT%H:%M:%SZ}"
    runs = {each["kind"]: each for each in readings["policies"]}
    assert len(policy_jobs(connection, "policy_compression")) == 6
    assert runs["columnstore"]["live"] == runs["columnstore"]["desired"]
    assert runs["retention"]["live"] != runs["retention"]["desired"]


def test_show_names_everything_that_is_stored_and_each_policy_of_the_file(
    connection: psycopg.Connection, policy: Policy, engine: str
) -> None:
    shown = policy("show")
    assert shown.exit_code == 0
    names = connection.execute("SELECT DISTINCT name FROM storage_parts()").fetchall()
    for (name,) in names:
        assert f"\n{name}: " in shown.output
    retained = read_policies().retention
    assert shown.output.count("\n  keep ") == len(retained) - (0 if engine == "timescale" else 2)
    assert "differs" not in shown.output
