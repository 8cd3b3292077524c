"""The listing of sessions in answers."""

from datetime import datetime, timedelta
from typing import Annotated, Any, NamedTuple

import msgspec
from psycopg import AsyncConnection, sql

from app.analytics.alerts.tables import hour_of, start_of_hour
from app.analytics.efficiency.verdict import Status
from app.analytics.sessions.answer import SessionAnswer
from app.analytics.sessions.tables import COLUMNS, Row
from app.csv_rows import stamp
from app.errors import InvalidParameter
from app.fleet.registry import refuse_unknown
from app.fleet.sites import devices_at

_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class SessionPage(msgspec.Struct, frozen=True, rename="camel"):
    """Sessions, the newest first. Readings committed before `as_of` are in them, and sessions had ended by then or not.

    The hours before `judged_to` are over: only late readings still change the sessions in them.
    """

    sessions: list[SessionAnswer]
    as_of: datetime | None
    judged_to: datetime | None


class SessionFilter(NamedTuple):
    """The choice of sessions; a member that is None excludes none. They have time in [start, end).

    Those of a `site` are of its vehicles, wherever these charge, and those at its meters.
    """

    vehicle: str | None = None
    meter: str | None = None
    site: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    status: Status | None = None
    after: str | None = None
    limit: int = 100


async def fetch_sessions(
    connection: AsyncConnection[tuple[Any, ...]], only: SessionFilter, *, gap: timedelta
) -> SessionPage:
    """Returns sessions. Raises UnknownDevice, and InvalidParameter when `after` is no place.

    `gap` is the longest one that is no silence: an hour is over after it.
    """
    meters, vehicles = ([], []) if only.site is None else await devices_at(connection, only.site)
    parameters = {**only._asdict(), **_position(only.after), "site_meters": meters, "site_vehicles": vehicles}
    await refuse_unknown(connection, vehicle=only.vehicle, meter=only.meter)
    instants = await connection.execute("SELECT sessions_as_of, judged_as_of FROM installation")
    ((as_of, judged_as_of),) = await instants.fetchall()
    rows = await (await connection.execute(_SESSIONS, parameters)).fetchall()
    return SessionPage(
        [Row(*row).answer(as_of, vehicle, meter) for vehicle, meter, *row in rows],
        as_of,
        judged_as_of and start_of_hour(hour_of(judged_as_of - gap)),
    )


def position_of(session: SessionAnswer) -> str:
    """Returns the place of a session in the listing, for `after`."""
    return f"{stamp(session.start)}/{session.vehicle_id}"


def _position(after: str | None) -> dict[str, Any]:
    started, _, name = (after or "").partition("/")
    try:
        return {"after_started": after and msgspec.convert(started, _Moment), "after_name": name}
    except msgspec.ValidationError:
        raise InvalidParameter("after: Expected the value that a Link has.") from None


# The devices of a site come as ids: by the site's name, PostgreSQL reads all sessions, which takes 85 ms with 285,000.
# Sessions that began at once are sorted before the limit, and their meters are looked up after it: with a fleet of
# 5,000 that all begin together, a page reads half as many buffers.
_SESSIONS = sql.SQL("""
    SELECT vehicle.external_id, (SELECT external_id FROM meter WHERE meter.id = session.meter_id), {columns}
    FROM charging_session AS session
    JOIN vehicle ON vehicle.id = session.vehicle_id
    WHERE (%(vehicle)s::text IS NULL OR vehicle_id = (SELECT id FROM vehicle WHERE external_id = %(vehicle)s))
        AND (%(meter)s::text IS NULL OR meter_id = (SELECT id FROM meter WHERE external_id = %(meter)s))
        AND (%(site)s::text IS NULL
             OR vehicle_id = ANY (%(site_vehicles)s::integer[]) OR meter_id = ANY (%(site_meters)s::integer[]))
        AND (%(start)s::timestamptz IS NULL OR until > %(start)s)
        AND (%(end)s::timestamptz IS NULL OR started < %(end)s)
        AND (%(status)s::text IS NULL OR status = %(status)s)
        AND (%(after_started)s::timestamptz IS NULL
             OR started < %(after_started)s
             OR (started = %(after_started)s AND vehicle.external_id > %(after_name)s))
    ORDER BY started DESC, vehicle.external_id
    LIMIT %(limit)s
""").format(columns=COLUMNS)
