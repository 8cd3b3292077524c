"""Sites are labels of devices, by which states, rankings, alerts and lists can be asked for."""

from pathlib import Path
from typing import Any

import httpx

from tests.fixtures.alerts import judge_all
from tests.fixtures.commands import command
from tests.fixtures.readings import midnight, store, vehicle_reading
from tests.fixtures.sending import meter, minutes_ago, problem, send, vehicle
from tests.integration.test_alerts import HOUR, MINUTE, session

DAY = midnight(2)


def device(url: str, *arguments: str) -> str:
    done = command("device", *arguments, DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(url: str, *arguments: str) -> str:
    done = command("device", *arguments, DATABASE_URL=url)
    assert done.returncode != 0
    return done.stderr


async def ids(client: httpx.AsyncClient, path: str, member: str, **query: Any) -> list[str]:
    """Returns the ids in an answer."""
    answer = (await client.get(f"/v1/analytics/{path}", params=query)).json()
    listed = answer if isinstance(answer, list) else answer.get("ranking", answer.get("alerts"))
    return [one[member] for one in listed]


async def test_states_and_lists_are_those_of_a_site(database_url: str, client: httpx.AsyncClient) -> None:
    await send(
        client, [meter(minutes_ago(1), meter_id=name) for name in ("M1", "M2", "M3")] + [vehicle(minutes_ago(1))]
    )
    label = ("label", "M1", "Depot Süd 2", "--stream", "meter")
    assert device(database_url, *label) == "The meter M1 is at Depot Süd 2 now.\n"
    device(database_url, "label", "M3", "Depot Süd 2", "--stream", "meter")
    device(database_url, "label", "V1", "elsewhere", "--stream", "vehicle")

    assert await ids(client, "meters/states", "meterId", site="Depot Süd 2") == ["M1", "M3"]
    assert await ids(client, "meters/states", "site") == ["Depot Süd 2", None, "Depot Süd 2"]
    assert await ids(client, "vehicles/states", "vehicleId", site="Depot Süd 2") == []
    assert await ids(client, "vehicles/states", "site", site="elsewhere") == ["elsewhere"]
    assert device(database_url, "list", "--site", "elsewhere").splitlines()[1:] == [
        device(database_url, "list", "--stream", "vehicle").splitlines()[1],
        "1 device.",
    ]

    page = await client.get("/v1/analytics/meters/states", params={"site": "Depot Süd 2", "limit": 1})
    following = page.headers["Link"].partition(">")[0].removeprefix("<")
    assert [one["meterId"] for one in (await client.get(following)).json()] == ["M3"]

    assert device(database_url, "label", "M1", "--stream", "meter", "--undo") == "The meter M1 is at no site now.\n"
    assert await ids(client, "meters/states", "meterId", site="Depot Süd 2") == ["M3"]


async def test_the_ranking_and_alerts_are_those_of_a_site(database_url: str, client: httpx.AsyncClient) -> None:
    for name in "north", "south":
        await store(database_url, *session(DAY + 10 * HOUR, 120, name, efficiency=0.7, meter_id=f"at-{name}"))
    await judge_all(database_url)
    hours = {"from": DAY.isoformat(), "to": (DAY + 24 * HOUR).isoformat()}
    device(database_url, "label", "north", "N", "--stream", "vehicle")
    device(database_url, "label", "at-south", "S", "--stream", "meter")

    assert await ids(client, "efficiency", "id", **hours, site="N") == ["north"]
    assert await ids(client, "efficiency", "id", **hours, site="S") == []
    assert await ids(client, "efficiency", "id", **hours, site="S", by="meter") == ["at-south"]
    ranking = (await client.get("/v1/analytics/efficiency", params={**hours, "site": "N"})).json()
    assert ranking["totals"]["acKwh"] == ranking["ranking"][0]["acKwh"]

    # An alert of a vehicle also concerns its meter.
    assert await ids(client, "alerts", "deviceId", site="N") == ["north"]
    assert await ids(client, "alerts", "deviceId", site="S") == ["south"]
    assert await ids(client, "alerts", "deviceId", site="nowhere") == []
    listed = command("alerts", "list", "--site", "S", DATABASE_URL=database_url).stdout
    assert listed.splitlines()[-1].startswith("1 alert;")


async def test_sessions_of_a_site_are_those_of_its_vehicles_and_those_at_its_meters(
    database_url: str, client: httpx.AsyncClient
) -> None:
    for number, (name, meter_id) in enumerate([("one", "here"), ("one", "there"), ("two", "here"), ("two", "there")]):
        await store(database_url, *session(DAY + 5 * number * HOUR, 60, name, efficiency=0.9, meter_id=meter_id))
    taken = (vehicle_reading(DAY + minute * MINUTE, vehicle_id="lost", meter_id=None) for minute in range(60))
    await store(database_url, *taken)
    await judge_all(database_url)
    device(database_url, "label", "one", "Depot", "--stream", "vehicle")
    device(database_url, "label", "here", "Depot", "--stream", "meter")
    device(database_url, "label", "lost", "elsewhere", "--stream", "vehicle")

    async def listed(**query: str) -> list[tuple[str, str | None]]:
        answer = (await client.get("/v1/analytics/sessions", params=query)).json()
        return [(one["vehicleId"], one["meterId"]) for one in answer["sessions"]]

    assert await listed(site="Depot") == [("two", "here"), ("one", "there"), ("one", "here")]
    assert await listed(site="Depot", vehicle="two") == [("two", "here")]
    assert await listed(site="elsewhere") == [("lost", None)]
    assert await listed(site="depot") == []
    page = await client.get("/v1/analytics/sessions", params={"site": "Depot", "limit": 2})
    (last,) = (await client.get(page.links["next"]["url"])).json()["sessions"]
    assert (last["vehicleId"], last["meterId"]) == ("one", "here")
    printed = command("sessions", "--site", "Depot", DATABASE_URL=database_url).stdout
    assert printed.splitlines()[-1].startswith("3 sessions;")


async def test_many_devices_are_labelled_from_a_file_or_none_of_them(
    database_url: str, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    await send(client, [meter(minutes_ago(1)), vehicle(minutes_ago(1))])
    file = tmp_path / "sites.csv"

    def write(*lines: str) -> str:
        file.write_text("\ufeff" + "".join(f"{line}\r\n" for line in lines), encoding="utf-8")
        return str(file)

    good = write("site,stream,device", '"Depot, North",meter,M1', "Depot,vehicle,V1")
    assert device(database_url, "labels", good) == "2 devices labelled.\n"
    assert await ids(client, "meters/states", "site") == ["Depot, North"]
    device(database_url, "labels", write("stream,device,site", "meter,M1,"))
    assert await ids(client, "meters/states", "site") == [None]

    for lines, sentence in (
        (["stream,device,site", "vehicle,V1,new", "meter,M9,new"], "There is no meter M9."),
        (["stream,device,site", "vehicle,V1,new", "car,V1,new"], "Line 3 must have meter or vehicle"),
        (["stream,device,site", "vehicle,V1"], "Line 2 must have meter or vehicle"),
        (["stream,device,site", "vehicle,V1,=1+1"], "vehicle V1: A site has 1 to 64 characters"),
        (["device,site", "V1,new"], "The first line must name the columns stream,device,site."),
        ([], "The first line must name the columns"),
    ):
        assert sentence in refused(database_url, "labels", write(*lines))
        assert await ids(client, "vehicles/states", "site") == ["Depot"]
    file.write_bytes(b"stream,device,site\nmeter,M1,\xff\n")
    assert "is not UTF-8" in refused(database_url, "labels", str(file))


async def test_what_is_no_site_is_refused(database_url: str, client: httpx.AsyncClient) -> None:
    await send(client, meter(minutes_ago(1)))
    for site in "", " a", "a ", "-a", "a\tb", "x" * 65:
        assert "A site has 1 to 64 characters" in refused(database_url, "label", "M1", "--stream", "meter", "--", site)
    assert "Give either a site or --undo." in refused(database_url, "label", "M1", "--stream", "meter")
    assert "There is no meter M2." in refused(database_url, "label", "M2", "a", "--stream", "meter")


async def test_a_device_s_series_takes_no_site(client: httpx.AsyncClient) -> None:
    await send(client, meter(minutes_ago(1)))
    answer = await client.get("/v1/analytics/meters/M1/series?site=Depot")
    problem(answer, 400, "invalid_parameter")
    assert answer.json()["detail"].startswith("site: ")
