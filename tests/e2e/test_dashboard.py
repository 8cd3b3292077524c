"""The dashboard in a real browser: its contents, its updates, and its words when something is wrong."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from tests.fixtures.browser import browser, drawn, needs_chromium, opened
from tests.fixtures.database import Server
from tests.fixtures.engines import on_plain
from tests.fixtures.readings import midnight
from tests.fixtures.sending import Reading, meter, minutes_ago, stamp, vehicle
from tests.fixtures.service import Process, serving
from tests.fixtures.waiting import eventually
from tests.integration.test_seeds import worked_example
from tests.screenshot import take_screenshot

__all__ = ["browser"]

pytestmark = needs_chromium

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
NONE = "\N{EN DASH}"


def send(process: Process, readings: Reading | list[Reading]) -> None:
    def sent() -> httpx.Response | None:
        # After a test that took the database away, the first batch finds that its connection has ended.
        answer = process.post("/v1/telemetry", json=readings)
        return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer

    answer = eventually(sent)
    assert answer
    assert answer.status_code == httpx.codes.OK, answer.text
    assert answer.json()["rejected"] == []


def figure(page: Page, name: str) -> Any:
    return page.locator(f"[data-figure={name}]")


def line_pieces(page: Page, chart: int = 0) -> int:
    """Returns the number of pieces into which the first line of a chart is cut."""
    path = page.locator(".plot").nth(chart).locator(".scatterlayer .trace").first.locator("path.js-line")
    return sum((part.get_attribute("d") or "").count("M") for part in path.all())


def is_filled(page: Page, share: float) -> bool:
    """Returns True when the area of the first chart covers the ground at this share of its width."""
    found = page.locator(".plot").first.evaluate(
        """(plot, share) => {
            const { width, height } = plot.querySelector(".nsewdrag").getBBox();
            const point = new DOMPoint(share * width, height - 3);
            return [...plot.querySelectorAll(".scatterlayer .js-fill")].some((area) => area.isPointInFill(point));
        }""",
        share,
    )
    return bool(found)


@pytest.fixture(scope="module")
def example(server: Server) -> Iterator[Process]:
    """Runs the service with the worked example of the earlier systems' documents."""
    url = server.clone()
    with serving(url) as process:
        send(process, worked_example(with_meter_id=True))
        yield process
    server.drop(url)


def test_the_page_shows_the_numbers_of_the_worked_example(example: Process, browser: Browser) -> None:
    with opened(browser, example.base_url) as page:
        for name, value in {"ac": "5.578", "dc": "5.000", "loss": "0.578", "efficiency": "89.6"}.items():
            expect(figure(page, name)).to_have_text(value)
        page.get_by_role("link", name="V1").click()
        for name, value in {"dc": "2.451", "efficiency": "90.1", "soc": "22.3", "temperature": "30.3"}.items():
            expect(figure(page, name)).to_have_text(value)
        expect(page.get_by_text("It took energy in 5 minutes: 5 are paired, 0 shared, 0 unpaired.")).to_be_visible()
        drawn(page)
        page.goto(f"{example.base_url}/#/vehicle/V2")
        expect(figure(page, "efficiency")).to_have_text("89.2")
        page.goto(f"{example.base_url}/#/meter/M1")
        expect(figure(page, "ac")).to_have_text("5.578")
        page.goto(f"{example.base_url}/#/vehicle/V3")
        expect(page.get_by_text("There is no vehicle V3.")).to_be_visible()


def test_the_page_follows_a_live_reading(example: Process, browser: Browser) -> None:
    with opened(browser, f"{example.base_url}/#/fleet?range=1h") as page:
        expect(page.locator("#status-text")).to_contain_text("Live")
        expect(page.locator("tr[data-id=V1]")).to_be_visible()
        now = minutes_ago(0)
        send(example, [meter(now, 1.25, meter_id="M9"), vehicle(now, 1.125, vehicle_id="V9", soc=61.5)])
        expect(page.locator("tr[data-id=V9]")).to_contain_text("61.5 %")
        expect(figure(page, "ac")).to_have_text("1.250")
        expect(figure(page, "efficiency")).to_have_text("90.0")


