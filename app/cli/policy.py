"""Commands for the policies: how long rows are kept, how often aggregates are refreshed, when chunks are compressed."""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

import click
import msgspec
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from app.cli.common import open_database
from app.cli.policy_text import effect_lines, plan_json, storage_lines
from app.database import command_connection
from app.errors import SetupError
from app.migrate import refuse_unmigrated
from app.policies.apply import apply_changes, plan_revert
from app.policies.invariants import read_policies
from app.policies.plan import Plan, drops, plan_policies
from app.policies.storage import fetch_parts, fetch_storage
from app.settings import Settings

YES = click.option("--yes", is_flag=True, help="Do not ask.")
REASON = click.option("--reason", metavar="TEXT", help="Why, for the record.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def policy() -> None:
    """Policies of timescale/policies.toml: show them; what would change; apply it; go back.

    The database must be running.
    """


@policy.command()
@JSON
def show(*, as_json: bool) -> None:
    """Show what is stored, its size, and its policies as they are in force.

    Below a policy that differs from the file stands what the file says.
    """
    storage = _on_database(lambda connection: fetch_storage(connection, read_policies()))
    click.echo(_json(storage) if as_json else "\n".join(storage_lines(storage)))


@policy.command("plan")
@JSON
def plan_(*, as_json: bool) -> None:
    """Show what would change, and what it would drop or compress. Exit status 2 when there are changes."""

    def of_file(connection: Connection) -> Plan:
        plan = _of_file(connection)
        if as_json:
            click.echo(_json(plan_json(plan, fetch_parts(connection))))
        else:
            _show(connection, plan)
        return plan

    if _on_database(of_file).changes:
        sys.exit(2)


def _json(shown: object) -> str:
    return msgspec.json.format(msgspec.json.encode(shown)).decode()


@policy.command("apply")
@YES
@REASON
def apply_(*, yes: bool, reason: str | None) -> None:
    """Apply the file; asks before anything is dropped."""
    _on_database(lambda connection: _change(connection, _of_file, reason, yes=yes))


@policy.command()
@YES
@REASON
def revert(*, yes: bool, reason: str | None) -> None:
    """Bring back the state before the last change; asks before anything is dropped."""
    _on_database(lambda connection: _change(connection, plan_revert, reason or "wattline policy revert", yes=yes))


def _of_file(connection: Connection) -> Plan:
    return plan_policies(connection, read_policies())


def _show(connection: Connection, plan: Plan) -> None:
    parts = fetch_parts(connection) if plan.changes else []
    now = connection.scalars(text("SELECT clock_timestamp()")).one()
    for change in plan.changes:
        click.echo(change.words)
        for line in effect_lines(change, parts, plan, now):
            click.echo(f"    {line}")
    for clause in plan.broken:
        click.echo(f"The database breaks a rule: {clause}.")
    for note in plan.notes:
        click.echo(note)
    if not plan.changes:
        click.echo("Nothing is to change.")


def _change(connection: Connection, make: Callable[[Connection], Plan], reason: str | None, *, yes: bool) -> Plan:
    shown = make(connection)
    _show(connection, shown)
    connection.rollback()
    if not shown.changes:
        return shown
    if any(map(drops, shown.changes)) and not yes:
        if not sys.stdin.isatty():
            raise SetupError("Rows may be dropped for good: say --yes.")
        click.confirm("Rows may be dropped for good. Apply?", abort=True)
    with connection.begin():
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('wattline migrate'))"))
        if make(connection).changes != shown.changes:
            raise SetupError("The policies were changed meanwhile: look at the plan again.")
        apply_changes(connection, shown.changes, reason)
    click.echo("Applied.")
    return shown


Result = TypeVar("Result")


def _on_database(work: Callable[[Connection], Result]) -> Result:
    with open_database(Settings.from_environ(os.environ), migrated=False, start=False) as url:
        refuse_unmigrated(url)
        try:
            with command_connection(url) as connection:
                return work(connection)
        except DBAPIError as error:
            raise SetupError(f"The database refuses: {error.orig}") from error
