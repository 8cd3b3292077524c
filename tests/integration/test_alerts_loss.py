"""The loss of an alert grows with what is judged, and the alerts with the largest loss come first."""

from typing import Any

import httpx
import psycopg
import pytest

from tests.fixtures.alerts import expect_all, judge_all
from tests.fixtures.readings import meter_reading, midnight, store
from tests.integration.test_alerts import HOUR, MINUTE, session

DAY = midnight(4)
ALERTS = "/v1/analytics/alerts"


async def alerts(client: httpx.AsyncClient, **only: Any) -> dict[tuple[str, str], Any]:
    """Returns the alerts by kind and device, in order."""
    listed = (await client.get(ALERTS, params=only)).json()["alerts"]
    return {(one["kind"], one["deviceId"]): one for one in listed}


async def ranked(client: httpx.AsyncClient, vehicle: str, start: Any, end: Any) -> Any:
    """Returns what the ranking says of the vehicle in these hours."""
    window = {"from": start.isoformat(), "to": end.isoformat()}
    answer = (await client.get("/v1/analytics/efficiency", params=window)).json()
    (found,) = (one for one in answer["ranking"] if one["id"] == vehicle)
    return found


async def test_the_current_numbers_are_those_of_the_judged_hours_since_the_opening(
    database_url: str, client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    opened = DAY + 11 * HOUR
    low = session(DAY + 10 * HOUR, 60, "V", efficiency=0.8)
    await store(database_url, *low)
    await judge_all(database_url)
    one = (await alerts(client))["low_efficiency", "V"]
    assert one["current"] == {"acKwh": 0, "dcKwh": 0, "lossKwh": 0, "lossCost": None, "efficiencyRatio": None}
    assert one["lossToDateKwh"] == pytest.approx(one["evidence"]["lossKwh"], abs=1e-6)

    evidence = one["evidence"]
    await store(database_url, *session(DAY + 30 * HOUR, 300, "V", efficiency=0.7))
    await judge_all(database_url)
    one = (await alerts(client))["low_efficiency", "V"]
    of_ranking = await ranked(client, "V", opened, DAY + 40 * HOUR)
    assert one["evidence"] == evidence
    members = "acKwh", "dcKwh", "lossKwh", "lossCost", "efficiencyRatio"
    assert one["current"] == {name: of_ranking[name] for name in members}
    assert one["current"]["efficiencyRatio"] == pytest.approx(0.7, abs=1e-4)
    to_date = await ranked(client, "V", opened - 24 * HOUR, DAY + 40 * HOUR)
    assert one["lossToDateKwh"] == to_date["lossKwh"]

    # A better charge ends the alert, which then counts no further energy.
    await store(database_url, *session(DAY + 60 * HOUR, 120, "V", efficiency=0.95))
    await judge_all(database_url)
    one = (await alerts(client))["low_efficiency", "V"]
    assert one["closedAt"] is not None
    assert one["lossToDateKwh"] == (await ranked(client, "V", opened - 24 * HOUR, DAY + 61 * HOUR))["lossKwh"]
    closed = one
    await store(database_url, *session(DAY + 64 * HOUR, 60, "V", efficiency=0.95))
    await judge_all(database_url)
    assert (await alerts(client))["low_efficiency", "V"] == closed


async def test_of_a_frozen_device_only_the_hours_count_in_which_it_was_frozen(
    database_url: str, client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    at = DAY + 10 * HOUR
    frozen = range(60, 180)
    await store(
        database_url,
        *session(at, 600, "meter", still=frozen),
        *session(at, 600, "vehicle", stuck_vehicle=frozen),
    )
    await judge_all(database_url)
    found = await alerts(client)
    for kind, column in ("frozen_meter", "frozen_meter_minutes"), ("frozen_vehicle", "frozen_vehicle_minutes"):
        one = found[kind, kind.removeprefix("frozen_")]
        hours = connection.execute(
            f"""
            SELECT sum(paired_ac_milliwh - paired_dc_milliwh) / 1e6,
                   sum(paired_ac_milliwh) FILTER (WHERE hour >= %(at)s) / 1e6
            FROM efficiency_hour JOIN {kind.removeprefix("frozen_")} AS device ON id = {kind.removeprefix("frozen_")}_id
            WHERE {column} > 0 AND external_id = %(name)s
            """.encode(),  # noqa: S608
            {"name": one["deviceId"], "at": one["openedAt"]},
        ).fetchone()
        assert hours is not None
        assert [one["lossToDateKwh"], one["current"]["acKwh"]] == [float(value or 0) for value in hours]
    assert found["frozen_meter", "meter"]["lossToDateKwh"] < -10


async def test_the_largest_loss_comes_first_on_every_page_even_while_alerts_come_and_go(
    database_url: str, client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    at = DAY + 10 * HOUR
    await store(
        database_url,
        *session(at, 120, "small", efficiency=0.8),
        *session(at, 120, "large", efficiency=0.5),
        *session(at, 120, "more", efficiency=1.3),
        *session(at, 60, "over", efficiency=0.2),
        *session(at + HOUR, 900, "over", efficiency=0.95),
        *(meter_reading(DAY + 90 * HOUR + n * MINUTE, meter_id=f"silent-{n}") for n in range(3)),
    )
    expect_all(connection)
    await judge_all(database_url)
    expected = [
        ("low_efficiency", "large"),
        ("impossible_efficiency", "more"),
        ("low_efficiency", "small"),
        ("no_data", "silent-2"),
    ]
    assert [*await alerts(client)][:4] == expected
    closed = [key for key, one in (await alerts(client)).items() if one["closedAt"]]
    assert closed == [("low_efficiency", "over")]
    assert [*await alerts(client)][-1] == closed[0]
    assert (await alerts(client))["no_data", "silent-2"]["lossToDateKwh"] is None

    whole = [one["id"] for one in (await client.get(ALERTS)).json()["alerts"]]
    for size in 1, 2, 3:
        path, seen = f"{ALERTS}?limit={size}", list[str]()
        while path:
            page = await client.get(path)
            seen += [one["id"] for one in page.json()["alerts"]]
            path = page.headers.get("Link", "").partition(">")[0].removeprefix("<")
        assert seen == whole

    page = await client.get(f"{ALERTS}?limit=2")
    following = page.headers["Link"].partition(">")[0].removeprefix("<")
    connection.execute("DELETE FROM alert WHERE kind = 'impossible_efficiency'")
    connection.execute(
        "UPDATE alert SET loss_milliwh = 2 * loss_milliwh FROM vehicle WHERE id = device_id AND external_id = 'large'"
    )
    assert (await client.get(following)).json()["alerts"][0]["deviceId"] == "small"