@on_plain
def test_an_age_goes_on_without_a_reading(example: Process, browser: Browser) -> None:
    with opened(browser, f"{example.base_url}/#/vehicle/V1?range=1h") as page:
        expect(page.locator("#status-text")).to_contain_text("Live")
        send(example, vehicle(datetime.now(UTC)))
        seen = page.locator(".seen")
        of_now = re.compile(r"Last seen (now|\d+ s ago)")
        expect(seen).to_have_text(of_now)
        before = seen.inner_text()
        expect(seen).not_to_have_text(before)
        expect(seen).to_have_text(of_now)


FLEET = """
    INSERT INTO vehicle (external_id) SELECT 'vehicle-' || n FROM generate_series(1, 5000) AS n ORDER BY n;
    INSERT INTO vehicle_state (vehicle_id, ts, dc_milliwh, soc_centipercent)
    SELECT id, now() - INTERVAL '1 minute', 108000, id * 7919 % 10000 FROM vehicle WHERE external_id ~ '^vehicle-'
"""


@on_plain
def test_5_000_vehicles_are_searched_and_sorted_and_the_address_restores_the_view(
    example: Process, browser: Browser
) -> None:
    with psycopg.connect(example.database_url, autocommit=True) as connection:
        connection.execute(FLEET)
        by_charge = connection.execute("""
            SELECT external_id FROM vehicle JOIN vehicle_state ON vehicle_id = id
            WHERE external_id LIKE 'vehicle-47%' ORDER BY soc_centipercent
        """).fetchall()
    with opened(browser, f"{example.base_url}/#/fleet?range=1h") as page:
        rows = page.locator("tr[data-id]")
        expect(page.locator("tr[data-id=vehicle-1]")).to_be_visible()
        assert rows.count() < 80
        page.get_by_role("searchbox").fill("VEHICLE-47")
        expect(page.get_by_text("111 of 5,00")).to_be_visible()
        page.get_by_role("button", name="Charge").click()
        least = rows.first.get_attribute("data-id")
        page.get_by_role("button", name="Charge").click()
        expect(rows.first).not_to_have_attribute("data-id", least or "")
        most = rows.first.get_attribute("data-id")
        assert (least, most) == (*by_charge[0], *by_charge[-1])
        address = page.url
        assert "range=1h" in address
    with opened(browser, address) as page:
        expect(page.get_by_text("111 of 5,00")).to_be_visible()
        expect(page.locator("tr[data-id]").first).to_have_attribute("data-id", most or "")
        expect(page.get_by_role("button", name="1 hour")).to_have_attribute("aria-pressed", "true")
        page.get_by_role("searchbox").fill("")
        page.get_by_role("region", name="Vehicles").press("End")
        last = page.get_by_role("table", name="Vehicles").get_attribute("aria-rowcount")
        expect(page.locator(f"tr[aria-rowindex='{last}']")).to_be_visible()


@on_plain
def test_gaps_are_drawn_as_gaps(example: Process, browser: Browser) -> None:
    there = [minute for minute in range(60, 120) if not 80 <= minute < 100]
    for device in meter, vehicle:
        send(example, [device(minutes_ago(minute), 0.2, **{f"{device.__name__}_id": "G1"}) for minute in there])
    with psycopg.connect(example.database_url, autocommit=True) as connection:
        connection.execute("CALL spread_fleet(NULL, now())")
    ends = [stamp(minutes_ago(minute)) for minute in (150, 30)]
    query = f"from={ends[0]}&to={ends[1]}"
    with opened(browser, f"{example.base_url}/#/fleet?{query}") as page:
        drawn(page)
        assert line_pieces(page) == 2
        assert [is_filled(page, share) for share in (0.35, 0.5, 0.65)] == [True, False, True]
        page.goto(f"{example.base_url}/#/meter/G1?{query}")
        expect(figure(page, "ac")).to_have_text("8.000")
        drawn(page)
        assert line_pieces(page) == 2
        page.get_by_text("Values").first.click()
        values = page.get_by_role("region", name="Power: values").locator("tbody tr")
        # They come once the browser tells that it is open. The last reading is within its minute.
        expect(values).to_have_count(len(there) - 1)


