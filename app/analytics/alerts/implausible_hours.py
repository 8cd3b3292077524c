"""The table implausible_hour, and the alerts that follow from it. Hours count from 1970."""

from collections.abc import Collection, Mapping

from psycopg import sql

from app.analytics.alerts.implausible import Implausible, alerts_of
from app.analytics.alerts.judge import TRAILING_HOURS, Kind
from app.analytics.alerts.tables import (
    Connection,
    columns,
    fetch_alerts,
    hour_of,
    replace_alerts,
    start_of_hour,
)
from app.telemetry.reading import Stream

_VALUES = sql.SQL(", ".join(Implausible._fields))


async def fetch_known(connection: Connection, stream: Stream, hours: range) -> dict[int, set[int]]:
    """Returns the hours among these in which devices of the stream have rows, by device."""
    cursor = await connection.execute(
        "SELECT device_id, hour FROM implausible_hour WHERE stream = %s AND hour >= %s AND hour < %s",
        [stream, start_of_hour(hours.start), start_of_hour(hours.stop)],
    )
    known: dict[int, set[int]] = {}
    for device, hour in await cursor.fetchall():
        known.setdefault(device, set()).add(hour_of(hour))
    return known


async def replace_implausible(
    connection: Connection,
    stream: Stream,
    suspected: Mapping[int, Collection[int]],
    judged: Mapping[tuple[int, int], Implausible],
) -> dict[int, int]:
    """Makes `judged` the rows of the suspected hours; returns the devices that changed, each with its first such hour.

    The keys of `judged` are devices and hours.
    """
    keys = [(device, start_of_hour(hour)) for device, hours in suspected.items() for hour in hours]
    if not keys:
        return {}
    of_keys = {"stream": stream, **dict(zip(("devices", "hours"), columns(keys, 2), strict=True))}
    cursor = await connection.execute(
        sql.SQL("SELECT device_id, hour, {} FROM implausible_hour").format(_VALUES) + _OF_KEYS, of_keys
    )
    stored = {(device, hour_of(hour)): Implausible(*row) for device, hour, *row in await cursor.fetchall()}
    changed = {key for key in stored.keys() | judged.keys() if stored.get(key) != judged.get(key)}
    if changed:
        await connection.execute(sql.SQL("DELETE FROM implausible_hour") + _OF_KEYS, of_keys)
        insert = sql.SQL("INSERT INTO implausible_hour (stream, device_id, hour, {}) VALUES ({})").format(
            _VALUES, sql.SQL(", ").join(sql.Placeholder() * (3 + len(Implausible._fields)))
        )
        rows = ((stream, device, start_of_hour(hour), *row) for (device, hour), row in judged.items())
        await connection.cursor().executemany(insert, rows)
    # The first hour of each device comes last.
    return dict(sorted(changed, reverse=True))


async def judge_alerts(connection: Connection, stream: Stream, changed: Mapping[int, int], over: int) -> None:
    """Replaces the alerts of devices whose rows have changed, each from its hour on; hours before `over` are over."""
    for device, first in changed.items():
        since = start_of_hour(first + 1)
        known = await fetch_alerts(connection, stream, [device], since)
        old = known.get((Kind.IMPLAUSIBLE_ENERGY, device), [])
        before = old[0] if old and old[0].opened < since else None
        cursor = await connection.execute(
            _ROWS.format(_VALUES), [stream, device, start_of_hour(first - TRAILING_HOURS)]
        )
        rows = [(hour_of(hour), Implausible(*row)) for hour, *row in await cursor.fetchall()]
        new = alerts_of(rows, first, before, over, "acKwh" if stream is Stream.METER else "dcKwh")
        await replace_alerts(connection, stream, Kind.IMPLAUSIBLE_ENERGY, device, old, new)


async def close_alerts(connection: Connection, over: int) -> None:
    """Closes the alerts of devices that had no implausible reading in the last hours; hours before `over` are over."""
    cursor = await connection.execute(_TO_CLOSE, [start_of_hour(over - TRAILING_HOURS)])
    for stream, device, last in await cursor.fetchall():
        await judge_alerts(connection, Stream(stream), {device: hour_of(last)}, over)


_OF_KEYS = sql.SQL("""
    WHERE stream = %(stream)s AND (device_id, hour) IN (
        SELECT * FROM unnest(%(devices)s::int[], %(hours)s::timestamptz[]))
""")

_ROWS = sql.SQL("""
    SELECT hour, {} FROM implausible_hour WHERE stream = %s AND device_id = %s AND hour >= %s ORDER BY hour
""")

_TO_CLOSE = """
    SELECT stream, device_id, max(hour)
    FROM alert JOIN implausible_hour USING (stream, device_id)
    WHERE kind = 'implausible_energy' AND closed IS NULL
    GROUP BY stream, device_id
    HAVING max(hour) < %s
"""
