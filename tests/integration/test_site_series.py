"""The fleet's series of a site: that of its devices, so that those of all sites add up to the fleet's."""

import asyncio
from itertools import chain
from random import Random
from typing import Any

import httpx
import psycopg
import pytest

from app.ops.refresh import refresh_aggregates
from app.telemetry.reading import MeterReading
from tests.fixtures.readings import Reading, midnight, store
from tests.fixtures.sending import problem, stamp
from tests.integration.test_power import FIVE, HOUR, MINUTE, by_time, fleet, spread

START = midnight(3) + 15 * HOUR + 7 * MINUTE
END = START + 9 * HOUR
WINDOW = {"from": stamp(START - HOUR), "to": stamp(END + HOUR)}
# The meter of a vehicle may be at another site, and a device at none.
METERS = {"north": range(4), "south": range(4, 6)}
VEHICLES = {"north": range(2, 5), "south": [0, 1, 5, 6]}
LABEL = "UPDATE {} SET site = %s WHERE external_id = ANY (%s)"
SUMS = ("acKwh", "dcKwh", "meterReadings", "vehicleReadings")


async def series(client: httpx.AsyncClient, site: str | None = None, **query: Any) -> dict[str, Any]:
    answer = await client.get("/v1/analytics/fleet/series", params=WINDOW | query | ({"site": site} if site else {}))
    assert answer.status_code == httpx.codes.OK, answer.text
    document: dict[str, Any] = answer.json()
    return document


@pytest.fixture
async def readings(database_url: str, connection: psycopg.Connection) -> list[Reading]:
    """Stores nine hours of nine chargers and vehicles; those without a label get the site `none`."""
    readings = fleet(7, START, 540)
    Random(8).shuffle(readings)
    for part in range(2):
        await store(database_url, *readings[part::2])
        await asyncio.to_thread(refresh_aggregates, database_url, None, None)
    for stream, sites in ("meter", METERS), ("vehicle", VEHICLES):
        for site, numbers in sites.items():
            connection.execute(LABEL.format(stream).encode(), [site, [f"F{number}" for number in numbers]])
        rest = [f"F{number}" for number in range(9) if number not in chain(*sites.values())]
        connection.execute(LABEL.format(stream).encode(), ["none", rest])
    return readings


@pytest.mark.parametrize(
    "query",
    [
        {"bucket": "1m"},
        {"bucket": "1h"},
        {"bucket": "1d"},
        *({"bucket": "1d", "tz": tz} for tz in ("Europe/Berlin", "Asia/Kathmandu")),
    ],
    ids=lambda query: "-".join(query.values()),
)
async def test_the_series_of_all_sites_add_up_to_the_fleet_s(
    readings: list[Reading], client: httpx.AsyncClient, query: dict[str, str]
) -> None:
    whole = await series(client, **query)
    parts = [await series(client, site, **query) for site in ("north", "south", "none")]
    assert [part["site"] for part in (whole, *parts)] == [None, "north", "south", "none"]
    for name in SUMS:
        of_parts = [by_time(part, name) for part in parts]
        sums = {t: sum(of_part.get(t, 0) for of_part in of_parts) for t in chain(*of_parts)}
        assert sums == pytest.approx(by_time(whole, name))
    for name in "acKw", "dcKw":
        # A minute's power is that of its five minutes.
        powers, *of_parts = (
            {t // FIVE: power for t, power in by_time(answer, name).items()} for answer in (whole, *parts)
        )
        known = [t for t in powers if all(t in of_part for of_part in of_parts)]
        assert len(known) >= {"1m": 85, "1h": 7}.get(query["bucket"], 0)
        for t in known:
            assert powers[t] == pytest.approx(sum(of_part[t] for of_part in of_parts), abs=1e-3)
    assert {ratio for part in parts for ratio in part["columns"]["efficiencyRatio"]} == {None}


async def test_a_site_s_power_is_that_of_energy_spread_over_the_time_in_which_it_flowed(
    readings: list[Reading], client: httpx.AsyncClient
) -> None:
    names = [f"F{number}" for number in METERS["north"]]
    own: list[Reading] = [one for one in readings if isinstance(one, MeterReading) and one.meter_id in names]
    energies = spread(own, is_meter=True)
    minutes, hours = [await series(client, "north", bucket=bucket) for bucket in ("1m", "1h")]
    powers = by_time(minutes, "acKw")
    assert len(powers) > 480
    for t, power in powers.items():
        assert power == pytest.approx(float(energies[t // FIVE * FIVE]) * 12 / 1e6, abs=1e-3)
    demands = [
        sum(energies[t + FIVE * part] for part in range(3)) * 4 / 1_000_000
        for t in energies
        if all(t + FIVE * part in {at // FIVE * FIVE for at in powers} for part in range(3))
    ]
    assert minutes["peakKw"]["ac"] == pytest.approx(float(max(demands)), abs=1e-3)
    by_hour = by_time(hours, "acKw")
    assert len(by_hour) >= 7
    for t, power in by_hour.items():
        assert power == pytest.approx(sum(float(energies[at]) for at in range(t, t + 3600, FIVE)) / 1e6, abs=1e-3)


async def test_a_site_without_devices_or_without_readings_has_empty_columns(
    readings: list[Reading], client: httpx.AsyncClient
) -> None:
    for site, window in ("North", {}), ("north", {"from": stamp(midnight(9)), "to": stamp(midnight(8))}):
        for bucket in "1m", "1h", "1d":
            answer = await series(client, site, bucket=bucket, **window)
            assert {len(column) for column in answer["columns"].values()} == {0}
            assert answer["peakKw"] == {"ac": None, "dc": None}


async def test_a_site_s_name_is_in_no_header(
    readings: list[Reading], connection: psycopg.Connection, client: httpx.AsyncClient
) -> None:
    site = 'Süd "Ost"; x=\N{SNOWMAN}'
    connection.execute("UPDATE meter SET site = %s", [site])
    query = {**WINDOW, "bucket": "1h", "site": site}
    answer = await client.get("/v1/analytics/fleet/series", params=query, headers={"Accept": "text/csv"})
    assert len(answer.text.splitlines()) > 9
    assert answer.headers["Content-Disposition"] == 'attachment; filename="fleet-1h.csv"'


async def test_too_many_buckets_of_devices_are_refused_before_they_are_read(
    readings: list[Reading], connection: psycopg.Connection, client: httpx.AsyncClient
) -> None:
    connection.execute("UPDATE meter SET site = 'north'")
    window = {"from": stamp(END - 60 * 24 * HOUR), "to": stamp(END)}
    # Days of this zone begin with no hour, so they are made from minutes.
    for query in {"bucket": "1m"}, {"bucket": "1d", "tz": "Asia/Kathmandu"}:
        refused = await client.get("/v1/analytics/fleet/series", params={**window, **query, "site": "north"})
        problem(refused, 400, "invalid_time_range")
        assert refused.json()["detail"].startswith("The 12 devices of that site have 1,0")
    columns = (await series(client, "north", **window, bucket="1h"))["columns"]
    assert len(columns["t"]) >= 9
    assert {*columns["acKw"], *columns["dcKw"]} == {None}  # as many minutes would have to be read