@on_plain
def test_a_meters_highest_power_is_neither_the_beat_of_two_clocks_nor_a_catch_up(
    example: Process, browser: Browser
) -> None:
    begin = minutes_ago(150)
    silent = range(40, 60)
    readings = [meter(begin + timedelta(seconds=85 * n), 0.17, meter_id="B1") for n in range(100) if n not in silent]
    readings[40] = meter(begin + timedelta(seconds=85 * 60), 0.17 * 21, meter_id="B1")
    send(example, readings)
    query = f"from={stamp(minutes_ago(120))}&to={stamp(minutes_ago(60))}"
    with opened(browser, f"{example.base_url}/#/meter/B1?{query}") as page:
        peak = figure(page, "peak")
        expect(peak).not_to_have_text(NONE)
        assert float(peak.inner_text()) == pytest.approx(0.17 * 3600 / 85, abs=0.05)
        page.get_by_text("Values").first.click()
        cells = page.get_by_role("region", name="Power: values").locator("tbody td")
        expect(cells.first).to_be_visible()
        assert {float(text) for text in cells.all_inner_texts()} == {7.2}


@on_plain
def test_dragging_zooms_and_back_returns(example: Process, browser: Browser) -> None:
    with opened(browser, f"{example.base_url}/#/fleet?range=7d") as page:
        drawn(page)
        expect(page.get_by_text("Average by hour, kW.")).to_be_visible()
        box = page.locator(".plot .nsewdrag").first.bounding_box()
        assert box is not None
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + 0.95 * box["width"], middle)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.99 * box["width"], middle, steps=5)
        page.mouse.up()
        expect(page).to_have_url(re.compile("from="))
        expect(page.get_by_text("Average over five minutes, kW.")).to_be_visible()
        page.go_back()
        expect(page.get_by_text("Average by hour, kW.")).to_be_visible()
        page.get_by_role("button", name="Zoom in").click()
        expect(page).to_have_url(re.compile("from="))


@contextmanager
def database_away(server: Server, process: Process) -> Iterator[None]:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        name = str(conninfo_to_dict(process.database_url)["dbname"])
        allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format
        connection.execute(allow(sql.Identifier(name), sql.SQL("false")))
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            yield
        finally:
            connection.execute(allow(sql.Identifier(name), sql.SQL("true")))


@on_plain
def test_a_range_that_fails_leaves_nothing_of_the_one_before(
    server: Server, example: Process, browser: Browser
) -> None:
    with opened(browser, f"{example.base_url}/#/fleet?range=24h") as page:
        drawn(page)
        expect(figure(page, "ac")).not_to_have_text(NONE)
        with database_away(server, example):
            page.get_by_role("button", name="7 days").click()
            expect(page.locator("main").get_by_text(re.compile("database")).first).to_be_visible()
        for name in "ac", "dc", "loss", "efficiency":
            expect(figure(page, name)).to_have_text(NONE)
        expect(page.get_by_text("Nothing to show in this range")).to_have_count(2)
        page.goto(f"{example.base_url}/#/fleet?from=2022-10-20T00:00:00Z&to=2026-11-20T00:00:00Z")
        zoom_out = page.get_by_role("button", name="Zoom out")
        zoom_out.click()
        expect(zoom_out).to_be_disabled()
        page.reload()
        expect(page.get_by_text("Average by day, kW.")).to_be_visible()


# Too little is known of V1 to judge it.
JUDGED = """
    INSERT INTO efficiency_hour
    SELECT id, date_trunc('hour', now()) - INTERVAL '3 hours', 1, ac, dc, 0, 0, dc, 0, 3600000000, 0, 0, 0, 0, 0, 0, 0
    FROM (VALUES ('V1', 100000, 0), ('V2', 10000000, 9000000)) AS hour (external_id, ac, dc)
    JOIN vehicle USING (external_id)
    ON CONFLICT DO NOTHING;
    UPDATE installation SET judged_as_of = now();
"""


