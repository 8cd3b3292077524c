"""The alerts as stored, and the log of what happens to them; written under the evaluator's lock."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from app.analytics.alerts.judge import Alert, Kind
from app.analytics.alerts.stored import Connection
from app.telemetry.reading import Stream


async def fetch_alerts(
    connection: Connection, stream: Stream, devices: Collection[int], since: datetime
) -> dict[tuple[Kind, int], list[Alert]]:
    """The alerts of these devices that are judged by the hour and were open at that instant or later, in order."""
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
    """Makes `new` of the alerts `old`, and notes what happened to them."""
    before, after = {alert.opened: alert for alert in old}, {alert.opened: alert for alert in new}
    key = {"kind": kind, "stream": stream, "device": device}
    for opened in sorted(before.keys() | after.keys()):
        was, now = before.get(opened), after.get(opened)
        if was == now:
            continue
        if now is None:
            await connection.execute(_DELETE_ALERT, {**key, "opened": opened})
        else:
            await connection.execute(_UPSERT_ALERT, {**key, **_parameters(now)})
        for transition in _transitions(was, now):
            await connection.execute(
                _LOG, {**key, "transition": transition, **_parameters(after.get(opened) or before[opened])}
            )


def _transitions(was: Alert | None, now: Alert | None) -> list[str]:
    if now is None:
        return ["retracted"]
    opened = ["opened"] if was is None or (was.closed and not now.closed) else []
    closed = ["closed"] if now.closed and (was is None or was.closed != now.closed) else []
    return opened + closed


def _parameters(alert: Alert) -> dict[str, Any]:
    return {**alert._asdict(), "evidence": Jsonb(dict(alert.evidence))}


async def replace_silent(connection: Connection, as_of: datetime, silent_minutes: int) -> None:
    """Makes the alerts of kind `no_data` those of the devices in service that are silent at that instant."""
    await connection.execute(_SILENCE, {"as_of": as_of, "silent": silent_minutes})


_DELETE_ALERT = """
    DELETE FROM alert
    WHERE kind = %(kind)s AND stream = %(stream)s AND device_id = %(device)s AND opened = %(opened)s
"""
_UPSERT_ALERT = """
    INSERT INTO alert (kind, stream, device_id, opened, closed, evidence)
    VALUES (%(kind)s, %(stream)s, %(device)s, %(opened)s, %(closed)s, %(evidence)s)
    ON CONFLICT (kind, stream, device_id, opened) DO UPDATE SET closed = excluded.closed, evidence = excluded.evidence
"""

# Nobody is told of a retired device.
_LOG = """
    INSERT INTO alert_transition (transition, kind, stream, device_id, opened, closed, evidence)
    SELECT %(transition)s, %(kind)s, %(stream)s, %(device)s, %(opened)s, %(closed)s, %(evidence)s
    WHERE EXISTS (SELECT FROM device WHERE stream = %(stream)s AND id = %(device)s AND in_service)
"""

# A reading that is older than the alert shows that there was no such silence.
_SILENCE = """
    WITH known AS (
        SELECT stream, id, ts FROM device WHERE in_service
    ), silent AS (
        SELECT stream, id, ts, ts + make_interval(mins => %(silent)s) AS opened
        FROM known
        WHERE ts < %(as_of)s - make_interval(mins => %(silent)s)
    ), ended AS (
        DELETE FROM alert
        WHERE kind = 'no_data'
            AND NOT EXISTS (SELECT FROM silent WHERE (silent.stream, silent.id, silent.opened)
                                                     = (alert.stream, alert.device_id, alert.opened))
        RETURNING stream, device_id, opened, evidence
    ), begun AS (
        INSERT INTO alert (kind, stream, device_id, opened, evidence)
        SELECT 'no_data', stream, id, opened,
               jsonb_build_object('lastSeen', to_char(ts AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
        FROM silent
        ON CONFLICT DO NOTHING
        RETURNING stream, device_id, opened, evidence
    )
    INSERT INTO alert_transition (transition, kind, stream, device_id, opened, closed, evidence)
    SELECT CASE WHEN ts > opened THEN 'closed' ELSE 'retracted' END, 'no_data', ended.stream, device_id, opened,
           CASE WHEN ts > opened THEN ts END, evidence
    FROM ended JOIN known ON (known.stream, known.id) = (ended.stream, ended.device_id)
    UNION ALL
    SELECT 'opened', 'no_data', stream, device_id, opened, NULL, evidence FROM begun
"""
