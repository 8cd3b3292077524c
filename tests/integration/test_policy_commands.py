"""`wattline policy`: a change that could lose something is shown, applied when told to, and taken back."""

import msgspec
import psycopg
import pytest
from click.testing import CliRunner, Result

from app.cli import cli
from app.migrate import migrate
from app.policies.invariants import read_policies


def test_a_shortened_retention_is_left_by_migrate_applied_by_policy_apply_and_reverted(
    connection: psycopg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = read_policies()
    shorter = msgspec.structs.replace(policies, retention=policies.retention | {"meter_hour": "400 days"})
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setattr("app.cli.policy.read_policies", lambda: shorter)
    monkeypatch.setattr("app.migrate.read_policies", lambda: shorter)
    change = "keep meter_hour for 400 days (was 1095 days)"

    def policy(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["policy", *arguments])

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
