"""The queue of transitions of alerts, and of sessions, that wait to be delivered.

A transition is taken for a lease, so that no transaction stays open while it is on its way; a process that dies holds
its transitions up no longer than that.
"""

from typing import Any, NamedTuple

import psycopg
from psycopg.rows import args_row

from app.analytics.alerts.listing import AlertAnswer, answer_of
from app.analytics.sessions.answer import SessionAnswer, named

GIVE_UP_DAYS = 3
LEASE_SECONDS = 60
# So many transitions are delivered at the same time, each of another alert or session.
AT_ONCE = 10


class Taken(NamedTuple):
    """A transition to be delivered, for the `attempts`th time. It happened `seconds` after the beginning of 1970."""

    id: int
    attempts: int
    seconds: int
    transition: str
    data: AlertAnswer | SessionAnswer


async def take(connection: psycopg.AsyncConnection) -> list[Taken]:
    """Takes some due transitions, only the first that waits of each alert or session.

    Takes none while another process takes some.
    """
    async with connection.transaction():
        lock = await connection.execute("SELECT pg_try_advisory_xact_lock(hashtext('wattline webhooks'))")
        if await lock.fetchone() == (False,):
            return []
        await connection.execute(_QUEUE, {"days": GIVE_UP_DAYS})
        cursor = connection.cursor(row_factory=args_row(_taken))
        return await (await cursor.execute(_TAKE, {"lease": LEASE_SECONDS, "at_once": AT_ONCE})).fetchall()


def _taken(id_: int, attempts: int, seconds: int, transition: str, kind: str, stream: str, *of: Any) -> Taken:
    if kind != "session":
        return Taken(id_, attempts, seconds, f"alert.{transition}", answer_of(kind, stream, *of))
    vehicle, _, _, details, meters = of
    return Taken(id_, attempts, seconds, f"session_{transition}", named(details, vehicle, meters))


async def remove(connection: psycopg.AsyncConnection, taken: Taken) -> None:
    """Removes a delivered transition from the queue."""
    await connection.execute("DELETE FROM webhook WHERE transition_id = %s", [taken.id])


async def postpone(connection: psycopg.AsyncConnection, taken: Taken, pause_seconds: float) -> bool:
    """Makes a transition wait for the pause; returns False when it was too old and was given up instead.

    Nothing changes if the lease has ended and another process has taken the transition.
    """
    parameters = {"id": taken.id, "attempts": taken.attempts, "pause": pause_seconds, "days": GIVE_UP_DAYS}
    given_up = await (await connection.execute(_GIVE_UP, parameters)).fetchone()
    if given_up is None:
        await connection.execute(_POSTPONE, parameters)
    return given_up is None


# Queues new transitions but the quiet ones. All are made under one lock, so none appears behind one that was seen.
# Nobody is told of transitions from before webhooks were first set.
_QUEUE = """
    WITH newest AS (
        SELECT coalesce(max(id), 0) AS id FROM alert_transition
    ), queued AS (
        INSERT INTO webhook (transition_id)
        SELECT alert_transition.id
        FROM alert_transition JOIN installation ON alert_transition.id > webhooks_queued
        WHERE at > now() - make_interval(days => %(days)s) AND NOT quiet
    )
    UPDATE installation SET webhooks_queued = newest.id FROM newest
    WHERE webhooks_queued IS DISTINCT FROM newest.id
"""

# Devices are looked up as in the listing of alerts.
_TAKE = """
    WITH first AS (
        SELECT DISTINCT ON (kind, stream, device_id, opened) id, next_at
        FROM webhook JOIN alert_transition ON id = transition_id
        ORDER BY kind, stream, device_id, opened, id
    ), taken AS (
        UPDATE webhook SET attempts = attempts + 1, next_at = now() + make_interval(secs => %(lease)s)
        WHERE transition_id IN (SELECT id FROM first WHERE next_at <= now() ORDER BY next_at, id LIMIT %(at_once)s)
        RETURNING transition_id, attempts
    )
    SELECT due.id, attempts, extract(epoch FROM at)::bigint, transition, kind, stream,
           (SELECT external_id FROM device WHERE device.stream = due.stream AND device.id = device_id),
           opened, closed, evidence,
           ARRAY(SELECT named.external_id
                 FROM jsonb_array_elements(evidence -> 'others') AS other
                 CROSS JOIN LATERAL (
                     SELECT external_id FROM device WHERE device.stream <> due.stream AND id = other::int LIMIT 1
                 ) AS named
                 ORDER BY 1)
    FROM taken JOIN alert_transition AS due ON due.id = transition_id
    ORDER BY due.id
"""

_GIVE_UP = """
    WITH given_up AS (
        DELETE FROM webhook USING alert_transition
        WHERE id = transition_id AND transition_id = %(id)s AND attempts = %(attempts)s
            AND at < now() - make_interval(days => %(days)s)
        RETURNING id
    )
    UPDATE installation SET webhooks_given_up = webhooks_given_up + 1
    WHERE EXISTS (SELECT FROM given_up)
    RETURNING webhooks_given_up
"""

_POSTPONE = """
    UPDATE webhook SET next_at = now() + make_interval(secs => %(pause)s)
    WHERE transition_id = %(id)s AND attempts = %(attempts)s
"""
