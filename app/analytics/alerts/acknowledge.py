"""Acknowledging an open alert: who has taken it on, and why. Webhooks do not mention it again until it reopens."""

from typing import Any

from psycopg import AsyncConnection

from app.analytics.alerts.listing import key_of
from app.errors import SetupError


async def acknowledge(
    connection: AsyncConnection[tuple[Any, ...]], alert_id: str, *, by: str, reason: str | None, undo: bool
) -> None:
    """Records who acknowledges the open alert with this id, and why, in place of who did before; `undo` withdraws it.

    Raises SetupError when no alert with this id is open.
    """
    key = key_of(alert_id)
    acknowledged = {"by": by, "reason": reason, "undo": undo}
    if key is None or (await connection.execute(_ACKNOWLEDGE, key | acknowledged)).rowcount == 0:
        raise SetupError(f"There is no open alert {alert_id}: `wattline alerts list --open` shows the ids.")


_ACKNOWLEDGE = """
    UPDATE alert
    SET acknowledged = CASE WHEN NOT %(undo)s THEN jsonb_build_object(
        'at', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'by', %(by)s::text, 'reason', %(reason)s::text) END
    FROM device
    WHERE (alert.kind, alert.stream, alert.opened) = (%(kind)s, %(stream)s, %(opened)s) AND alert.closed IS NULL
        AND device.stream = alert.stream AND device.id = alert.device_id
        AND device.external_id = %(name)s AND device.in_service
"""
