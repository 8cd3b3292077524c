"""The pulse: a serving process asks its database twice a second whether it is alive.

A database that is stopped says so by itself, in milliseconds. One that is frozen, or behind a network that swallows
packets, says nothing: without the pulse, each request would wait for it. While it is frozen, requests are refused at
once; those under way are cut off after some seconds.
"""

import asyncio
import time
from collections.abc import Callable
from typing import NoReturn

import psycopg
import structlog

from app.database import BEATS, OPTIONS, Beat, Connection
from app.loops import raise_if_cancelled

PERIOD_SECONDS = 0.5
# A database that is busy answers within some milliseconds, and seldom takes longer than this.
PATIENCE_SECONDS = 0.8
CUT_SECONDS = 4.0

_log = structlog.get_logger()


class Pulse:
    """Keeps the beat of a database; `frozen` is called when it freezes."""

    def __init__(self, url: str, frozen: Callable[[], None]) -> None:
        self._url, self._frozen = url, frozen
        self.beat = Beat()
        # It has no beat of its own, so that it goes on asking while the database is frozen.
        self._connection: Connection | None = None

    async def run(self) -> NoReturn:
        """Asks again and again, until it is cancelled."""
        BEATS[self._url] = self.beat
        asking: asyncio.Future[None] | None = None
        try:
            while True:
                asking = asyncio.ensure_future(self._ask())
                await self._watch(asking)
                asking.result()
                await asyncio.sleep(PERIOD_SECONDS)
        finally:
            if BEATS.get(self._url) is self.beat:
                del BEATS[self._url]
            if asking:
                asking.cancel()
                await asyncio.wait({asking})
            await self._close()

    async def _ask(self) -> None:
        """Returns when the database has answered; also when it refuses a connection, since then it is not frozen."""
        while True:
            try:
                if self._connection is None:
                    self._connection = await Connection.connect(self._url, autocommit=True, **OPTIONS)
            except psycopg.errors.ConnectionTimeout:
                continue
            except psycopg.Error:
                return
            try:
                await self._connection.execute("SELECT")
                return
            except psycopg.Error as error:
                await self._close()
                raise_if_cancelled(error)
                if not self.beat.is_frozen:
                    return

    async def _close(self) -> None:
        if self._connection:
            await self._connection.close()
        self._connection = None

    async def _watch(self, asking: "asyncio.Future[None]") -> None:
        """Waits for the answer; says that the database is frozen when neither it nor any other comes."""
        since = time.monotonic()
        while not asking.done():
            await asyncio.wait({asking}, timeout=PATIENCE_SECONDS / 4)
            now = time.monotonic()
            last = max(since, self.beat.answered_at)
            if not self.beat.is_frozen and not asking.done() and now - last > PATIENCE_SECONDS:
                self.beat.is_frozen = True
                _log.warning("database_frozen")
                self._frozen()
                if self._connection:
                    self._connection.cut()  # If only this connection is dead, the next one is answered.
            if self.beat.is_frozen and now - last > CUT_SECONDS:
                for connection in [*self.beat.waiting]:
                    connection.cut()
        if self.beat.is_frozen:
            self.beat.is_frozen = False
            _log.warning("database_back", seconds=round(time.monotonic() - since, 1))
