"""The parts of sessions by the hour, and the sessions that they add up to."""

from collections.abc import Collection, Iterator
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from psycopg import sql
from psycopg.rows import args_row

from app.analytics.alerts.judged import Judged
from app.analytics.alerts.tables import Connection, columns, start_of_hour
from app.analytics.efficiency.evidence import instant_of
from app.analytics.efficiency.pairs import Evidence
from app.analytics.efficiency.verdict import coverage_of, uncertainty, verdict
from app.analytics.sessions.battery import Battery
from app.analytics.sessions.tables import Row, replace_sessions
from app.settings import Settings


class _PartRow(NamedTuple):
    """A row of session_hour, but for its evidence and what is known of the battery."""

    vehicle_id: int
    started: datetime
    until: datetime
    over_at: datetime
    is_first: bool
    meter_id: int | None
    peak_milliwatt: int | None
    silences: int


_PART = (*_PartRow._fields, *Evidence._fields, *Battery._fields)


async def replace_judged(connection: Connection, judged: Judged, as_of: datetime, settings: Settings) -> None:
    """Makes the judged parts those of the vehicles in the hours, and makes the sessions anew whose parts changed."""
    if changed := await _replace_parts(connection, judged):
        await _join_parts(connection, changed, judged.hours, as_of, settings.low_efficiency)


async def _replace_parts(connection: Connection, judged: Judged) -> set[int]:
    """Returns the vehicles of which any part changed."""
    names = sql.SQL(", ").join(map(sql.Identifier, _PART))
    cursor = await connection.execute(
        sql.SQL("""
            SELECT {} FROM session_hour WHERE vehicle_id = ANY (%s) AND started >= %s AND started < %s
        """).format(names),
        [[*judged.vehicles], start_of_hour(judged.hours.start), start_of_hour(judged.hours.stop)],
    )
    stored = {row[:2]: row for row in await cursor.fetchall()}
    made = {row[:2]: row for row in _part_rows(judged)}
    changed = {key for key in stored.keys() | made.keys() if stored.get(key) != made.get(key)}
    await connection.execute(
        """
        DELETE FROM session_hour
        USING unnest(%s::int[], %s::timestamptz[]) AS gone (vehicle_id, started)
        WHERE (session_hour.vehicle_id, session_hour.started) = (gone.vehicle_id, gone.started)
        """,
        columns(changed & stored.keys(), 2),
    )
    async with connection.cursor().copy(sql.SQL("COPY session_hour ({}) FROM STDIN").format(names)) as rows:
        for key in sorted(changed & made.keys()):
            await rows.write_row(made[key])
    return {vehicle_id for vehicle_id, _ in changed}


def _part_rows(judged: Judged) -> Iterator[tuple[Any, ...]]:
    for vehicle_id, parts in judged.parts.items():
        for part, battery in parts:
            started, until, over_at = map(instant_of, (part.start_us, part.end_us, part.over_us))
            own = _PartRow(
                vehicle_id, started, until, over_at, part.is_first, part.meter_id, part.peak_milliwatt, part.silences
            )
            yield *own, *part.evidence, *battery


async def _join_parts(
    connection: Connection, vehicles: Collection[int], hours: range, as_of: datetime, low_efficiency: float
) -> None:
    parameters = {"vehicles": [*vehicles], "from": start_of_hour(hours.start), "to": start_of_hour(hours.stop)}
    reaches = await (await connection.execute(_REACHES, parameters)).fetchall()
    cursor = connection.cursor(row_factory=args_row(partial(_joined, low_efficiency)))
    await cursor.execute(_JOINED, columns(reaches, 3))
    await replace_sessions(connection, reaches, await cursor.fetchall(), as_of)


def _joined(
    low_efficiency: float,
    vehicle_id: int,
    started: datetime,
    until: datetime,
    over_at: datetime,
    meter_id: int | None,
    peak_milliwatt: int | None,
    silences: int,
    *rest: Any,
) -> Row:
    battery, evidence = Battery(*rest[: len(Battery._fields)]), Evidence(*rest[len(Battery._fields) :])
    coverage = coverage_of(evidence)
    status, _ = verdict(evidence, has_meter=meter_id is not None, low_efficiency=low_efficiency)
    return Row(
        vehicle_id=vehicle_id,
        started=started,
        until=until,
        over_at=over_at,
        meter_id=meter_id,
        dc_milliwh=evidence.dc_milliwh,
        paired_ac_milliwh=evidence.paired_ac_milliwh,
        paired_dc_milliwh=evidence.paired_dc_milliwh,
        uncertainty=uncertainty(evidence),
        status=status,
        peak_milliwatt=peak_milliwatt,
        soc_start_centipercent=battery.soc_start_centipercent,
        soc_end_centipercent=battery.soc_end_centipercent,
        battery_temp_max_centic=battery.battery_temp_max_centic,
        paired_minutes=coverage.paired,
        shared_minutes=coverage.shared,
        silences=silences,
    )


# The time of each vehicle from the start of the session that has its first part in the hours, or began there, to before
# the first session after them.
_REACHES = """
    SELECT vehicle_id,
           coalesce((SELECT max(started) FROM session_hour AS first
                     WHERE first.vehicle_id = asked.vehicle_id AND is_first AND started <= %(from)s),
                    (SELECT min(started) FROM session_hour AS first
                     WHERE first.vehicle_id = asked.vehicle_id AND started <= %(from)s),
                    %(from)s),
           coalesce((SELECT min(started) FROM session_hour AS next
                     WHERE next.vehicle_id = asked.vehicle_id AND is_first AND started >= %(to)s),
                    '9999-01-01')
    FROM unnest(%(vehicles)s::int[]) AS asked (vehicle_id)
"""

# The sessions of the parts in these times.
_JOINED = sql.SQL("""
    WITH part AS (
        SELECT session_hour.*,
               (is_first OR lag(until) OVER of_vehicle IS DISTINCT FROM started)::int AS begins
        FROM unnest(%s::int[], %s::timestamptz[], %s::timestamptz[]) AS reach (vehicle_id, reach_from, reach_to)
        JOIN session_hour USING (vehicle_id)
        WHERE started >= reach_from AND started < reach_to
        WINDOW of_vehicle AS (PARTITION BY vehicle_id ORDER BY started)
    ), numbered AS (
        SELECT *, sum(begins) OVER (PARTITION BY vehicle_id ORDER BY started) AS number FROM part
    )
    SELECT vehicle_id, min(started), max(until), max(over_at),
           (array_agg(meter_id ORDER BY started) FILTER (WHERE meter_id IS NOT NULL))[1],
           max(peak_milliwatt), sum(silences)::int,
           (array_agg(soc_start_centipercent ORDER BY started) FILTER (WHERE soc_start_centipercent IS NOT NULL))[1],
           (array_agg(soc_end_centipercent ORDER BY started DESC) FILTER (WHERE soc_end_centipercent IS NOT NULL))[1],
           max(battery_temp_max_centic), {sums}
    FROM numbered
    GROUP BY vehicle_id, number
""").format(sums=sql.SQL(", ".join(f"sum({name})::bigint" for name in Evidence._fields)))
