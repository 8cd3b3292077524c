"""The alerts `no_data`: the silence of devices that are expected to report.

A device is expected to report when an operator says so, else when its own rhythm does: on most days of the week before
its newest reading it reported in each hour, and at least once a reading of it came in time. So neither devices that
came by import alone nor cars and chargers that report only now and then are expected.
"""

from collections.abc import Collection, Mapping
from datetime import datetime

from app.analytics.alerts.tables import Connection, columns, start_of_hour
from app.fleet.states import REPORTING_MINUTES
from app.telemetry.reading import Stream

RHYTHM_DAYS = 7
"""A device's rhythm is that of so many days before the hour of its newest reading."""

_INTERVALS = 3
_SLOT_MINUTES = 5
_ALL_SLOTS = 60 // _SLOT_MINUTES


def pace_of(minutes: int) -> int:
    """Returns how often a device reported in an hour; bit n of `minutes` is set when it did so in minute n.

    These are its minutes with readings, but if it did not report in each five minutes, it is the number of five minutes
    in which it did: a device that pauses in each hour does not report once a minute.
    """
    slots = sum(minutes >> start & (1 << _SLOT_MINUTES) - 1 > 0 for start in range(0, 60, _SLOT_MINUTES))
    return minutes.bit_count() if slots == _ALL_SLOTS else slots


async def replace_paces(
    connection: Connection, stream: Stream, devices: Collection[int], paces: Mapping[tuple[int, int], int]
) -> None:
    """Stores the paces by device and hour since 1970 that the devices' rhythms need, and drops older ones."""
    rows = [(device, start_of_hour(hour), pace) for (device, hour), pace in paces.items()]
    parameters = {"stream": stream, "days": RHYTHM_DAYS, "devices": [*devices]}
    parameters |= zip(("of", "hours", "paces"), columns(rows, 3), strict=True)
    await connection.execute(_STORE_PACES, parameters)
    await connection.execute(_DROP_PACES, parameters)


async def replace_silent(connection: Connection, as_of: datetime) -> None:
    """Makes the `no_data` alerts those of the devices in service that are silent at `as_of`."""
    await connection.execute(
        _SILENCE,
        {"as_of": as_of, "silent": REPORTING_MINUTES, "intervals": 60 * _INTERVALS, "days": RHYTHM_DAYS},
    )


_STORE_PACES = """
    INSERT INTO reported_hour AS stored (stream, device_id, hour, pace)
    SELECT stream, id, new.hour, new.pace
    FROM unnest(%(of)s::int[], %(hours)s::timestamptz[], %(paces)s::int[]) AS new (id, hour, pace)
    JOIN device USING (id)
    WHERE stream = %(stream)s AND new.hour >= date_trunc('hour', ts) - make_interval(days => %(days)s)
    ON CONFLICT (stream, device_id, hour) DO UPDATE SET pace = excluded.pace
    WHERE stored.pace <> excluded.pace
"""

_DROP_PACES = """
    DELETE FROM reported_hour USING device
    WHERE (device.stream, device.id) = (reported_hour.stream, device_id) AND device.stream = %(stream)s
        AND device.id = ANY (%(devices)s) AND hour < date_trunc('hour', ts) - make_interval(days => %(days)s)
"""

# A reading that is older than the alert proves that there was no such silence.
_SILENCE = """
    WITH known AS (
        SELECT stream, id, ts, date_trunc('hour', ts) AS hour,
               coalesce(expectation, CASE WHEN in_time THEN 'rhythm' ELSE 'never' END) AS expected,
               milliwh > 0 AS was_charging
        FROM device
        WHERE in_service
    ), quiet AS (
        SELECT * FROM known
        WHERE ts < %(as_of)s - make_interval(mins => %(silent)s)
            AND (expected IN ('always', 'rhythm') OR (expected = 'charging' AND was_charging))
    ), silent AS (
        SELECT stream, id, ts, ts + greatest(make_interval(mins => %(silent)s),
                                             make_interval(mins => %(intervals)s) / pace) AS opened
        FROM quiet
        CROSS JOIN LATERAL (
            -- On more than half of the days since the first known hour, no hour was sparser; a day that lacks an hour
            -- has NULL. A device with an expectation has its densest hour, since it may report in few.
            SELECT CASE WHEN expected <> 'rhythm' THEN max(densest)
                        ELSE (array_agg(sparsest ORDER BY sparsest DESC NULLS LAST))[
                            extract(epoch FROM hour - min(first_hour))::integer / 86400 / 2 + 1] END AS pace
            FROM (
                SELECT min(reported.hour) AS first_hour, max(pace) AS densest,
                       CASE WHEN count(*) = 24 THEN min(pace) END AS sparsest
                FROM reported_hour AS reported
                WHERE reported.stream = quiet.stream AND device_id = quiet.id
                    AND reported.hour >= quiet.hour - make_interval(days => %(days)s) AND reported.hour < quiet.hour
                GROUP BY ceil(extract(epoch FROM quiet.hour - reported.hour) / 86400)
            ) AS day
        ) AS rhythm
        WHERE pace IS NOT NULL OR expected <> 'rhythm'
    ), ended AS (
        DELETE FROM alert
        WHERE kind = 'no_data'
            AND NOT EXISTS (SELECT FROM silent WHERE (silent.stream, silent.id, silent.opened)
                                                     = (alert.stream, alert.device_id, alert.opened))
        RETURNING stream, device_id, opened, evidence, acknowledged IS NOT NULL AS quiet
    ), begun AS (
        INSERT INTO alert (kind, stream, device_id, opened, evidence)
        SELECT 'no_data', stream, id, opened,
               jsonb_build_object('lastSeen', to_char(ts AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
        FROM silent
        WHERE opened < %(as_of)s
        ON CONFLICT DO NOTHING
        RETURNING stream, device_id, opened, evidence
    )
    INSERT INTO alert_transition (transition, kind, stream, device_id, opened, closed, evidence, quiet)
    SELECT CASE WHEN ts > opened THEN 'closed' ELSE 'retracted' END, 'no_data', ended.stream, device_id, opened,
           CASE WHEN ts > opened THEN ts END, evidence, quiet
    FROM ended JOIN known ON (known.stream, known.id) = (ended.stream, ended.device_id)
    UNION ALL
    SELECT 'opened', 'no_data', stream, device_id, opened, NULL, evidence, false FROM begun
"""
