"""Days and months of a time zone in series, with values made by hand."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.analytics.buckets import Buckets, choose_bucket
from app.analytics.fleet_series import fetch_fleet_series
from app.analytics.series import fetch_meter_series, fetch_vehicle_series
from app.analytics.series_source import METER, Bucket
from app.analytics.window import Window
from app.database import create_pool
from app.settings import Settings
from tests.fixtures.readings import Reading, meter_reading, midnight, store, vehicle_reading
from tests.fixtures.sending import problem

BERLIN = ZoneInfo("Europe/Berlin")
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
LAST_YEAR = datetime.now(UTC).year - 1


def put_forward(month: int) -> datetime:
    """Returns the midnight in Berlin that begins the last Sunday of a month of last year, when clocks change."""
    last = max(day for day in range(25, 32) if datetime(LAST_YEAR, month, day, tzinfo=UTC).weekday() == 6)
    return datetime(LAST_YEAR, month, last, tzinfo=BERLIN).astimezone(UTC)


def each_hour(start: datetime, hours: int) -> list[Reading]:
    """Returns 1 kWh AC and 0.9 kWh DC in the middle of each hour; the charge is 10 % in the first, then 20 %."""
    readings = list[Reading]()
    for hour in range(hours):
        at = start + hour * HOUR + 30 * MINUTE
        readings.append(meter_reading(at, 1, voltage=230 + hour))
        readings.append(vehicle_reading(at, 0.9, soc=10 if hour == 0 else 20))
    return readings


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[AsyncEngine]:
    pool = create_pool(database_url, 2)
    yield pool
    await pool.dispose()


def berlin(width: Bucket, start: datetime, end: datetime) -> Buckets:
    return choose_bucket(METER, Window(start, end), width, 1_500, set(), "Europe/Berlin")


@pytest.mark.parametrize(("month", "hours"), [(3, 23), (10, 25)])
async def test_the_day_on_which_the_clock_changes_has_all_its_hours_and_no_others(
    database_url: str, pool: AsyncEngine, month: int, hours: int
) -> None:
    day = put_forward(month)
    # The hours before and after belong to the days beside it.
    await store(database_url, *each_hour(day - 2 * HOUR, 2), *each_hour(day, hours), *each_hour(day + hours * HOUR, 3))
    asked = berlin("1d", day - HOUR, day + (hours + 1) * HOUR)
    settings = Settings()

    of_meter = (await fetch_meter_series(pool, "M1", asked, settings)).columns
    starts = [int((day + since).timestamp()) for since in (-24 * HOUR, 0 * HOUR, hours * HOUR)]
    assert (of_meter.t, of_meter.ac_kwh, of_meter.readings) == (starts, [2, hours, 3], [2, hours, 3])
    assert (of_meter.min_voltage, of_meter.max_voltage) == ([230] * 3, [231, 230 + hours - 1, 232])
    assert of_meter.power_kw == [2 / 24, 1.0, 3 / 24]

    of_vehicle = (await fetch_vehicle_series(pool, "V1", asked, settings)).columns
    assert of_vehicle.dc_kwh == pytest.approx([1.8, 0.9 * hours, 2.7])
    assert of_vehicle.avg_soc == pytest.approx([15, (10 + 20 * (hours - 1)) / hours, 50 / 3])

    of_fleet = (await fetch_fleet_series(pool, berlin("1d", day, day + HOUR))).columns
    assert (of_fleet.t, of_fleet.meter_readings, of_fleet.ac_kwh) == (starts[1:2], [hours], [hours])
    assert of_fleet.efficiency_ratio == [pytest.approx(0.9)]
    assert of_fleet.ac_kw == [1.0]
    assert of_fleet.dc_kw == [pytest.approx(0.9)]


async def test_a_month_begins_and_ends_at_midnight_of_its_zone(database_url: str, pool: AsyncEngine) -> None:
    march, april = (datetime(LAST_YEAR, month, 1, tzinfo=BERLIN).astimezone(UTC) for month in (3, 4))
    for at, kwh in (march - MINUTE, 1), (march, 2), (april - MINUTE, 4), (april, 8):
        await store(database_url, meter_reading(at, kwh))
    columns = (await fetch_meter_series(pool, "M1", berlin("1mo", march - HOUR, april + HOUR), Settings())).columns
    assert columns.ac_kwh == [1, 6, 8]
    assert columns.t[1:] == [int(march.timestamp()), int(april.timestamp())]
    assert columns.power_kw[1] == pytest.approx(6 / (31 * 24 - 1))

    of_utc = choose_bucket(METER, Window(march - HOUR, april + HOUR), "1mo", 1_500, set())
    assert (await fetch_meter_series(pool, "M1", of_utc, Settings())).columns.ac_kwh == [3, 12]


async def test_days_that_are_off_whole_hours_are_made_from_minutes(
    database_url: str, client: httpx.AsyncClient
) -> None:
    midnight_there = midnight(3) + 18 * HOUR + 15 * MINUTE
    for at, kwh in (midnight_there - MINUTE, 1), (midnight_there, 2), (midnight_there + 24 * HOUR - MINUTE, 4):
        await store(database_url, meter_reading(at, kwh), vehicle_reading(at, kwh))
    window = {"from": (midnight_there - HOUR).isoformat(), "to": (midnight_there + HOUR).isoformat()}
    query = {**window, "bucket": "1d", "tz": "Asia/Kathmandu"}
    for path, column in ("meters/M1", "acKwh"), ("vehicles/V1", "dcKwh"), ("fleet", "acKwh"), ("fleet", "dcKwh"):
        answer = (await client.get(f"/v1/analytics/{path}/series", params=query)).json()
        assert answer["columns"][column] == [1, 6]
        assert (answer["bucket"], answer["columns"]["t"][1]) == ("1d", int(midnight_there.timestamp()))

    query |= {"from": midnight(400).isoformat(), "to": midnight(399).isoformat()}
    refused = await client.get("/v1/analytics/meters/M1/series", params=query)
    problem(refused, 400, "invalid_time_range")
    assert refused.json()["detail"].startswith(
        "In Asia/Kathmandu, these buckets are made from minutes, which are kept from "
    )
    assert (await client.get("/v1/analytics/meters/M1/series", params=query | {"tz": "Europe/Berlin"})).json()


async def test_what_cannot_be_asked_of_a_zone_is_a_problem(database_url: str, client: httpx.AsyncClient) -> None:
    await store(database_url, meter_reading(midnight(1)))
    for query in "tz=Europe/Berlin", "tz=Europe/Berlin&bucket=1h", "tz=Berlin&bucket=1d", "tz=%00&bucket=1mo":
        answer = await client.get(f"/v1/analytics/meters/M1/series?{query}")
        problem(answer, 400, "invalid_parameter")
        assert answer.json()["detail"].startswith("tz: ")
