"""The tables of sessions, and what is told of them; all is written under the lock of the evaluator."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from psycopg import sql
from psycopg.rows import args_row, scalar_row
from psycopg.types.json import Jsonb

from app.analytics.alerts.tables import Connection, columns
from app.analytics.efficiency.verdict import Status
from app.analytics.sessions.answer import SessionAnswer, details_of

# Nobody is told of a session that ended longer ago, as those of an import.
TELL_FOR = timedelta(days=1)


class Row(NamedTuple):
    """A row of charging_session, but for whether it is told."""

    vehicle_id: int
    started: datetime
    until: datetime
    over_at: datetime
    meter_id: int | None
    dc_milliwh: int
    paired_ac_milliwh: int
    paired_dc_milliwh: int
    uncertainty: float | None
    status: str
    peak_milliwatt: int | None
    soc_start_centipercent: int | None
    soc_end_centipercent: int | None
    battery_temp_max_centic: int | None
    paired_minutes: int
    shared_minutes: int
    silences: int

    def answer(self, as_of: datetime | None, vehicle: str = "", meter: str | None = None) -> SessionAnswer:
        """Returns the session as answers have it; it has no end yet when it is not over at `as_of`."""
        ac, dc = self.paired_ac_milliwh, self.paired_dc_milliwh
        return SessionAnswer(
            vehicle_id=vehicle,
            meter_id=meter,
            start=self.started,
            end=self.until if as_of and self.over_at <= as_of else None,
            dc_kwh=self.dc_milliwh / 1_000_000,
            ac_kwh=ac / 1_000_000,
            loss_kwh=(ac - dc) / 1_000_000,
            efficiency_ratio=dc / ac if ac else None,
            uncertainty=self.uncertainty,
            status=Status(self.status),
            peak_kw=_scaled(self.peak_milliwatt, 1_000_000),
            soc_start=_scaled(self.soc_start_centipercent, 100),
            soc_end=_scaled(self.soc_end_centipercent, 100),
            battery_temp_max=_scaled(self.battery_temp_max_centic, 100),
            paired_minutes=self.paired_minutes,
            shared_minutes=self.shared_minutes,
            silences=self.silences,
        )


def _scaled(number: int | None, by: int) -> float | None:
    return None if number is None else number / by


COLUMNS = sql.SQL(", ".join(f"session.{name}" for name in Row._fields))


async def replace_sessions(
    connection: Connection, reaches: Iterable[Sequence[Any]], made: Iterable[Row], as_of: datetime
) -> None:
    """Makes `made` the sessions that begin in these times of vehicles, and logs the change of those that are told."""
    cursor = connection.cursor(row_factory=args_row(lambda told, *row: (Row(*row), told)))
    await cursor.execute(
        sql.SQL("""
            SELECT told, {columns}
            FROM unnest(%s::int[], %s::timestamptz[], %s::timestamptz[]) AS reach (vehicle_id, reach_from, reach_to)
            JOIN charging_session AS session USING (vehicle_id)
            WHERE started >= reach_from AND started < reach_to
        """).format(columns=COLUMNS),
        columns(reaches, 3),
    )
    stored = {row[:2]: (row, told) for row, told in await cursor.fetchall()}
    new = {row[:2]: row for row in made}
    changed = {key for key in stored.keys() | new.keys() if key not in stored or stored[key][0] != new.get(key)}
    await connection.execute(
        """
        DELETE FROM charging_session
        USING unnest(%s::int[], %s::timestamptz[]) AS gone (vehicle_id, started)
        WHERE (charging_session.vehicle_id, charging_session.started) = (gone.vehicle_id, gone.started)
        """,
        columns(changed & stored.keys(), 2),
    )
    names = sql.SQL(", ".join((*Row._fields, "told")))
    async with connection.cursor().copy(sql.SQL("COPY charging_session ({}) FROM STDIN").format(names)) as rows:
        for key in sorted(changed & new.keys()):
            await rows.write_row((*new[key], key in stored and stored[key][1]))
    told_anew = []
    for key in sorted(changed & stored.keys()):
        was, told = stored[key]
        now = new.get(key) or was._replace(dc_milliwh=0, paired_ac_milliwh=0, paired_dc_milliwh=0)
        if told and _energies(was) != _energies(now):
            told_anew.append(now)
    await _log(connection, "changed", told_anew, as_of)


def _energies(row: Row) -> tuple[int, int, int]:
    return row.dc_milliwh, row.paired_ac_milliwh, row.paired_dc_milliwh


async def tell_ended(connection: Connection, as_of: datetime) -> None:
    """Logs the sessions that are over and not told yet, and ended not long ago."""
    cursor = connection.cursor(row_factory=args_row(Row))
    await cursor.execute(
        sql.SQL("""
            UPDATE charging_session AS session SET told = true
            WHERE NOT told AND over_at <= %(as_of)s AND over_at > %(as_of)s - 2 * %(ago)s::interval
                AND until > %(as_of)s - %(ago)s
            RETURNING {columns}
        """).format(columns=COLUMNS),
        {"as_of": as_of, "ago": TELL_FOR},
    )
    ended = sorted(await cursor.fetchall(), key=lambda row: (row.until, row.vehicle_id))
    await _log(connection, "ended", ended, as_of)


async def _log(connection: Connection, transition: str, rows: Iterable[Row], as_of: datetime) -> None:
    logged = []
    for row in rows:
        answer = row.answer(as_of)
        evidence = details_of(answer) | {"others": [row.meter_id] if row.meter_id else []}
        logged.append([transition, row.started, answer.end, Jsonb(evidence), row.vehicle_id])
    await connection.cursor().executemany(_LOG, logged)


# Nobody is notified about a retired device.
_LOG = """
    INSERT INTO alert_transition (transition, kind, stream, device_id, opened, closed, evidence)
    SELECT %s, 'session', stream, id, %s, %s, %s
    FROM device
    WHERE stream = 'vehicle' AND id = %s AND in_service
"""


async def fetch_beside(
    connection: Connection, vehicles: Collection[int], meters: Collection[int], since: datetime
) -> set[int]:
    """Returns those of these vehicles, and of all at these meters, that have a session that was not over at `since`."""
    cursor = connection.cursor(row_factory=scalar_row)
    await cursor.execute(
        """
        SELECT vehicle_id FROM charging_session
        WHERE over_at >= %s AND (vehicle_id = ANY (%s) OR meter_id = ANY (%s))
        """,
        [since, [*vehicles], [*meters]],
    )
    return set(await cursor.fetchall())


async def fetch_touched_since(connection: Connection, since: datetime) -> list[tuple[str, int]]:
    """Returns stream and id of the devices that touched an hour since then."""
    cursor = await connection.execute("SELECT DISTINCT stream, device_id FROM touched_hour WHERE hour >= %s", [since])
    return [(stream, device) for stream, device in await cursor.fetchall()]


async def fetch_as_of(connection: Connection) -> datetime | None:
    """Returns the instant up to which sessions are made that are not over."""
    cursor = connection.cursor(row_factory=scalar_row)
    await cursor.execute("SELECT sessions_as_of FROM installation")
    as_of: datetime | None
    (as_of,) = await cursor.fetchall()
    return as_of


async def note_as_of(connection: Connection, as_of: datetime) -> None:
    """Notes that instant."""
    await connection.execute("UPDATE installation SET sessions_as_of = greatest(sessions_as_of, %s)", [as_of])
