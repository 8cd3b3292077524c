"""The mapping of vehicles to meters: its effects, and the reasons for refusing one."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.fixtures.sending import map_vehicle, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = "/v1/ingestion/mapping"
JSON = {"Content-Type": "application/json"}


async def mapped(client: httpx.AsyncClient, vehicle: str, meter: str, **times: str) -> dict[str, Any]:
    answer = await map_vehicle(client, vehicle, meter, **times)
    assert answer.status_code == httpx.codes.OK, answer.text
    stored: dict[str, Any] = answer.json()
    assert (stored["vehicleId"], stored["meterId"]) == (vehicle, meter)
    return stored


async def history(client: httpx.AsyncClient, vehicle: str) -> list[dict[str, Any]]:
    answer = await client.get(PATH, params={"vehicleId": vehicle})
    assert answer.status_code == httpx.codes.OK
    listed: list[dict[str, Any]] = answer.json()
    return listed


def day(number: int) -> str:
    return f"2026-01-{number:02d}T00:00:00Z"


async def months(client: httpx.AsyncClient, vehicle: str) -> list[tuple[str, Any, Any]]:
    return [(row["meterId"], row["validFrom"], row["validTo"]) for row in await history(client, vehicle)]


async def test_the_first_mapping_holds_from_the_beginning_of_time(shared_client: httpx.AsyncClient) -> None:
    stored = await mapped(shared_client, "first", "M1")
    assert stored == {"vehicleId": "first", "meterId": "M1", "validFrom": None, "validTo": None}
    assert await history(shared_client, "first") == [stored]


async def test_a_later_mapping_holds_from_now_and_ends_the_open_one(shared_client: httpx.AsyncClient) -> None:
    await mapped(shared_client, "later", "M1")
    before = datetime.now(UTC)
    stored = await mapped(shared_client, "later", "M2")
    assert before <= datetime.fromisoformat(stored["validFrom"]) <= datetime.now(UTC)
    assert stored["validTo"] is None
    assert await months(shared_client, "later") == [
        ("M1", None, stored["validFrom"]),
        ("M2", stored["validFrom"], None),
    ]


async def test_a_mapping_from_a_given_time_ends_the_open_one_there(shared_client: httpx.AsyncClient) -> None:
    await mapped(shared_client, "given", "M1", validFrom=day(1))
    await mapped(shared_client, "given", "M2", validFrom=day(5))
    in_another_zone = await mapped(shared_client, "given", "M1", validFrom="2026-01-09T05:30:00+05:30")
    assert datetime.fromisoformat(in_another_zone["validFrom"]) == datetime(2026, 1, 9, tzinfo=UTC)
    assert await months(shared_client, "given") == [
        ("M1", day(1), day(5)),
        ("M2", day(5), day(9)),
        ("M1", day(9), None),
    ]


async def test_repeating_the_open_mapping_changes_nothing(shared_client: httpx.AsyncClient) -> None:
    first = await mapped(shared_client, "repeat", "M1", validFrom=day(2))
    for times in ({}, {"validFrom": day(2)}, {"validFrom": day(3)}):
        assert await mapped(shared_client, "repeat", "M1", **times) == first
    assert await history(shared_client, "repeat") == [first]


async def test_any_other_overlap_is_a_409_and_changes_nothing(shared_client: httpx.AsyncClient) -> None:
    await mapped(shared_client, "overlap", "M1", validFrom=day(1), validTo=day(5))
    await mapped(shared_client, "overlap", "M2", validFrom=day(5))
    before = await history(shared_client, "overlap")
    overlaps: list[dict[str, str]] = [
        {"validFrom": day(1), "validTo": day(2)},
        {"validFrom": day(4)},
        {"validFrom": day(4), "validTo": day(6)},
        {"validFrom": day(5)},
        {"validTo": day(3), "validFrom": day(2)},
    ]
    for times in overlaps:
        refused = problem(await map_vehicle(shared_client, "overlap", "M3", **times), 409, "mapping_overlap")
        assert refused["title"] == "The vehicle is already mapped to a meter during part of that time."
    assert await history(shared_client, "overlap") == before


async def test_a_mapping_may_end_and_leave_a_gap(shared_client: httpx.AsyncClient) -> None:
    await mapped(shared_client, "ends", "M1", validTo=day(3))
    await mapped(shared_client, "ends", "M2", validFrom=day(5), validTo=day(6))
    await mapped(shared_client, "ends", "M3", validFrom=day(3), validTo=day(4))
    assert await months(shared_client, "ends") == [
        ("M1", None, day(3)),
        ("M3", day(3), day(4)),
        ("M2", day(5), day(6)),
    ]


async def test_a_mapping_that_ends_before_it_begins_is_a_400(shared_client: httpx.AsyncClient) -> None:
    await mapped(shared_client, "backwards", "M1")
    yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    for times in (
        {"validFrom": day(3), "validTo": day(3)},
        {"validFrom": day(3), "validTo": day(2)},
        {"validTo": yesterday},
    ):
        problem(await map_vehicle(shared_client, "backwards", "M2", **times), 400, "invalid_time_range")
    assert await months(shared_client, "backwards") == [("M1", None, None)]


async def test_vehicles_may_share_a_meter(shared_client: httpx.AsyncClient) -> None:
    for vehicle in ("share-1", "share-2"):
        await mapped(shared_client, vehicle, "shared")
        assert await months(shared_client, vehicle) == [("shared", None, None)]


async def test_an_unknown_vehicle_has_no_history(shared_client: httpx.AsyncClient) -> None:
    assert await history(shared_client, "unknown") == []
    assert await history(shared_client, "no id at all \u20ac") == []


async def test_a_query_for_no_id_is_a_400(shared_client: httpx.AsyncClient) -> None:
    for query in "", "?vehicle_id=V1", "?meter_id=M1", "?meterId=a%00b", "?vehicleId=a%00b":
        problem(await shared_client.get(PATH + query), 400, "invalid_parameter")


async def test_what_is_no_mapping_is_a_400(shared_client: httpx.AsyncClient) -> None:
    good = {"vehicleId": "wrong", "meterId": "M1"}
    for wrong in (
        {"vehicleId": "wrong"},
        {"meterId": "M1"},
        {"vehicleId": "a b", "meterId": "M1"},
        {"vehicleId": "", "meterId": "M1"},
        {"vehicleId": "wrong", "meterId": ".."},
        {"vehicleId": "wrong", "meterId": "x" * 65},
        {"vehicleId": "wrong\n", "meterId": "M1"},
        {"vehicleId": "wrong", "meterId": "M\u0661"},
        {"vehicleId": 1, "meterId": "M1"},
        {"vehicleId": None, "meterId": "M1"},
        good | {"validFrom": "2026-01-01T00:00:00"},
        good | {"validFrom": "yesterday"},
        good | {"validTo": 17},
        [],
        [good],
        "text",
        None,
    ):
        answer = await shared_client.post(PATH, content=json.dumps(wrong), headers=JSON)
        refused = problem(answer, 400, "invalid_parameter")
        assert refused["detail"], wrong
    assert await history(shared_client, "wrong") == []


async def test_bytes_that_are_no_json_are_a_400(shared_client: httpx.AsyncClient) -> None:
    deep = b'{"other": ' + b"[" * 60_000
    for body in (b"", b"{", b'{"vehicleId": "wrong", "meterId": "\xff"}', deep, b"\x00", b"vehicleId=V1"):
        answer = await shared_client.post(PATH, content=body, headers=JSON)
        problem(answer, 400, "malformed_body")


async def test_other_content_types_and_large_bodies_are_refused(shared_client: httpx.AsyncClient) -> None:
    for media_type in "text/plain", "application/x-www-form-urlencoded", "application/msgpack":
        answer = await shared_client.post(PATH, content=b"{}", headers={"Content-Type": media_type})
        problem(answer, 415, "unsupported_media_type")
    problem(await shared_client.post(PATH, content=b" " * 20_000_000, headers=JSON), 413, "body_too_large")


async def test_times_at_the_ends_of_the_calendar_are_a_400(shared_client: httpx.AsyncClient) -> None:
    for time in "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00Z":
        for name in "validFrom", "validTo":
            refused = await map_vehicle(shared_client, "calendar", "M1", **{name: time})
            problem(refused, 400, "invalid_time_range")
    assert await history(shared_client, "calendar") == []


async def test_the_same_mapping_from_many_clients_is_stored_once(shared_client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(map_vehicle(shared_client, "race", "M-race") for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(await history(shared_client, "race")) == 1


async def test_other_mappings_from_many_clients_follow_each_other(shared_client: httpx.AsyncClient) -> None:
    await asyncio.gather(*(map_vehicle(shared_client, "many", f"M-{n}") for n in range(8)))
    rows = await months(shared_client, "many")
    assert rows[0][1] is None
    assert rows[-1][2] is None
    assert [end for _, _, end in rows[:-1]] == [start for _, start, _ in rows[1:]]


async def test_the_history_is_asked_for_by_vehicle_by_meter_or_both(client: httpx.AsyncClient) -> None:
    for vehicle, meter in ("V1", "M1"), ("V2", "M1"), ("V2", "M2"):
        await map_vehicle(client, vehicle, meter)
    for query, expected in (
        ({"meterId": "M1"}, [("V1", "M1"), ("V2", "M1")]),
        ({"vehicleId": "V2"}, [("V2", "M1"), ("V2", "M2")]),
        ({"vehicleId": "V2", "meterId": "M1"}, [("V2", "M1")]),
        ({"vehicleId": "V1", "meterId": "M2"}, []),
        ({"meterId": "M9"}, []),
    ):
        answer = await client.get(PATH, params=query)
        assert sorted((one["vehicleId"], one["meterId"]) for one in answer.json()) == expected