@on_plain
def test_what_is_not_judged_is_not_called_fine(example: Process, browser: Browser) -> None:
    with psycopg.connect(example.database_url, autocommit=True) as connection:
        with connection.transaction():
            connection.execute("UPDATE installation SET judged_as_of = NULL")
        with connection.transaction(), opened(browser, example.base_url) as page:
            connection.execute("SELECT FROM installation FOR UPDATE")  # the service cannot judge meanwhile
            expect(page.get_by_text("Nothing has been judged yet.")).to_be_visible()
        connection.execute(JUDGED)
    with opened(browser, example.base_url) as page:
        # The worst comes first, except for V1, of which too little is known.
        expect(page.locator("tr[data-id]").first).to_have_attribute("data-id", "V2")
        page.get_by_role("button", name="without a reading for 10 minutes").click()
        expect(page.get_by_text("devices that have never reported are not listed")).to_be_visible()
        expect(page.locator("tr[data-id=V2]")).to_contain_text("silent")
        page.get_by_label("closed alerts too").check()
        expect(page).to_have_url(re.compile("silent=1.*closed=1"))
        expect(page.get_by_role("checkbox")).to_be_checked()


ALERT = """
    INSERT INTO alert (kind, stream, device_id, opened, evidence, acknowledged, ac_milliwh, dc_milliwh, loss_milliwh)
    SELECT 'low_efficiency', 'vehicle', id, date_trunc('hour', now()),
           '{"acKwh": 2, "dcKwh": 1.5, "lossKwh": 0.5, "efficiencyRatio": 0.75, "others": []}',
           '{"at": "2026-02-10T14:00:00Z", "by": "Ada", "reason": "cable <b>is</b> hot"}', 40000000, 28000000, 12500000
    FROM vehicle WHERE external_id = %s
"""


@on_plain
def test_an_alert_says_what_was_lost_since_and_who_acknowledged_it(example: Process, browser: Browser) -> None:
    send(example, vehicle(minutes_ago(1), vehicle_id="lossy"))
    with psycopg.connect(example.database_url, autocommit=True) as connection:
        connection.execute(ALERT, ["lossy"])
    with opened(browser, f"{example.base_url}/#/vehicle/lossy") as page:
        shown = page.locator(".alert").filter(has_text="Low efficiency")
        expect(shown.locator(".acknowledged")).to_have_text(
            re.compile("Acknowledged by Ada .* ago: cable <b>is</b> hot")
        )
        headings, numbers = shown.locator(".opening"), shown.locator("dl")
        expect(headings.nth(0)).to_have_text("When it opened:")
        expect(numbers.nth(0)).to_contain_text("Loss0.500 kWh")
        expect(headings.nth(1)).to_have_text("Since it opened, up to the last judged hour:")
        expect(numbers.nth(1)).to_contain_text("Loss12.000 kWh")
        expect(numbers.nth(1)).to_contain_text("Efficiency70.0 %")
        expect(numbers.nth(1)).to_contain_text("Loss to date, with that before it opened12.500 kWh")


@on_plain
def test_a_loss_is_shown_in_money_where_a_price_is_set(database_url: str, browser: Browser) -> None:
    with serving(database_url, WATTLINE_PRICE_PER_KWH="0.2", WATTLINE_CURRENCY="EUR") as process:
        start = minutes_ago(40)
        times = [start + timedelta(minutes=minute) for minute in range(31)]
        send(process, [meter(at, 0.5, meter_id="lossy") for at in times])
        send(process, [vehicle(at, 0.25, vehicle_id="lossy", meterId="lossy") for at in times])
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(ALERT, ["lossy"])
        with opened(browser, f"{process.base_url}/#/vehicle/lossy") as page:
            expect(page.locator(".alert dl").nth(1)).to_contain_text("12.500 kWh, 2.50 EUR")
            tile = page.locator(".tile").filter(has_text="Lost")
            expect(tile).to_contain_text(re.compile(r"kWh AC, paired, 1\.5\d EUR"))


@on_plain
def test_an_empty_database_says_how_to_send_the_first_reading(server_process: Process, browser: Browser) -> None:
    with opened(browser, server_process.base_url) as page:
        expect(page.locator("pre")).to_be_visible()
        expect(page.locator(".tiles")).to_be_hidden()
        command = page.locator("pre").inner_text()
        subprocess.run(["sh", "-euc", command], check=True, capture_output=True)
        expect(page.locator("tr[data-id=V1]")).to_be_visible()
        expect(figure(page, "ac")).to_have_text("0.480")


