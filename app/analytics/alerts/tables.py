"""The tables of the evaluator: touched hours, judged hours, alerts, and the log of transitions of alerts.

All are written under one lock, which the transaction holds. Hours count from 1970.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from psycopg import AsyncConnection, sql
from psycopg.rows import scalar_row
from psycopg.types.json import Jsonb

from app.analytics.alerts.hours import COLUMNS, Hours, row_of, values_of
from app.analytics.alerts.judge import TRAILING_HOURS, Alert, Kind, Row
from app.telemetry.instant import MAX_AGE
from app.telemetry.reading import Stream

Connection = AsyncConnection[tuple[Any, ...]]
_VALUES = sql.SQL(", ".join(COLUMNS))

Touched = Sequence[tuple[str, int, datetime, datetime]]
"""The stream, the device, the hour, and the instant at which it was touched."""


async def try_lock(connection: Connection) -> bool:
    """Returns True when this transaction is now the only one that evaluates."""
    cursor = connection.cursor(row_factory=scalar_row)
    await cursor.execute("SELECT pg_try_advisory_xact_lock(hashtext('wattline alerts'))")
    (locked,) = await cursor.fetchall()
    return bool(locked)


async def fetch_touched_hours(connection: Connection, before: datetime, as_of: datetime) -> list[tuple[datetime, int]]:
    """Returns the touched hours before `before`, and how many devices touched each.

    Hours that must be judged again come last, because readings may have been stored that are not visible yet; in both
    groups, the last day comes first. What an import has stored becomes visible when its days are refreshed; in the live
    window, policies refresh.
    """
    cursor = await connection.execute(
        """
        SELECT hour, count(*)
        FROM touched_hour
        WHERE hour < %(before)s
            AND (hour >= %(as_of)s - %(live)s
                 OR NOT EXISTS (SELECT FROM import_journal WHERE touched @> touched_hour.hour))
        GROUP BY hour
        ORDER BY max(at) >= %(as_of)s, hour < %(as_of)s - make_interval(hours => %(window)s + 1), hour
        """,
        {"before": before, "as_of": as_of, "live": MAX_AGE, "window": TRAILING_HOURS},
    )
    return [(hour, count) for hour, count in await cursor.fetchall()]


async def fetch_touched(connection: Connection, hours: Collection[datetime]) -> Touched:
    """Returns the devices that touched these hours."""
    cursor = await connection.execute(
        "SELECT stream, device_id, hour, at FROM touched_hour WHERE hour = ANY (%s)", [[*hours]]
    )
    return await cursor.fetchall()


async def forget_touched(connection: Connection, touched: Touched) -> None:
    """Deletes notes, except those that were renewed meanwhile or that a store transaction holds."""
    await connection.execute(
        """
        WITH seen AS (
            SELECT touched_hour.ctid
            FROM unnest(%s::text[], %s::int[], %s::timestamptz[], %s::timestamptz[])
                AS judged (stream, device_id, hour, at)
            JOIN touched_hour USING (stream, device_id, hour, at)
            FOR UPDATE OF touched_hour SKIP LOCKED
        )
        DELETE FROM touched_hour WHERE ctid IN (SELECT ctid FROM seen)
        """,
        columns(touched, 4),
    )


async def note_judged(connection: Connection, as_of: datetime) -> None:
    """Notes that readings committed before `as_of` have been judged if their hour was over."""
    await connection.execute("UPDATE installation SET judged_as_of = greatest(judged_as_of, %s)", [as_of])


async def replace_hours(
    connection: Connection, vehicles: Collection[int], hours: Collection[int], judged: Hours
) -> set[tuple[int, int, int]]:
    """Makes `judged` the rows of these vehicles in these hours; returns the keys that changed."""
    cursor = await connection.execute(
        sql.SQL(
            """
            SELECT vehicle_id, (date_part('epoch', hour) / 3600)::int, meter_id, {}
            FROM efficiency_hour
            WHERE vehicle_id = ANY (%s) AND hour = ANY (%s)
            """
        ).format(_VALUES),
        [[*vehicles], [start_of_hour(hour) for hour in hours]],
    )
    stored = {(row[0], row[1], row[2]): row_of(row[3:]) for row in await cursor.fetchall()}
    changed = {key for key in stored.keys() | judged.keys() if stored.get(key) != judged.get(key)}
    if gone := [(vehicle, start_of_hour(hour), meter) for vehicle, hour, meter in changed & stored.keys()]:
        await connection.execute(
            """
            DELETE FROM efficiency_hour
            USING unnest(%s::int[], %s::timestamptz[], %s::int[]) AS gone (vehicle_id, hour, meter_id)
            WHERE (efficiency_hour.vehicle_id, efficiency_hour.hour, efficiency_hour.meter_id)
                = (gone.vehicle_id, gone.hour, gone.meter_id)
            """,
            columns(gone, 3),
        )
    copy = sql.SQL("COPY efficiency_hour (vehicle_id, hour, meter_id, {}) FROM STDIN").format(_VALUES)
    async with connection.cursor().copy(copy) as rows:
        for vehicle, hour, meter in sorted(changed & judged.keys()):
            await rows.write_row((vehicle, start_of_hour(hour), meter, *values_of(judged[vehicle, hour, meter])))
    return changed


async def fetch_rows(
    connection: Connection, stream: Stream, devices: Collection[int], first: int, last: int | None
) -> dict[int, list[Row]]:
    """Returns the hours of these devices from `first` to `last`, or to the end, in order."""
    own, other = ("vehicle_id", "meter_id") if stream is Stream.VEHICLE else ("meter_id", "vehicle_id")
    cursor = await connection.execute(
        sql.SQL(
            """
            SELECT {own}, (date_part('epoch', hour) / 3600)::int, {other}, {values}
            FROM efficiency_hour
            WHERE {own} = ANY (%s) AND hour >= %s AND (%s::timestamptz IS NULL OR hour <= %s)
            ORDER BY hour, {other}
            """
        ).format(own=sql.Identifier(own), other=sql.Identifier(other), values=_VALUES),
        [[*devices], start_of_hour(first), *[None if last is None else start_of_hour(last)] * 2],
    )
    rows: dict[int, list[Row]] = {}
    for device, hour, at, *values in await cursor.fetchall():
        rows.setdefault(device, []).append((hour, at, row_of(values)))
    return rows


async def meters_that_froze(connection: Connection, meters: Collection[int], first: int) -> set[int]:
    """Returns those of the meters that were frozen since that hour, or had a `frozen_meter` alert then."""
    cursor = connection.cursor(row_factory=scalar_row)
    await cursor.execute(
        """
        SELECT meter_id FROM efficiency_hour
        WHERE hour >= %(first)s AND frozen_meter_minutes > 0 AND meter_id = ANY (%(meters)s)
        UNION
        SELECT device_id FROM alert
        WHERE kind = 'frozen_meter' AND (closed IS NULL OR closed >= %(first)s) AND device_id = ANY (%(meters)s)
        """,
        {"first": start_of_hour(first), "meters": [*meters]},
    )
    return set(await cursor.fetchall())


def start_of_hour(hour: int) -> datetime:
    """Returns the instant at which an hour begins."""
    return datetime.fromtimestamp(3600 * hour, UTC)


def hour_of(at: datetime) -> int:
    """Returns the hour that an instant lies in."""
    return int(at.timestamp() // 3600)


def columns(rows: Iterable[Sequence[Any]], number: int) -> list[list[Any]]:
    """Returns the rows as columns, for unnest(); `number` columns when there are no rows."""
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(number)]


async def fetch_alerts(
    connection: Connection, stream: Stream, devices: Collection[int], since: datetime
) -> dict[tuple[Kind, int], list[Alert]]:
    """Returns these devices' alerts that are judged by the hour and were open at `since` or later, in order."""
    cursor = await connection.execute(
        """
        SELECT kind, device_id, opened, closed, evidence
        FROM alert
        WHERE kind <> 'no_data' AND stream = %s AND device_id = ANY (%s) AND (closed IS NULL OR closed >= %s)
        ORDER BY opened
        """,
        [stream, [*devices], since],
    )
    alerts: dict[tuple[Kind, int], list[Alert]] = {}
    for kind, device, *alert in await cursor.fetchall():
        alerts.setdefault((Kind(kind), device), []).append(Alert(*alert))
    return alerts


