"""The watch: a serving process asks the doctor's questions each half minute, for ready, metrics and its log."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import structlog
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from app.database import create_pool, unreachable
from app.errors import SetupError
from app.loops import raise_if_cancelled
from app.ops.doctor.ask import ask_database, disk_bytes, unasked
from app.ops.doctor.checks import wrong
from app.ops.doctor.facts import Facts, Finding
from app.settings import Settings

PERIOD_SECONDS = 30
# A database that is frozen answers nothing, and sets no limit either.
ROUND_SECONDS = 20

_log = structlog.get_logger()


class Watch:
    """The findings of the last round and what it learned: whoever reads them does not wait for the database.

    `checked_at` is None before the first round.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        self._url, self._settings = url, settings
        self._directory: Path | None = None
        self.facts = unasked(settings, {})
        self.findings: list[Finding] = []
        self.checked_at: datetime | None = None

    async def run(self) -> NoReturn:
        """Examines the database round after round until it is cancelled."""
        pool = create_pool(self._url, 1)
        try:
            while True:
                facts = unasked(self._settings, {})
                try:
                    async with asyncio.timeout(ROUND_SECONDS), pool.connect() as connection:
                        await connection.execution_options(isolation_level="READ COMMITTED", postgresql_readonly=True)
                        await connection.run_sync(ask_database, facts, for_report=False)
                except SetupError as error:
                    facts.away = str(error)
                except (SQLAlchemyError, TimeoutError) as error:
                    raise_if_cancelled(error)
                    reason = error.orig if isinstance(error, DBAPIError) else f"no answer within {ROUND_SECONDS} s"
                    facts.away = str(unreachable(self._url, reason))
                self._learn(facts)
                await asyncio.sleep(PERIOD_SECONDS)
        finally:
            await pool.dispose()

    def _learn(self, facts: Facts) -> None:
        """Takes over what a round found; logs what is new and what has ended."""
        if facts.local and facts.server and facts.server.data_directory:
            self._directory = Path(facts.server.data_directory)
        if facts.away and self._directory:
            facts.disk = disk_bytes(self._directory)
        before = {(finding.code, finding.about): finding for finding in self.findings}
        now = {(finding.code, finding.about): finding for finding in wrong(facts)}
        if facts.away:
            # Nothing says that these have ended.
            now = before | now
        for key in now.keys() - before.keys():
            _log.warning("finding", code=now[key].code, sentence=now[key].sentence)
        for key in before.keys() - now.keys():
            _log.info("finding_ended", code=before[key].code, sentence=before[key].sentence)
        self.facts, self.findings, self.checked_at = facts, list(now.values()), datetime.now(UTC)