def record_sizes(process: Process) -> None:
    """Records a size of each table for eight days, without the fifth."""
    with psycopg.connect(process.database_url, autocommit=True) as connection:
        for days in 8, 7, 6, 4, 3, 2, 1, 0:
            connection.execute(
                """
                INSERT INTO storage_size (at, name, bytes)
                SELECT %s, name, 1048576 FROM storage_sizes() ON CONFLICT DO NOTHING
                """,
                [midnight(days)],
            )


# The retention of the meters' readings, as somebody changes it in psql.
SHORTENED = {
    "plain": "UPDATE retention SET drop_after = '20 days' WHERE name = 'meter_reading'",
    "timescale": """
        SELECT alter_job(job_id, config => jsonb_set(config, '{drop_after}', '"20 days"'))
        FROM timescaledb_information.jobs
        WHERE proc_name = 'policy_retention' AND hypertable_name = 'meter_reading'
    """,
}


def test_storage_shows_sizes_and_what_is_dropped_next_and_marks_a_policy_that_was_changed(
    server_process: Process, engine: str, connection: psycopg.Connection, browser: Browser
) -> None:
    send(server_process, meter(midnight(4)))
    with opened(browser, server_process.base_url) as page:
        page.get_by_role("link", name="Storage").click()
        expect(page.get_by_text("Sizes are recorded each hour.")).to_be_visible()
        rows = page.get_by_role("region", name="Tables").locator("tr[data-id]")
        stored = server_process.get("/v1/storage").json()["storage"]["tables"]
        expect(rows).to_have_count(len(stored))
        dropped = page.locator("tr[data-id=meter_reading] time")
        expect(dropped).to_have_attribute("datetime", stamp(midnight(3) + timedelta(days=30)))
        expect(page.get_by_text("All are as in timescale/policies.toml.")).to_be_visible()
        expect(page.locator(".policies tr[data-state]")).to_have_count(0)

        connection.execute(SHORTENED[engine].encode())
        record_sizes(server_process)
        page.reload()
        expect(dropped).to_have_attribute("datetime", stamp(midnight(3) + timedelta(days=20)))
        expect(figure(page, "dropped")).to_have_text(re.compile(r"in 1[67] days"))
        expect(page.get_by_text("1 not as in timescale/policies.toml: keep of meter_reading.")).to_be_visible()
        changed = page.locator(".policies tr[data-state]")
        expect(changed).to_have_count(1)
        expect(changed).to_contain_text(re.compile("20 days.*differs from timescale/policies.toml: 30 days"))
        not_available = page.get_by_text("not available")
        expect(not_available).to_have_count(2 if engine == "plain" else 0)
        drawn(page)
        assert line_pieces(page) == 2


@on_plain
def test_storage_that_cannot_be_read_says_so_and_comes_back(server: Server, example: Process, browser: Browser) -> None:
    with opened(browser, f"{example.base_url}/#/storage") as page:
        row = page.locator("tr[data-id=alert]")
        expect(row).to_be_visible()
        with database_away(server, example):
            page.reload()
            expect(page.get_by_text("The storage could not be loaded.")).to_be_visible()
            expect(page.locator("#status-text")).to_have_text("No data")
            expect(row).to_have_count(0)
        expect(row).to_be_visible()


@on_plain
def test_nothing_that_an_address_says_becomes_html(example: Process, browser: Browser) -> None:
    bad = quote("<img src=x onerror=alert(1)>", safe="")
    for path in (
        f"vehicle/{bad}",
        f"fleet?q={bad}&sort={bad}&range={bad}",
        f"{bad}/{bad}?from={bad}&to=9999-12-31",
        "vehicle/%ff",
    ):
        with opened(browser, f"{example.base_url}/#/{path}") as page:
            expect(page.locator("#status-text")).to_contain_text("Live")
            assert page.locator("img").count() == 0
            if path.startswith("fleet"):
                expect(page.get_by_text("There is no such range. These are the last 24 hours.")).to_be_visible()


