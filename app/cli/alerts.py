"""Commands for alerts."""

import os

import click
import msgspec

from app.analytics.alerts.acknowledge import acknowledge
from app.analytics.alerts.judge import Kind
from app.analytics.alerts.listing import AlertFilter, ListedAlert, fetch_alerts
from app.cli.common import counted, on_database, table
from app.csv_rows import stamp
from app.database import os_user
from app.errors import SetupError
from app.settings import Settings

MOST = 10_000


@click.group()
def alerts() -> None:
    """List or acknowledge alerts. The database must be running."""


@alerts.command("list")
@click.option("--open", "is_open", is_flag=True, help="Show only open alerts.")
@click.option("--kind", type=click.Choice([kind.value for kind in Kind]), help="Show only one kind.")
@click.option("--device", help="Show only alerts of this meter or vehicle, and alerts that name it at the other end.")
@click.option("--site", help="Show only alerts that concern a device of this site.")
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer.")
def list_(kind: str | None, device: str | None, site: str | None, *, is_open: bool, as_json: bool) -> None:
    """List the alerts of devices in service: open ones first, then those with the largest loss to date."""
    of_kind = Kind(kind) if kind else None
    only = AlertFilter(is_open=is_open or None, kind=of_kind, device_id=device, site=site, limit=MOST)
    settings = Settings.from_environ(os.environ)
    found = on_database(lambda connection, _: fetch_alerts(connection, only, settings))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    if found.alerts:
        lost = "kWh lost to date", *([f"in {found.currency}"] if found.currency else [])
        headings = "id", "closed", *lost, "acknowledged", "what"
        click.echo("\n".join(table(headings, [_row(one, *lost[1:]) for one in found.alerts])))
    judged = f"judged up to {stamp(found.as_of)}" if found.as_of else "no hour has been judged yet"
    first = "The first " if len(found.alerts) == MOST else ""
    click.echo(f"{first}{counted(len(found.alerts), 'alert')}; {judged}.")


def _row(one: ListedAlert, *currency: str) -> list[str]:
    by = f"by {one.acknowledged.by}: {one.acknowledged.reason}" if one.acknowledged else "-"
    lost = one.loss_to_date_kwh, *([one.loss_to_date_cost] if currency else [])
    numbers = ["-" if number is None else f"{number:.2f}" for number in lost]
    return [one.id, stamp(one.closed_at) if one.closed_at else "-", *numbers, by, one.text]


@alerts.command()
@click.argument("alert_id", metavar="ID")
@click.option("--reason", metavar="TEXT", help="Why, for those who see the alert later.")
@click.option("--by", default=os_user, show_default="the user of the system", help="Who acknowledges it.")
@click.option("--undo", is_flag=True, help="Withdraw an acknowledgement.")
def ack(alert_id: str, reason: str | None, by: str, *, undo: bool) -> None:
    """Acknowledge the open alert with this ID, which `wattline alerts list` shows.

    Webhooks do not mention the alert again until it reopens.
    """
    if not undo and not (reason and reason.strip()):
        raise SetupError("An acknowledgement needs a reason: --reason TEXT.")
    on_database(lambda connection, _: acknowledge(connection, alert_id, by=by, reason=reason, undo=undo))
    click.echo(f"{alert_id} is {'not acknowledged any more' if undo else f'acknowledged by {by}'}.")
