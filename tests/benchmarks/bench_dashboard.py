"""The dashboard on a day of 5,000 meters and 5,000 vehicles: its first calls, its first view, its live stream."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from statistics import median
from urllib.parse import urlencode

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from app.dashboard.live import News
from app.database import create_pool
from tests.benchmarks.conftest import DEVICES, Ask, Measure
from tests.fixtures.browser import chromium, needs_chromium
from tests.fixtures.service import Process

CALLS = {
    "/v1/analytics/alerts?open=true&limit=50": "first data: open alerts",
    "/v1/analytics/efficiency?by=vehicle&worst=5000": "first data: efficiency of 5,000 vehicles",
    "/v1/analytics/vehicles/states": "first data: states of 5,000 vehicles",
    "/v1/analytics/freshness": "first data: freshness",
    "/v1/analytics/vehicles/vehicle-4711/coverage": "a vehicle's page: minutes of 24 h",
}
VIEWS = 7
# The parts of the page that can be seen, and since when: the numbers, the lines, the rows.
SEEN = """
    const seen = {}, things = {
        numbers: () => /[0-9]/.test(document.querySelector('[data-figure=ac]')?.textContent),
        lines: () => document.querySelector('.plot path'),
        rows: () => document.querySelector('tr[data-id]'),
        charts: () => document.querySelector('.plot[data-drawn]'),
    };
    const look = () => {
        for (const [name, there] of Object.entries(things)) if (there()) seen[name] ??= performance.now();
        requestAnimationFrame(look);
    };
    globalThis.seen = seen;
    look();
"""


def test_series_of_the_fleet(ask: Ask, measure: Measure) -> None:
    now = datetime.now(UTC)
    window = {"from": (now - timedelta(hours=24)).isoformat(), "to": (now + timedelta(minutes=5)).isoformat()}
    path = f"/v1/analytics/fleet/series?{urlencode(window)}"
    assert ask(path)["bucket"] == "1m"
    measure("first data: series of the fleet, 24 h by minute", lambda _: path)


@pytest.mark.parametrize("path", CALLS)
def test_calls(path: str, ask: Ask, measure: Measure) -> None:
    if "efficiency" in path:
        assert len(ask(path)["ranking"]) == DEVICES
    measure(CALLS[path], lambda _: path)


def test_a_look_of_the_live_stream(loaded: Process, benchmark: BenchmarkFixture, report: Callable[[str], None]) -> None:
    with asyncio.Runner() as runner:
        pool, news = create_pool(loaded.database_url, 2), News()
        benchmark.pedantic(lambda: runner.run(news.ask(pool)), rounds=50, warmup_rounds=5)  # type: ignore[no-untyped-call]
        runner.run(pool.dispose())
    assert benchmark.stats is not None
    report(f"a look of the live stream: median {benchmark.stats.stats.median * 1000:.1f} ms")


@needs_chromium
def test_first_view(loaded: Process, benchmark: BenchmarkFixture, report: Callable[[str], None]) -> None:
    """Opens the page each time with an empty cache."""
    views: list[dict[str, float]] = []

    def view() -> None:
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        page = context.new_page()
        page.add_init_script(SEEN)
        page.goto(loaded.base_url)
        page.wait_for_selector(".plot[data-drawn]")
        page.wait_for_timeout(50)
        views.append(page.evaluate("seen"))
        context.close()

    with chromium() as browser:
        benchmark.pedantic(view, rounds=VIEWS)  # type: ignore[no-untyped-call]
    medians = {name: median(seen[name] for seen in views) for name in ("numbers", "lines", "rows", "charts")}
    report(f"first view, ms from the start: {', '.join(f'{name} {ms:.0f}' for name, ms in medians.items())}")
