"""The stretches of time on which a vehicle's efficiency rests."""

from datetime import timedelta

import httpx
import pytest

from tests.fixtures.sending import meter, minutes_ago, performance, problem, send, stamp, vehicle

PATH = "/v1/analytics/vehicles/{}/coverage"


async def test_the_stretches_are_those_of_the_documented_timeline(client: httpx.AsyncClient) -> None:
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
    first = start.timestamp() - 30
    assert answer["columns"] == {
        "t": [first, first + 8 * 60, first + 11 * 60, first + 12 * 60],
        "seconds": [8 * 60, 3 * 60, 60, 2 * 60],
        "kind": ["paired", "shared", "paired", "unpaired"],
        "doubtful": [True, False, True, False],
    }
    coverage = (await performance(client, "V7", hours=2))["coverage"]
    assert coverage == {"minutes": 14, "paired": 9, "shared": 3, "unpaired": 2, "doubtful": 9}


async def test_a_silence_parts_two_stretches(client: httpx.AsyncClient) -> None:
    for ago, dc in (30, 0.45), (29, 0.45), (28, 0.45), (10, 0.1):
        await send(client, [meter(minutes_ago(ago)), vehicle(minutes_ago(ago), dc, meterId="M1")])
    columns = (await client.get(PATH.format("V1"), params={"hours": 1})).json()["columns"]
    assert (columns["seconds"], columns["kind"]) == ([180, 1080], ["paired", "unpaired"])


async def test_no_readings_are_no_stretches(client: httpx.AsyncClient) -> None:
    answer = await client.get(PATH.format("nobody"))
    assert answer.status_code == httpx.codes.OK
    assert answer.json()["columns"] == {"t": [], "seconds": [], "kind": [], "doubtful": []}


@pytest.mark.parametrize(
    "query", ["hours=0", "hours=2161", "from=2026-01-01T00:00:00", "from=2026-02-01T00:00:00Z&hours=1"]
)
async def test_a_window_that_is_none_is_refused(query: str, client: httpx.AsyncClient) -> None:
    problem(await client.get(f"{PATH.format('V1')}?{query}"), 400, "invalid_time_range")
