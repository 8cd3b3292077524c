"""The report on a month, with values made by hand."""

import csv
from datetime import date, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from msgspec.structs import replace

from app.database import command_connection
from app.policies.invariants import read_policies
from tests.fixtures.alerts import judge_all
from tests.fixtures.commands import command
from tests.fixtures.policies import apply_policies
from tests.fixtures.readings import midnight, store
from tests.integration.test_local_days import BERLIN, HOUR, LAST_YEAR, MINUTE, put_forward
from tests.integration.test_sessions import charge

PRICE = {"WATTLINE_PRICE_PER_KWH": "0.2", "WATTLINE_CURRENCY": "EUR"}
DAY = midnight(3)
MONTH = f"{DAY:%Y-%m}"
HOSTILE = "a<script>alert('x')</script>&\"<b>"


def report(url: str, *arguments: str, **environment: str) -> str:
    done = command("report", *arguments, DATABASE_URL=url, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refused(url: str, *arguments: str) -> str:
    done = command("report", *arguments, DATABASE_URL=url)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def days_of(url: str, folder: Path, *arguments: str, **environment: str) -> dict[str, dict[str, str]]:
    """Returns the rows of the report as CSV, by day."""
    file = folder / "report.csv"
    assert report(url, *arguments, "--output", str(file), **environment) == f"{file} is written.\n"
    with file.open(encoding="utf-8", newline="") as lines:
        return {row.pop("day"): row for row in csv.DictReader(lines)}


def keep_readings(url: str) -> None:
    """Has nothing dropped but judged hours and sessions, so that what happened last year is judged."""
    policies = read_policies()
    kept = {name: age for name, age in policies.retention.items() if name in ("efficiency_hour", "charging_session")}
    with command_connection(url) as connection:
        apply_policies(connection, replace(policies, retention=kept))
        connection.commit()


@pytest.mark.parametrize(("month", "hours", "doubled"), [(3, 23, 1), (10, 25, 2)])
async def test_the_day_on_which_the_clock_changes_has_all_its_hours_and_no_others(
    database_url: str, client: httpx.AsyncClient, tmp_path: Path, month: int, hours: int, doubled: int
) -> None:
    keep_readings(database_url)
    start = put_forward(month)
    # The second and the third are in the two hours that the clock shows alike, or between which it leaves one out.
    minutes_of_charges = {-1: 20, doubled: 25, doubled + 1: 30, hours - 1: 35, hours: 40}
    for hour, minutes in minutes_of_charges.items():
        await store(database_url, *charge(start + hour * HOUR + 10 * MINUTE, minutes, idle=5))
    await judge_all(database_url)

    asked = ("--month", f"{LAST_YEAR}-{month:02}", "--tz", "Europe/Berlin")
    days = days_of(database_url, tmp_path, *asked, **PRICE)
    assert len(days) == 31
    of_day = start.astimezone(BERLIN).date()
    expected = {of_day - timedelta(days=1): 20, of_day: 90, of_day + timedelta(days=1): 40}
    for day, minutes in expected.items():
        if day.month == month:
            row = {name: float(value) for name, value in days[day.isoformat()].items()}
            sums = {"acKwh": 0.11 * minutes, "dcKwh": 0.1 * minutes, "lossKwh": 0.01 * minutes}
            sums |= {"totalDcKwh": 0.1 * minutes, "sessionsDcKwh": 0.1 * minutes, "efficiencyRatio": 10 / 11}
            sums |= {"lossCost": 0.2 * 0.01 * minutes, "sessions": 3 if minutes == 90 else 1}
            assert row == pytest.approx(sums)
    others = [row for day, row in days.items() if date.fromisoformat(day) not in expected]
    assert {(row["acKwh"], row["efficiencyRatio"], row["sessions"]) for row in others} == {("0.0", "", "0")}

    first, following = (datetime(LAST_YEAR, number, 1, tzinfo=BERLIN) for number in (month, month + 1))
    query = {"from": first.isoformat(), "to": following.isoformat()}
    totals = (await client.get("/v1/analytics/efficiency", params=query)).json()["totals"]
    assert sum(float(row["lossKwh"]) for row in days.values()) == pytest.approx(totals["lossKwh"])
    printed = report(database_url, *asked).splitlines()
    assert printed[0].endswith("all sites, days of Europe/Berlin")
    assert [line.split()[:2] for line in printed if line.startswith("month")] == [["month", f"{totals['acKwh']:.1f}"]]


async def test_a_report_of_a_site_is_that_of_its_meters_with_those_that_are_retired(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    for number, (name, meter_id) in enumerate([("V1", "here"), ("V2", "here"), ("V1", "there")]):
        await store(database_url, *charge(DAY + 3 * number * HOUR, 30 + 10 * number, name, meter_id=meter_id))
    await judge_all(database_url)
    connection.execute("UPDATE meter SET site = 'Depot' WHERE external_id = 'here'")
    connection.execute("UPDATE meter SET site = 'else' WHERE external_id = 'there'")
    connection.execute("UPDATE vehicle SET site = 'else' WHERE external_id = 'V2'")
    connection.execute("UPDATE meter SET retired_at = now() + INTERVAL '1 day'")

    for site, minutes, sessions in (["--site", "Depot"], 70, "2"), (["--site", "else"], 50, "1"), ([], 120, "3"):
        row = days_of(database_url, tmp_path, "--month", MONTH, *site)[f"{DAY:%Y-%m-%d}"]
        assert float(row["acKwh"]) == pytest.approx(0.11 * minutes)
        assert row["sessions"] == sessions
    printed = report(database_url, "--month", MONTH, "--site", "Depot", **PRICE).splitlines()
    worst = [line.split() for line in printed if line.startswith(("here", "there", "V1", "V2"))]
    assert worst == [
        ["here", "90.9", "%", "7.7", "0.7", "0.14", "ok"],
        ["V1", "90.9", "%", "3.3", "0.3", "0.06", "ok"],
        ["V2", "90.9", "%", "4.4", "0.4", "0.08", "ok"],
    ]


async def test_what_is_not_known_is_no_zero(database_url: str, connection: psycopg.Connection, tmp_path: Path) -> None:
    assert "No hour has been judged yet, so nothing is known." in report(database_url, "--month", MONTH)
    days = days_of(database_url, tmp_path, "--month", MONTH)
    assert {value for row in days.values() for value in row.values()} == {""}

    judged = DAY.replace(day=15, hour=7)
    connection.execute("UPDATE installation SET judged_as_of = %s", [judged + 5 * MINUTE])
    days = days_of(database_url, tmp_path, "--month", MONTH)
    assert {day for day, row in days.items() if row["acKwh"] == "0.0"} == {f"{MONTH}-{day:02}" for day in range(1, 16)}
    note = f"The hours before {MONTH}-15T07:00:00Z are in this report; the others have not been judged yet."
    assert report(database_url, "--month", MONTH).splitlines()[-1] == note

    before = DAY.replace(day=1) - timedelta(days=10)
    printed = report(database_url, "--month", f"{before:%Y-%m}").splitlines()
    assert [line.split()[1] for line in printed if line.startswith("month")] == ["0.0"]
    assert not [line for line in printed if "judged" in line or "worst" in line]


class Elements(HTMLParser):
    """The elements, the attributes and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.attributes: dict[str, str | None] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= dict(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_the_page_is_one_file_in_which_every_name_is_text(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    await store(database_url, *charge(DAY, 60, "DE*ABC+1~2@x"))
    await judge_all(database_url)
    connection.execute("UPDATE meter SET site = %s", [HOSTILE])
    file = tmp_path / "report.html"
    report(database_url, "--month", MONTH, "--site", HOSTILE, "--output", str(file), **PRICE)
    page = Elements(file.read_text("utf-8"))
    assert not page.tags & {"script", "b", "link", "img", "iframe", "object"}
    assert page.text.count(HOSTILE) == 2  # in the title and in the heading
    for shown in "DE*ABC+1~2@x", "EUR lost", "6.6", "0.12", "90.9 %":
        assert shown in page.text
    assert not {"src", "href"} & page.attributes.keys()
    assert not [name for name in page.attributes if name.startswith("on")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--site", "Depot"], "No meter is at the site Depot, and the report of a site is that of its meters."),
        (["--tz", "Berlin"], "tz: There is no time zone 'Berlin'"),
        (["--tz", "Asia/Kathmandu"], "The days of Asia/Kathmandu do not begin with an hour of UTC"),
        (["--month", "1999-02"], "The hours of which a report is made are kept from "),
        (["--month", "0001-01"], "must lie between the years 1900 and 2200."),
        (["--output", "report.pdf"], "report.pdf must end with .html or .csv."),
        (["--output", "nowhere/report.csv"], "nowhere/report.csv cannot be written: No such file or directory."),
    ],
)
def test_what_cannot_be_reported_is_refused_by_name(database_url: str, arguments: list[Any], sentence: str) -> None:
    assert sentence in refused(database_url, "--month", MONTH, *arguments)


def test_a_month_has_a_year_and_a_number(database_url: str) -> None:
    for month in "2026", "2026-13", "October":
        assert command("report", "--month", month, DATABASE_URL=database_url).returncode == 2
