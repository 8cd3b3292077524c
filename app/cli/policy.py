"""Commands for the policies: how long rows are kept, how often aggregates are refreshed, when chunks are compressed."""

import os
import sys
from collections.abc import Callable

import click
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from app.cli.common import open_database
from app.database import command_connection
from app.errors import SetupError
from app.migrate import refuse_unmigrated
from app.policies.apply import apply_changes, plan_revert
from app.policies.invariants import read_policies
from app.policies.plan import Plan, drops, plan_policies
from app.settings import Settings

YES = click.option("--yes", is_flag=True, help="Do not ask.")
REASON = click.option("--reason", metavar="TEXT", help="Why, for the record.")


@click.group()
def policy() -> None:
    """Policies of timescale/policies.toml: what would change; apply it; go back. The database must be running."""


@policy.command("plan")
def plan_() -> None:
    """Show what would change. Exit status 2 when there are changes."""
    if _on_database(lambda connection: _show(_of_file(connection))).changes:
        sys.exit(2)


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


def _show(plan: Plan) -> Plan:
    for line in [change.words for change in plan.changes] + plan.notes:
        click.echo(line)
    if not plan.changes:
        click.echo("Nothing is to change.")
    return plan


def _change(connection: Connection, make: Callable[[Connection], Plan], reason: str | None, *, yes: bool) -> Plan:
    shown = _show(make(connection))
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
    return shown


def _on_database(work: Callable[[Connection], Plan]) -> Plan:
    with open_database(Settings.from_environ(os.environ), migrated=False, start=False) as url:
        refuse_unmigrated(url)
        try:
            with command_connection(url) as connection:
                return work(connection)
        except DBAPIError as error:
            raise SetupError(f"The database refuses: {error.orig}") from error
