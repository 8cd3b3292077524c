"""The energies of alerts that are judged by the hour, up to the last judged hour."""

from collections.abc import Collection
from datetime import datetime

from psycopg import sql

from app.analytics.alerts.judge import TRAILING_HOURS
from app.analytics.alerts.tables import Connection
from app.telemetry.reading import Stream


async def sum_energies(connection: Connection, stream: Stream, devices: Collection[int], since: datetime) -> None:
    """Sums the judged hours of the alerts of these devices that were open after `since`."""
    parameters = {"stream": stream, "devices": [*devices], "since": since, "hours": TRAILING_HOURS}
    await connection.execute(_SUM[stream], parameters)


# An alert of 30 days adds up 720 rows of its vehicle by key. Those of a meter are not found by key: an index has the
# hours in which it was frozen.
_SUM_AT = sql.SQL("""
    UPDATE alert SET ac_milliwh = summed.ac, dc_milliwh = summed.dc, loss_milliwh = summed.loss
    FROM (
        SELECT kind, opened, device_id, energies.*
        FROM alert
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(judged.paired_ac_milliwh) FILTER (WHERE hour >= opened), 0)::bigint AS ac,
                   coalesce(sum(judged.paired_dc_milliwh) FILTER (WHERE hour >= opened), 0)::bigint AS dc,
                   coalesce(sum(judged.paired_ac_milliwh - judged.paired_dc_milliwh), 0)::bigint AS loss
            FROM efficiency_hour AS judged
            WHERE {own} = device_id AND hour >= opened - make_interval(hours => %(hours)s)
                AND hour < coalesce(closed, 'infinity') AND {counted}
        ) AS energies
        WHERE kind NOT IN ('no_data', 'implausible_energy') AND stream = %(stream)s AND device_id = ANY (%(devices)s)
            AND (closed IS NULL OR closed > %(since)s)
    ) AS summed
    WHERE (alert.kind, alert.stream, alert.device_id, alert.opened)
            = (summed.kind, %(stream)s, summed.device_id, summed.opened)
        AND (alert.ac_milliwh, alert.dc_milliwh, alert.loss_milliwh)
            IS DISTINCT FROM (summed.ac, summed.dc, summed.loss)
""")
_SUM = {
    Stream.VEHICLE: _SUM_AT.format(
        own=sql.Identifier("vehicle_id"), counted=sql.SQL("(kind <> 'frozen_vehicle' OR frozen_vehicle_minutes > 0)")
    ),
    Stream.METER: _SUM_AT.format(own=sql.Identifier("meter_id"), counted=sql.SQL("frozen_meter_minutes > 0")),
}
