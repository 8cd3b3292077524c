"""The alerts `no_data`: the silence of devices that are expected to report.

A device is expected to report when an operator says so, else when its own rhythm does: on most days of the week before
its newest reading it never paused for long, and at least once a reading of it came in time. So neither devices that
came by import alone nor cars and chargers that report only now and then are expected.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import NamedTuple

from app.analytics.alerts.tables import Connection, columns, start_of_hour
from app.analytics.efficiency.rhythm import LONGEST_GAP_US, MINUTE_US
from app.fleet.states import REPORTING_MINUTES
from app.telemetry.reading import Stream

RHYTHM_DAYS = 7
"""A device's rhythm is that of so many days before the hour of its newest reading."""

LONGEST_GAP_MINUTES = LONGEST_GAP_US // MINUTE_US
_GAPS = 3


class Reported(NamedTuple):
    """The first and the last minute of an hour in which a device reported, and the longest gap between such minutes."""

    first_minute: int
    last_minute: int
    gap_minutes: int


def reported_in(minutes: int) -> Reported:
    """Returns what an hour's minutes with readings say; bit n of `minutes` is set when minute n has some."""
    first = (minutes & -minutes).bit_length() - 1
    gaps = [len(silent) + 1 for silent in f"{minutes >> first:b}"[1:].split("1")[:-1]]
    return Reported(first, minutes.bit_length() - 1, max(gaps, default=0))


async def replace_reported(
    connection: Connection, stream: Stream, devices: Collection[int], reported: Mapping[tuple[int, int], Reported]
) -> None:
    """Stores the devices' hours that their rhythms need, by device and hour since 1970, and drops older ones."""
    rows = [(device, start_of_hour(hour), *row) for (device, hour), row in reported.items()]
    parameters = {"stream": stream, "days": RHYTHM_DAYS, "devices": [*devices]}
    parameters |= zip(("of", "hours", *Reported._fields), columns(rows, 5), strict=True)
    await connection.execute(_STORE, parameters)
    await connection.execute(_DROP, parameters)


async def replace_silent(connection: Connection, as_of: datetime) -> None:
    """Makes the `no_data` alerts those of the devices in service that are silent at `as_of`."""
    await connection.execute(
        _SILENCE,
        {
            "as_of": as_of,
            "silent": REPORTING_MINUTES,
            "gaps": _GAPS,
            "longest_gap": LONGEST_GAP_MINUTES,
            "days": RHYTHM_DAYS,
        },
    )


_STORE = """
    INSERT INTO reported_hour AS stored (stream, device_id, hour, first_minute, last_minute, gap_minutes)
    SELECT stream, id, new.hour, new.first_minute, new.last_minute, new.gap_minutes
    FROM unnest(%(of)s::int[], %(hours)s::timestamptz[], %(first_minute)s::int[], %(last_minute)s::int[],
                %(gap_minutes)s::int[]) AS new (id, hour, first_minute, last_minute, gap_minutes)
    JOIN device USING (id)
    WHERE stream = %(stream)s AND new.hour >= date_trunc('hour', ts) - make_interval(days => %(days)s)
    ON CONFLICT (stream, device_id, hour) DO UPDATE
    SET first_minute = excluded.first_minute, last_minute = excluded.last_minute, gap_minutes = excluded.gap_minutes
    WHERE (stored.first_minute, stored.last_minute, stored.gap_minutes)
        <> (excluded.first_minute, excluded.last_minute, excluded.gap_minutes)
"""

_DROP = """
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
        SELECT stream, id, ts, ts + make_interval(mins => greatest(%(silent)s, %(gaps)s * gap)) AS opened
        FROM quiet
        CROSS JOIN LATERAL (
            -- The longest gap of a usual day: on more than half of the whole days since the first known hour, none was
            -- longer. A device with an expectation has the gap of its densest hour, since it may report in few.
            SELECT CASE WHEN expected <> 'rhythm' THEN coalesce(min(within), min(after))
                        ELSE (array_agg(longest ORDER BY longest) FILTER (WHERE day <= known))[max(known) / 2 + 1]
                   END AS gap
            FROM (
                SELECT (ago - 1) / 24 + 1 AS day, known / 24 AS known, min(within) AS within, min(after) AS after,
                       max(greatest(within, after, before)) AS longest
                FROM (
                    -- A gap counts where it begins and where it ends; the last one ends with the last hour at least.
                    SELECT ago, max(ago) OVER () AS known, nullif(gap_minutes, 0) AS within,
                           60 * (ago - lead(ago, 1, 0) OVER following)
                               + lead(first_minute, 1, 0) OVER following - last_minute AS after,
                           60 * (lag(ago) OVER following - ago)
                               + first_minute - lag(last_minute) OVER following AS before
                    FROM (
                        SELECT (date_part('epoch', quiet.hour - hours.hour) / 3600)::integer AS ago,
                               first_minute::integer, last_minute, gap_minutes
                        FROM reported_hour AS hours
                        WHERE hours.stream = quiet.stream AND device_id = quiet.id
                            AND hours.hour >= quiet.hour - make_interval(days => %(days)s) AND hours.hour < quiet.hour
                    ) AS reported
                    WINDOW following AS (ORDER BY ago DESC)
                ) AS gaps
                GROUP BY 1, 2
            ) AS day
        ) AS rhythm
        WHERE gap <= %(longest_gap)s OR expected <> 'rhythm'
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