def faults(page: Page) -> list[str]:
    """Returns what axe-core finds serious or worse."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run()")
    return [
        f"{violation['id']}: {json.dumps([node['target'] for node in violation['nodes']])}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


def contrast(element: Locator) -> float:
    """Returns the contrast of an element's text, by WCAG, while the mouse stays put: axe-core moves the page."""
    colors: list[str] = element.evaluate("(it) => [getComputedStyle(it).color, getComputedStyle(it).backgroundColor]")
    lights = []
    for color in colors:
        parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        lights.append(0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)
    return max(lights) / min(lights)


@on_plain
def test_axe_finds_no_serious_fault(example: Process, browser: Browser) -> None:
    with opened(browser, example.base_url) as page:
        expect(page.locator("tr[data-id=V1]")).to_be_visible()
        page.get_by_text("Values").first.click()
        page.get_by_text("Choose").click()
        for theme in "light", "dark":
            dress(page, theme)
            assert faults(page) == []
            chosen = page.get_by_role("button", name="24 hours")
            chosen.hover()
            assert contrast(chosen) > 4.5
        page.goto(f"{example.base_url}/#/vehicle/V1")
        for theme in "dark", "light":
            dress(page, theme)
            assert faults(page) == []
        record_sizes(example)
        page.goto(f"{example.base_url}/#/storage")
        expect(page.locator("tr[data-id=alert]")).to_be_visible()
        for theme in "light", "dark":
            dress(page, theme)
            assert faults(page) == []


def dress(page: Page, theme: str) -> None:
    """Sets the theme as a browser's user does who chooses it for all pages."""
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    expect(page.locator("html")).to_have_attribute("data-theme", theme)
    drawn(page)


@on_plain
def test_a_phone_shows_all_of_it_without_scrolling_sideways(example: Process, browser: Browser) -> None:
    record_sizes(example)
    with opened(browser, example.base_url, size=(390, 844)) as page:
        for path, heading in ("fleet", "Fleet"), ("vehicle/V1", "V1"), ("meter/M1", "M1"), ("storage", "Storage"):
            page.goto(f"{example.base_url}/#/{path}")
            expect(page.get_by_role("heading", level=1)).to_contain_text(heading)
            drawn(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390


@on_plain
def test_the_theme_that_is_chosen_stays(example: Process, browser: Browser) -> None:
    with opened(browser, example.base_url) as page:
        page.get_by_role("button", name="Dark theme").click()
        page.reload()
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"


@on_plain
def test_the_files_are_kept_by_browsers_and_run_nothing_from_elsewhere(example: Process) -> None:
    page = example.get("")
    assert "script-src 'self';" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-cache"
    for path in re.findall(r'(?:src|href|data-charts)="(/dashboard/[^"]+)"', page.text):
        for encoding in "gzip", "identity":
            answer = example.get(path, headers={"Accept-Encoding": encoding})
            assert answer.status_code == httpx.codes.OK
            assert "immutable" in answer.headers["cache-control"]
            assert answer.headers.get("content-encoding", "identity") == encoding
    for unknown in "/dashboard/0/style.css", "/dashboard/0/..%2fassets.py", "/nowhere":
        assert example.get(unknown).json()["code"] == "not_found"


@on_plain
def test_the_picture_of_the_readme_can_be_taken(example: Process, browser: Browser, tmp_path: Path) -> None:
    take_screenshot(browser, example.base_url, tmp_path / "dashboard.png")
    assert (tmp_path / "dashboard.png").stat().st_size > 20_000


@on_plain
def test_the_page_survives_a_restart_of_the_server(example: Process, browser: Browser) -> None:
    with opened(browser, example.base_url) as page:
        expect(page.locator("tr[data-id=V1]")).to_be_visible()
        expect(page.locator("#status-text")).to_have_text("Live")
        example.popen.send_signal(signal.SIGTERM)
        assert example.await_end() == 0
        expect(page.locator("#banner")).to_contain_text("Disconnected since")
        example.start()
        example.await_ready()
        send(example, vehicle(minutes_ago(0), vehicle_id="V8"))
        expect(page.locator("#status-text")).to_have_text("Live")
        expect(page.locator("#banner")).to_be_hidden()
        expect(page.locator("tr[data-id=V8]")).to_be_visible()
