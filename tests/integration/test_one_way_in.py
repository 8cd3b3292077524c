"""Everything enters at one store: the writer and the import take the same way, and it is short."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.ingest.batch import Source
from app.ingest.history.importer import Importer
from tests.fixtures.engines import on_plain
from tests.fixtures.files import as_csv, history
from tests.fixtures.readings import batch_of, meter_reading, midnight, writing

APP = str(Path(__file__).resolve().parents[2] / "app")
MOST_FUNCTIONS = 6


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Returns our functions on the way to each COPY, the outermost first, by the table."""
    found: dict[str, list[str]] = {}
    copy = psycopg.AsyncCursor.copy

    def noting(self: psycopg.AsyncCursor[Any], statement: bytes, *args: Any) -> Any:
        frame, names = sys._getframe(1), list[str]()
        while frame.f_back:
            if frame.f_code.co_filename.startswith(APP):
                names.insert(0, frame.f_code.co_qualname)
            frame = frame.f_back
        found[statement.split()[1].decode()] = names
        return copy(self, statement, *args)

    monkeypatch.setattr(psycopg.AsyncCursor, "copy", noting)
    return found


@on_plain
async def test_the_writer_and_the_import_store_in_the_same_way(
    database_url: str, ways: dict[str, list[str]], tmp_path: Path
) -> None:
    reading = meter_reading(datetime.now(UTC))
    async with writing(database_url) as writer:
        for _ in range(2):
            await writer.store(batch_of(reading), Source.HTTP)
    of_writer = dict(ways)
    ways.clear()
    (tmp_path / "h.csv").write_bytes(as_csv(list(history(20, midnight(3)))))
    importer = Importer(database_url, on_progress=lambda *_: None, on_pause=lambda _: None, on_rejected=None)
    await importer.run(str(tmp_path / "h.csv"), {})
    await importer.close()

    shared = ["Session.store", "Session._commit", "copy"]
    for way in (of_writer["meter_reading"], of_writer["staged_meter_reading"], ways["meter_reading"]):
        assert way[-len(shared) :] == shared
        assert len(way) <= MOST_FUNCTIONS
    assert of_writer["meter_reading"][0] == "Writer.run"
    assert ways["meter_reading"][0] == "Importer.run"
