"""The report on a month: what charged on each local day, what was lost and what that cost, and the worst devices.

It is made from the judged hours, as the ranking, and from the sessions.
"""

from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple, TypeAlias

from psycopg import AsyncConnection

from app.analytics.buckets import Buckets, choose_bucket
from app.analytics.efficiency.ranking import Ranked, Totals, fetch_judged_to, rank, totals_of
from app.analytics.series_source import FLEET
from app.analytics.window import Window, window_of
from app.csv_rows import stamp
from app.errors import InvalidParameter, InvalidTimeRange
from app.fleet.sites import devices_at
from app.settings import Settings

# With 31 days, so many meters and so many vehicles fit on a sheet of paper.
_WORST = 8
Connection: TypeAlias = AsyncConnection[tuple[Any, ...]]


class Sums(Totals, frozen=True, rename="camel"):
    """The paired energy and its loss; all DC energy, paired or not; the sessions that began, and their DC energy."""

    total_dc_kwh: float
    sessions: int
    sessions_dc_kwh: float


class Report(NamedTuple):
    """The report on a month of a time zone; `meters` and `vehicles` are the worst devices.

    A day has None where none of its hours has been judged; None for `judged_to` means that no hour has been. Costs are
    in `currency`, at `price_per_kwh`; both are None where the settings name no price.
    """

    month: date
    zone: str
    site: str | None
    currency: str | None
    price_per_kwh: float | None
    judged_to: datetime | None
    end: datetime
    days: list[tuple[date, Sums | None]]
    whole: Sums
    meters: list[Ranked]
    vehicles: list[Ranked]


async def fetch_report(connection: Connection, month: date, tz: str, site: str | None, settings: Settings) -> Report:
    """Returns the report on the month that has this day in the zone `tz`: on all devices, or on the meters of a site.

    Devices that are retired today are in it. Raises InvalidTimeRange when hours do not make up the month's days or are
    not kept any more, and InvalidParameter when there is no such zone, or no meter at that site.
    """
    days = _days_of(month, tz)
    window = Window(days.start, days.end)
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        await _refuse_dropped(connection, days)
        meters = None if site is None else (await devices_at(connection, site))[0]
        if meters == []:
            raise InvalidParameter(f"No meter is at the site {site}, and the report of a site is that of its meters.")
        _, judged_to = await fetch_judged_to(connection, settings)
        sums = await _fetch_sums(connection, days, meters)
        _, worst_meters = await rank(connection, settings, "meter", window, meters=meters, retired=True, worst=_WORST)
        _, worst_vehicles = await rank(
            connection, settings, "vehicle", window, meters=meters, retired=True, worst=_WORST
        )
    of_days = [
        (start.astimezone(days.zone).date(), _sums(settings, *row) if judged_to and start < judged_to else None)
        for start, row in zip(days.bounds, sums, strict=False)
    ]
    whole = _sums(settings, *map(sum, zip(*sums, strict=True)))
    paired = [[one for one in worst if one.efficiency_ratio is not None] for worst in (worst_meters, worst_vehicles)]
    head = (of_days[0][0], tz, site, settings.currency, settings.price_per_kwh, judged_to, days.end)
    return Report(*head, of_days, whole, *paired)


def _days_of(month: date, tz: str) -> Buckets:
    middle = datetime(month.year, month.month, 15, tzinfo=UTC)
    whole = choose_bucket(FLEET, window_of(middle, middle + timedelta(hours=1), None, now=middle), "1mo", 1, set(), tz)
    days = choose_bucket(FLEET, Window(whole.start, whole.end), "1d", 1, set(), tz)
    if days.source == "1m":
        raise InvalidTimeRange(
            f"The days of {tz} do not begin with an hour of UTC, and a report is made from hours: name another zone."
        )
    return days


async def _refuse_dropped(connection: Connection, days: Buckets) -> None:
    for (kept_from,) in await (await connection.execute(_KEPT_FROM)).fetchall():
        if days.start < kept_from:
            raise InvalidTimeRange(f"The hours of which a report is made are kept from {stamp(kept_from)} on.")


async def _fetch_sums(connection: Connection, days: Buckets, meters: list[int] | None) -> list[tuple[int, ...]]:
    """Returns for each day the columns of _ENERGY and of _SESSIONS; zeros where there is nothing."""
    bounds = {"bounds": [*days.bounds], "from": days.start, "to": days.end, "meters": meters}
    energy = {day: sums for day, *sums in await (await connection.execute(_ENERGY, bounds)).fetchall()}
    sessions = {day: sums for day, *sums in await (await connection.execute(_SESSIONS, bounds)).fetchall()}
    numbers = range(1, len(days.bounds))
    return [(*energy.get(number, (0, 0, 0)), *sessions.get(number, (0, 0))) for number in numbers]


def _sums(settings: Settings, ac: int, dc: int, total_dc: int, sessions: int, sessions_dc: int) -> Sums:
    totals = totals_of(settings.price_per_kwh, ac, dc)
    energies = (total_dc / 1_000_000, sessions, sessions_dc / 1_000_000)
    return Sums(totals.ac_kwh, totals.dc_kwh, totals.loss_kwh, totals.loss_cost, totals.efficiency_ratio, *energies)


# The age at which hours are dropped.
_KEPT_FROM = "SELECT now() - drop_after FROM retention WHERE name = 'efficiency_hour'"

# The energies between each two of the bounds, by the number of the first one.
_ENERGY = """
    SELECT width_bucket(hour, %(bounds)s::timestamptz[]) AS day, sum(paired_ac_milliwh)::bigint,
           sum(paired_dc_milliwh)::bigint, sum(dc_milliwh)::bigint
    FROM efficiency_hour
    WHERE hour >= %(from)s AND hour < %(to)s AND (%(meters)s::integer[] IS NULL OR meter_id = ANY (%(meters)s))
    GROUP BY day
"""

# The number of sessions that began between each two of the bounds, and their energy.
_SESSIONS = """
    SELECT width_bucket(started, %(bounds)s::timestamptz[]) AS day, count(*), sum(dc_milliwh)::bigint
    FROM charging_session
    WHERE started >= %(from)s AND started < %(to)s
        AND (%(meters)s::integer[] IS NULL OR meter_id = ANY (%(meters)s))
    GROUP BY day
"""
