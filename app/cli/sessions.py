"""The command that lists sessions."""

import os
from datetime import UTC, datetime, timedelta

import click
import msgspec

from app.analytics.efficiency.verdict import Status
from app.analytics.sessions.answer import SessionAnswer
from app.analytics.sessions.listing import SessionFilter, fetch_sessions
from app.cli.common import INSTANT, counted, on_database, table
from app.csv_rows import stamp
from app.settings import Settings

MOST = 10_000
_HEADINGS = ("vehicle", "meter", "start", "end", "kWh DC", "kWh AC", "efficiency", "status")


@click.command()
@click.option("--vehicle", help="Show only sessions of this vehicle.")
@click.option("--meter", help="Show only sessions at this meter.")
@click.option("--site", help="Show only sessions of the vehicles of this site, or at its meters.")
@click.option("--from", "start", type=INSTANT, help="Show only sessions with time after this instant.")
@click.option("--to", "end", type=INSTANT, help="Show only sessions that began before this instant.")
@click.option("--status", type=click.Choice([status.value for status in Status]), help="Show only one verdict.")
@click.option("--limit", type=click.IntRange(1, MOST), default=100, show_default=True, help="The most to show.")
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer.")
def sessions(
    vehicle: str | None,
    meter: str | None,
    site: str | None,
    start: datetime | None,
    end: datetime | None,
    status: str | None,
    limit: int,
    *,
    as_json: bool,
) -> None:
    """List the sessions of vehicles, the newest first. The database must be running."""
    gap = timedelta(minutes=Settings.from_environ(os.environ).pairing_gap_minutes)
    chosen = Status(status) if status else None
    only = SessionFilter(vehicle, meter, site, _in_utc(start), _in_utc(end), chosen, limit=limit)
    found = on_database(lambda connection, _: fetch_sessions(connection, only, gap=gap))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    if found.sessions:
        click.echo("\n".join(table(_HEADINGS, [*map(_row, found.sessions)])))
    made = f"as of {stamp(found.as_of)}" if found.as_of else "none has been made yet"
    first = "The first " if len(found.sessions) == limit else ""
    click.echo(f"{first}{counted(len(found.sessions), 'session')}; {made}.")


def _in_utc(at: datetime | None) -> datetime | None:
    return at.replace(tzinfo=UTC) if at and at.tzinfo is None else at


def _row(one: SessionAnswer) -> list[str]:
    start, end = (stamp(at.replace(microsecond=0)) if at else "-" for at in (one.start, one.end))
    ratio = "-" if one.efficiency_ratio is None else f"{100 * one.efficiency_ratio:.1f} %"
    return [
        one.vehicle_id,
        one.meter_id or "-",
        start,
        end,
        f"{one.dc_kwh:.2f}",
        f"{one.ac_kwh:.2f}",
        ratio,
        one.status,
    ]
