"""The minutes on which a vehicle's efficiency rests, as runs."""

from datetime import timedelta

import httpx
import pytest

from tests.fixtures.sending import meter, minutes_ago, performance, problem, send, stamp, vehicle

PATH = "/v1/analytics/vehicles/{}/coverage"


async def test_the_runs_are_those_of_the_documented_timeline(client: httpx.AsyncClient) -> None:
    start = minutes_ago(60)

    def at(*minutes: int) -> list[str]:
        return [stamp(start + timedelta(minutes=minute, seconds=30)) for minute in minutes]

    readings = [{"meterId": "M7", "timestamp": time, "kwhConsumedAc": 0.2} for time in at(*range(12), 18)]
    for name, minutes in ("V7", (0, 1, 2, *range(4, 14))), ("V8", (8, 9, 10)):
        readings += [
            {"vehicleId": name, "meterId": "M7", "timestamp": time, "kwhDeliveredDc": 0.18} for time in at(*minutes)
        ]
    await send(client, readings)

    answer = (await client.get(PATH.format("V7"), params={"hours": 2})).json()
    first = start.timestamp()
    assert answer["columns"] == {
        "t": [first, first + 8 * 60, first + 11 * 60, first + 12 * 60],
        "minutes": [8, 3, 1, 2],
        "kind": ["paired", "shared", "paired", "unpaired"],
    }
    coverage = (await performance(client, "V7", hours=2))["coverage"]
    assert coverage == {"minutes": 14, "paired": 9, "shared": 3, "unpaired": 2}


async def test_a_gap_parts_two_runs(client: httpx.AsyncClient) -> None:
    await send(
        client,
        [one for ago in (30, 29, 10) for one in (meter(minutes_ago(ago)), vehicle(minutes_ago(ago), meterId="M1"))],
    )
    columns = (await client.get(PATH.format("V1"), params={"hours": 1})).json()["columns"]
    assert (columns["minutes"], columns["kind"]) == ([2, 1], ["paired", "paired"])


async def test_no_readings_are_no_runs(client: httpx.AsyncClient) -> None:
    answer = await client.get(PATH.format("nobody"))
    assert answer.status_code == httpx.codes.OK
    assert answer.json()["columns"] == {"t": [], "minutes": [], "kind": []}


@pytest.mark.parametrize(
    "query", ["hours=0", "hours=2161", "from=2026-01-01T00:00:00", "from=2026-02-01T00:00:00Z&hours=1"]
)
async def test_a_window_that_is_none_is_refused(query: str, client: httpx.AsyncClient) -> None:
    problem(await client.get(f"{PATH.format('V1')}?{query}"), 400, "invalid_time_range")
