"""The latest state of every device."""

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from tests.fixtures.sending import meter, minutes_ago, problem, send, vehicle

VEHICLES, METERS = "/v1/analytics/vehicles/states", "/v1/analytics/meters/states"


async def states(client: httpx.AsyncClient, path: str, **query: str | int) -> list[dict[str, Any]]:
    answer = await client.get(path, params=query)
    assert answer.status_code == httpx.codes.OK, answer.text
    listed: list[dict[str, Any]] = answer.json()
    return listed


async def walked(client: httpx.AsyncClient, path: str, limit: int) -> list[list[dict[str, Any]]]:
    """Returns the pages, by following the links."""
    pages = []
    url = f"{path}?limit={limit}"
    while url:
        answer = await client.get(url)
        pages.append(answer.json())
        url = answer.links.get("next", {}).get("url", "")
    return pages


async def test_a_new_database_has_none(client: httpx.AsyncClient) -> None:
    for path in VEHICLES, METERS:
        answer = await client.get(path, params={"limit": 5})
        assert (answer.json(), answer.headers.get("link")) == ([], None)
        assert await states(client, path) == []


async def test_the_newest_reading_counts_whenever_it_arrives(client: httpx.AsyncClient) -> None:
    newest, older = minutes_ago(2), minutes_ago(90)
    await send(client, [meter(newest, 0.5, voltage=230.12), vehicle(newest, 0.4, soc=80.72, batteryTemp=-1.5)])
    await send(client, [meter(older, 0.7, voltage=1), vehicle(older, 0.6, soc=1, batteryTemp=1)])
    (of_meter,) = await states(client, METERS)
    (of_vehicle,) = await states(client, VEHICLES)
    assert datetime.fromisoformat(of_meter.pop("lastUpdated")) == newest
    assert datetime.fromisoformat(of_vehicle.pop("lastUpdated")) == newest
    assert of_meter == {"meterId": "M1", "kwhConsumedAc": 0.5, "kwhRegisterAc": None, "voltage": 230.12, "site": None}
    sent = {"kwhDeliveredDc": 0.4, "kwhRegisterDc": None, "soc": 80.72, "batteryTemp": -1.5, "site": None}
    assert of_vehicle == {"vehicleId": "V1", **sent}

    await send(client, [meter(newest + timedelta(seconds=1)), vehicle(newest + timedelta(seconds=1))])
    (of_meter,) = await states(client, METERS)
    (of_vehicle,) = await states(client, VEHICLES)
    assert of_meter["voltage"] is None
    assert (of_vehicle["soc"], of_vehicle["batteryTemp"]) == (None, None)
    assert datetime.fromisoformat(of_meter["lastUpdated"]).tzinfo == UTC


async def test_pages_walked_to_the_end_are_the_whole_list(client: httpx.AsyncClient) -> None:
    at = minutes_ago(1)
    names = [f"{prefix}{n}" for prefix in ("a-", "A:", "z.", "Z_", "") for n in (1, 2, 10, 11, 21)]
    await send(client, [meter(at, meter_id=name) for name in names])
    await send(client, [vehicle(at, vehicle_id=name, meterId=name) for name in names])
    # A device that is only registered has no state.
    await client.post("/v1/ingestion/mapping", json={"vehicleId": "silent", "meterId": "silent"})
    for path, key in ((VEHICLES, "vehicleId"), (METERS, "meterId")):
        listed = await states(client, path)
        assert [state[key] for state in listed] == sorted(names)
        for limit in (1, 7, 24, 25, 26, 100_000):
            pages = await walked(client, path, limit)
            assert [state for page in pages for state in page] == listed
            assert all(len(page) == limit for page in pages[:-1])
        assert [state[key] for state in await states(client, path, after="Z_21")] == sorted(names)[15:]
        assert await states(client, path, after="zz") == []
        for query in {"limit": 0}, {"limit": -1}, {"limit": 100_001}, {"limit": "all"}, {"limit": 10**20}:
            problem(await client.get(path, params=query), 400, "invalid_parameter")
        for odd in ("%00", "%F0%9F%98%80", "x" * 10_000):
            assert (await client.get(f"{path}?after={odd}")).status_code < 500


async def test_states_are_the_same_as_csv_and_so_are_their_pages(client: httpx.AsyncClient) -> None:
    at = minutes_ago(1)
    await send(client, [meter(at, 0.000001, meter_id=name, voltage=230.12) for name in "ABC"])
    await send(client, [vehicle(at, vehicle_id=name, soc=soc) for name, soc in (("A", 80.72), ("B", 0), ("C", 100))])
    for path in VEHICLES, METERS:
        whole = await client.get(path, headers={"Accept": "text/csv"})
        page = await client.get(path, params={"limit": 2}, headers={"Accept": "text/csv"})
        assert whole.headers["content-type"].startswith("text/csv")
        assert whole.headers["vary"] == "Accept"
        rows = list(csv.DictReader(io.StringIO(whole.text)))
        assert [
            {name: "" if value is None else str(value) for name, value in state.items()}
            for state in await states(client, path)
        ] == rows
        assert list(csv.DictReader(io.StringIO(page.text))) == rows[:2]
        assert page.links["next"]["url"] == f"{path}?limit=2&after=B"