async def replace_alerts(
    connection: Connection, stream: Stream, kind: Kind, device: int, old: Sequence[Alert], new: Sequence[Alert]
) -> None:
    """Replaces the alerts `old` by `new`, and logs the transitions."""
    before, after = {alert.opened: alert for alert in old}, {alert.opened: alert for alert in new}
    key = {"kind": kind, "stream": stream, "device": device}
    for opened in sorted(before.keys() | after.keys()):
        was, now = before.get(opened), after.get(opened)
        if was == now:
            continue
        for transition in _transitions(was, now):
            await connection.execute(
                _LOG, {**key, "transition": transition, **_parameters(after.get(opened) or before[opened])}
            )
        if now is None:
            await connection.execute(_DELETE_ALERT, {**key, "opened": opened})
        else:
            await connection.execute(_UPSERT_ALERT, {**key, **_parameters(now)})


def _transitions(was: Alert | None, now: Alert | None) -> list[str]:
    if now is None:
        return ["retracted"]
    opened = ["opened"] if was is None or (was.closed and not now.closed) else []
    closed = ["closed"] if now.closed and (was is None or was.closed != now.closed) else []
    return opened + closed


def _parameters(alert: Alert) -> dict[str, Any]:
    return {**alert._asdict(), "evidence": Jsonb(dict(alert.evidence))}


_DELETE_ALERT = """
    DELETE FROM alert
    WHERE kind = %(kind)s AND stream = %(stream)s AND device_id = %(device)s AND opened = %(opened)s
"""
_UPSERT_ALERT = """
    INSERT INTO alert (kind, stream, device_id, opened, closed, evidence)
    VALUES (%(kind)s, %(stream)s, %(device)s, %(opened)s, %(closed)s, %(evidence)s)
    ON CONFLICT (kind, stream, device_id, opened) DO UPDATE
    SET closed = excluded.closed, evidence = excluded.evidence,
        acknowledged = CASE WHEN alert.closed IS NULL OR excluded.closed IS NOT NULL THEN alert.acknowledged END
"""

# Nobody is notified about a retired device. The alert itself has not changed yet.
_LOG = """
    INSERT INTO alert_transition (transition, kind, stream, device_id, opened, closed, evidence, quiet)
    SELECT %(transition)s, %(kind)s, %(stream)s, %(device)s, %(opened)s, %(closed)s, %(evidence)s,
           %(transition)s <> 'opened'
           AND EXISTS (SELECT FROM alert
                       WHERE (kind, stream, device_id, opened) = (%(kind)s, %(stream)s, %(device)s, %(opened)s)
                           AND acknowledged IS NOT NULL)
    WHERE EXISTS (SELECT FROM device WHERE stream = %(stream)s AND id = %(device)s AND in_service)
"""
