"""Delivers what happened to alerts and sessions: one POST each, signed as https://www.standardwebhooks.com says."""

import asyncio
import base64
import hashlib
import hmac
import random
import time
from datetime import UTC, datetime

import httpx
import msgspec
import psycopg
import structlog

from app import __version__
from app.analytics.alerts.listing import AlertAnswer
from app.analytics.sessions.answer import SessionAnswer
from app.database import connected
from app.loops import backoff_seconds, repeat
from app.settings import Settings
from app.webhooks.queue import Taken, postpone, remove, take

PERIOD_SECONDS = 5
# The time limit covers everything from the connection to the status of the answer; it is far below the lease.
TIMEOUT_SECONDS = 10
FIRST_PAUSE_SECONDS = 5
LONGEST_PAUSE_SECONDS = 4 * 3600

_log = structlog.get_logger()


class Event(msgspec.Struct, frozen=True):
    """The body: what happened to the alert or session, when this was noticed, and what it was then."""

    type: str
    timestamp: datetime
    data: AlertAnswer | SessionAnswer


async def deliver_forever(database_url: str, settings: Settings) -> None:
    """Delivers transitions to the receiver in the settings, if there is one, until it is cancelled."""
    url = settings.webhook_url
    if url is None or settings.webhook_secret is None:
        return
    key = base64.b64decode(settings.webhook_secret.removeprefix("whsec_"))
    agent = {"User-Agent": f"wattline/{__version__}"}
    # The environment's proxies are ignored, for httpx may not understand them; its SSL_CERT_FILE is used.
    async with httpx.AsyncClient(headers=agent, verify=httpx.create_ssl_context(), trust_env=False) as client:
        await repeat(
            lambda connection: deliver_due(connection, client, url, key),
            lambda: connected(database_url),
            period_seconds=PERIOD_SECONDS,
            survives=psycopg.Error,
            failed=lambda error: _log.warning("webhooks_failed", error=str(error)),
        )


async def deliver_due(connection: psycopg.AsyncConnection, client: httpx.AsyncClient, url: str, key: bytes) -> None:
    """Sends transitions, a few at a time, until none is due."""
    while taken := await take(connection):
        faults = await asyncio.gather(*(_post(client, url, key, each) for each in taken))
        for each, fault in zip(taken, faults, strict=True):
            if fault is None:
                await remove(connection, each)
                continue
            pause = pause_seconds(each.attempts)
            about = {"transition": each.transition, "id": each.id, "attempts": each.attempts, "fault": fault}
            if await postpone(connection, each, pause):
                _log.warning("webhook_failed", **about, again_in_seconds=round(pause))
            else:
                _log.error("webhook_given_up", **about)


def pause_seconds(attempts: int) -> float:
    """Returns the pause after so many attempts: about twice the one before, and random, so that attempts spread out."""
    pause = backoff_seconds(attempts - 1, first=FIRST_PAUSE_SECONDS, longest=LONGEST_PAUSE_SECONDS)
    return pause * random.uniform(0.75, 1.25)  # noqa: S311 - no secret


def signature(key: bytes, name: str, timestamp: str, body: bytes) -> str:
    """Returns the value of `webhook-signature` for the id, the timestamp and the body."""
    signed = b".".join([name.encode(), timestamp.encode(), body])
    return f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}"


async def _post(client: httpx.AsyncClient, url: str, key: bytes, taken: Taken) -> str | None:
    """Sends a transition; returns the fault, if any, without the URL, which may hold a password."""
    event = Event(taken.transition, datetime.fromtimestamp(taken.seconds, UTC), taken.data)
    body = msgspec.json.encode(event)
    # The name holds the time, because ids start again in a database that is made anew.
    name, now = f"transition-{taken.seconds}-{taken.id}", str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "webhook-id": name,
        "webhook-timestamp": now,
        "webhook-signature": signature(key, name, now, body),
    }
    try:
        # The answer's body is not read.
        async with (
            asyncio.timeout(TIMEOUT_SECONDS),
            client.stream("POST", url, content=body, headers=headers, timeout=TIMEOUT_SECONDS) as answer,
        ):
            return None if answer.is_success else f"status {answer.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        return type(error).__name__
