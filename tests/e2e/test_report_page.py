"""The page of the report as a browser prints it."""

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from app.analytics.efficiency.ranking import Ranked
from app.analytics.efficiency.verdict import Coverage, Status
from app.analytics.report import Report, Sums
from app.cli.report_page import page_of
from tests.fixtures.browser import chromium, needs_chromium


@needs_chromium
@pytest.mark.parametrize("paper", ["A4", "Letter"])
def test_a_long_month_of_a_large_fleet_fits_on_one_sheet(tmp_path: Path, paper: str) -> None:
    day = Sums(48_000, 43_200, 4_800, 1_488, 0.9, 45_600, 1_500, 45_000)
    whole = Sums(1_488_000, 1_339_200, 148_800, 46_128, 0.9, 1_413_600, 46_500, 1_395_000)
    worst = [
        Ranked(f"DE*ABC*E{number:032}", 0.8, 0.01, 9_000, 7_200, 1_800, 558, Coverage(9, 9, 0, 0, 0), Status.OK)
        for number in range(8)
    ]
    start, end = date(2026, 10, 1), datetime(2026, 10, 31, 23, tzinfo=UTC)
    days: list[tuple[date, Sums | None]] = [(start + timedelta(days=number), day) for number in range(31)]
    # One hour is not judged, so there is a note more.
    judged_to = end - timedelta(hours=1)
    made = Report(start, "Europe/Berlin", "Depot", "EUR", 0.31, judged_to, end, days, whole, worst, worst)
    page = tmp_path / "report.html"
    page.write_text(page_of(made), encoding="utf-8")
    with chromium() as browser:
        opened = browser.new_page()
        opened.goto(page.as_uri())
        assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
        printed = opened.pdf(format=paper)
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 1
