"""The command that lists alerts."""

import click
import msgspec

from app.analytics.alerts.judge import Kind
from app.analytics.alerts.listing import AlertFilter, fetch_alerts
from app.cli.common import counted, on_database, table
from app.csv_rows import stamp

MOST = 10_000


@click.command()
@click.option("--open", "is_open", is_flag=True, help="Show only open alerts.")
@click.option("--kind", type=click.Choice([kind.value for kind in Kind]), help="Show only one kind.")
@click.option("--device", help="Show only alerts of this meter or vehicle, and alerts that name it at the other end.")
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer.")
def alerts(kind: str | None, device: str | None, *, is_open: bool, as_json: bool) -> None:
    """List the alerts of devices in service, newest first. The database must be running."""
    only = AlertFilter(is_open=is_open or None, kind=Kind(kind) if kind else None, device_id=device, limit=MOST)
    found = on_database(lambda connection, _: fetch_alerts(connection, only))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    rows = [
        [one.kind, one.device_id, stamp(one.opened_at), stamp(one.closed_at) if one.closed_at else "-", one.text]
        for one in found.alerts
    ]
    if rows:
        click.echo("\n".join(table(("kind", "device", "opened", "closed", "what"), rows)))
    judged = f"judged up to {stamp(found.as_of)}" if found.as_of else "no hour has been judged yet"
    click.echo(f"{'The newest ' if len(rows) == MOST else ''}{counted(len(rows), 'alert')}; {judged}.")
