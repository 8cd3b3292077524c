"""One vehicle's efficiency over HTTP: window, coverage, verdict, and the evidence for it."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.fixtures.sending import Reading, map_vehicle, meter, minutes_ago, performance, problem, send, stamp, vehicle

pytestmark = pytest.mark.asyncio(loop_scope="module")

MINUTE = timedelta(minutes=1)
COVERAGE = ("minutes", "paired", "shared", "unpaired")


def coverage(answer: dict[str, Any]) -> tuple[int, ...]:
    return tuple(answer["coverage"][name] for name in COVERAGE)


def charge(
    name: str, minutes: int, *, ac: float = 0.5, dc: float = 0.45, start: datetime | None = None, **more: Any
) -> list[Reading]:
    """Returns readings each minute of a vehicle and a meter of one name; the vehicle's readings name the meter.

    The first ones carry the energy of the minute before.
    """
    first = start or minutes_ago(minutes + 30)
    instants = [first + n * MINUTE for n in range(minutes)]
    return [meter(at, ac, meter_id=name) for at in instants] + [
        vehicle(at, dc, vehicle_id=name, meterId=name, **more) for at in instants
    ]


async def test_the_answer_has_all_its_members(shared_client: httpx.AsyncClient, engine: str) -> None:
    await send(shared_client, charge("members", 10, soc=50, batteryTemp=20))
    before = datetime.now(UTC)
    answer = await performance(shared_client, "members")
    start, end = (datetime.fromisoformat(answer.pop(name)) for name in ("from", "to"))
    assert before + timedelta(minutes=5) <= end <= datetime.now(UTC) + timedelta(minutes=5)
    assert end - start == timedelta(hours=24)
    as_of, kept_from = answer.pop("asOf"), datetime.fromisoformat(answer.pop("keptFrom"))
    assert timedelta(days=29) < before - kept_from < timedelta(days=181)
    if engine == "plain":
        assert before <= datetime.fromisoformat(as_of) <= datetime.now(UTC)
    assert answer == {
        "vehicleId": "members",
        "timeWindowHours": 24,
        "totalAcConsumption": 5,
        "totalDcDelivery": 4.5,
        "pairedDcDelivery": 4.5,
        "efficiencyRatio": 0.9,
        "uncertainty": 0,
        "avgSoc": 50,
        "avgBatteryTemp": 20,
        "dataPoints": 10,
        "energyLossKwh": 0.5,
        "lossCost": None,
        "currency": None,
        "coverage": {"minutes": 10, "paired": 10, "shared": 0, "unpaired": 0, "doubtful": 0},
        "status": "ok",
        "alert": None,
    }


async def test_the_window_takes_the_readings_and_the_time_of_the_minutes_that_it_touches(
    shared_client: httpx.AsyncClient,
) -> None:
    first = minutes_ago(100)
    await send(shared_client, charge("window", 10, start=first))
    for start, end, readings, minutes in (
        (first - MINUTE, first + 10 * MINUTE, 10, 10),
        (first, first + 10 * MINUTE, 10, 9),
        (first + MINUTE, first + 10 * MINUTE, 9, 8),
        (first + timedelta(seconds=59), first + 10 * MINUTE, 10, 9),
        (first, first + 9 * MINUTE, 9, 9),
        (first, first + 9 * MINUTE + timedelta(microseconds=1), 10, 9),
        (first + 3 * MINUTE, first + 3 * MINUTE + timedelta(seconds=1), 1, 1),
    ):
        answer = await performance(shared_client, "window", **{"from": stamp(start), "to": stamp(end)})
        assert (answer["dataPoints"], answer["coverage"]["minutes"]) == (readings, minutes)
        assert (answer["totalAcConsumption"], answer["efficiencyRatio"]) == (minutes * 0.5, 0.9)
        assert (datetime.fromisoformat(answer["from"]), datetime.fromisoformat(answer["to"])) == (start, end)
        assert answer["timeWindowHours"] == pytest.approx((end - start) / timedelta(hours=1))
    assert (await performance(shared_client, "window", hours=2))["timeWindowHours"] == 2
    assert (await performance(shared_client, "window", hours=2160))["dataPoints"] == 10
    until = await performance(shared_client, "window", hours=1, to=stamp(first + 5 * MINUTE))
    assert (until["dataPoints"], until["timeWindowHours"]) == (5, 1)
    elsewhere = (first + 5 * MINUTE).astimezone(timezone(timedelta(hours=-7))).isoformat()
    assert (await performance(shared_client, "window", to=elsewhere))["dataPoints"] == 5


async def test_no_readings_in_the_window_is_a_404_with_its_length(shared_client: httpx.AsyncClient) -> None:
    await send(shared_client, charge("quiet", 5, start=minutes_ago(200)))
    await map_vehicle(shared_client, "silent", "quiet")
    for vehicle_id, query, hours in (
        ("unknown", {}, "24"),
        ("silent", {}, "24"),
        ("quiet", {"hours": 1}, "1"),
        ("quiet", {"from": stamp(minutes_ago(90)), "to": stamp(minutes_ago(0))}, "1.5"),
    ):
        answer = await shared_client.get(f"/v1/analytics/performance/{vehicle_id}", params=query)
        refused = problem(answer, 404, "no_charging_data")
        assert refused["detail"] == f"No charging data found in last {hours} hours"
        assert refused["vehicleId"] == vehicle_id


async def test_wrong_parameters_are_a_400(shared_client: httpx.AsyncClient) -> None:
    noon, later = "2026-05-01T12:00:00Z", "2026-05-01T13:00:00Z"
    for query, code in (
        ({"hours": "abc"}, "invalid_parameter"),
        ({"hours": "1.5"}, "invalid_parameter"),
        ({"hours": "0"}, "invalid_time_range"),
        ({"hours": "-1"}, "invalid_time_range"),
        ({"hours": "2161"}, "invalid_time_range"),
        ({"hours": "9" * 30}, "invalid_time_range"),
        ({"from": "2026-05-01T12:00:00"}, "invalid_time_range"),
        ({"to": "2026-05-01T12:00:00"}, "invalid_time_range"),
        ({"from": "yesterday"}, "invalid_parameter"),
        ({"from": later, "to": noon}, "invalid_time_range"),
        ({"from": noon, "to": noon}, "invalid_time_range"),
        ({"from": "9999-12-31T23:59:59-14:00"}, "invalid_time_range"),
        ({"to": "0001-01-01T00:00:00+14:00"}, "invalid_time_range"),
        ({"from": "0001-01-01T00:00:00Z", "to": noon}, "invalid_time_range"),
        ({"from": noon, "hours": "24"}, "invalid_time_range"),
    ):
        answer = await shared_client.get("/v1/analytics/performance/V1", params=query)
        assert problem(answer, 400, answer.json()["code"])["code"] == code, query


async def test_odd_ids_in_the_path_are_unknown_vehicles(shared_client: httpx.AsyncClient) -> None:
    for vehicle_id in ("\u20ac", "a b", "x" * 10_000, "' OR 1=1 --", "%", "..", "\U0001f600", "{}", "\n"):
        answer = await shared_client.get(f"/v1/analytics/performance/{quote(vehicle_id, safe='')}")
        assert answer.status_code == httpx.codes.NOT_FOUND, (vehicle_id, answer.text)
        problem(answer, 404, answer.json()["code"])
    problem(await shared_client.get("/v1/analytics/performance/%FF%FE"), 404, "no_charging_data")
    problem(await shared_client.get("/v1/analytics/performance/a%00b"), 400, "invalid_parameter")


async def test_an_id_with_every_kind_of_character_is_found(shared_client: httpx.AsyncClient) -> None:
    name = "Az09._:-" * 8
    await send(shared_client, charge(name, 2))
    assert (await performance(shared_client, name))["vehicleId"] == name


async def test_averages_are_over_the_readings_that_have_a_value(shared_client: httpx.AsyncClient) -> None:
    at = minutes_ago(20)
    await send(
        shared_client,
        [
            vehicle(at, 0.1, vehicle_id="averages", soc=10, batteryTemp=20),
            vehicle(at + timedelta(seconds=1), 0.1, vehicle_id="averages", soc=20),
            vehicle(at + MINUTE, 0.1, vehicle_id="averages", soc=60.5),
            vehicle(at + 2 * MINUTE, 0.1, vehicle_id="averages"),
        ],
    )
    answer = await performance(shared_client, "averages")
    assert answer["avgSoc"] == pytest.approx(90.5 / 3, rel=1e-12)
    assert (answer["avgBatteryTemp"], answer["dataPoints"], answer["totalDcDelivery"]) == (20, 4, 0.4)
    await send(shared_client, vehicle(at, vehicle_id="no-averages"))
    bare = await performance(shared_client, "no-averages")
    assert (bare["avgSoc"], bare["avgBatteryTemp"]) == (None, None)


async def test_a_vehicle_without_a_meter_has_no_ratio(shared_client: httpx.AsyncClient) -> None:
    first = minutes_ago(30)
    await send(shared_client, [vehicle(first + n * MINUTE, vehicle_id="meterless") for n in range(10)])
    answer = await performance(shared_client, "meterless")
    assert (answer["status"], answer["alert"], answer["efficiencyRatio"]) == ("no_meter", None, None)
    assert (answer["totalAcConsumption"], answer["totalDcDelivery"], answer["energyLossKwh"]) == (0, 4.5, 0)
    assert coverage(answer) == (10, 0, 0, 10)


@pytest.mark.parametrize(
    ("dc", "minutes", "status", "sentence"),
    [
        (0.45, 10, "ok", None),
        (0.425, 10, "ok", None),
        (0.424, 10, "low_efficiency", "Efficiency 84.8 % is below 85 %: 0.76 kWh of 5.00 kWh AC lost"),
        (0.51, 10, "ok", None),
        (
            0.52,
            10,
            "impossible",
            "Efficiency 104.0 % is above 102 %: 5.20 kWh DC cannot come from 5.00 kWh AC",
        ),
        (0.1, 1, "low_efficiency", "Efficiency 20.0 % is below 85 %: 0.40 kWh of 0.50 kWh AC lost"),
    ],
)
async def test_an_alert_is_a_sentence_exactly_for_low_and_impossible(
    dc: float, minutes: int, status: str, sentence: str | None, shared_client: httpx.AsyncClient
) -> None:
    name = f"status-{dc}-{minutes}"
    await send(shared_client, charge(name, minutes, dc=dc))
    answer = await performance(shared_client, name)
    assert (answer["status"], answer["alert"]) == (status, sentence)
    assert answer["efficiencyRatio"] == pytest.approx(dc / 0.5, rel=1e-12)


async def test_little_energy_or_little_of_it_paired_is_insufficient(shared_client: httpx.AsyncClient) -> None:
    await send(shared_client, charge("little", 9, ac=0.05, dc=0.01))
    first = minutes_ago(90)
    alone = [vehicle(first + n * MINUTE, vehicle_id="few", meterId="few") for n in range(12, 30)]
    await send(shared_client, [*charge("few", 10, start=first), *alone])
    for name, ratio, minutes in (("little", 0.2, (9, 9, 0, 0)), ("few", 0.9, (30, 10, 0, 20))):
        answer = await performance(shared_client, name)
        assert (answer["status"], answer["alert"]) == ("insufficient_data", None)
        assert answer["efficiencyRatio"] == pytest.approx(ratio, rel=1e-12)
        assert coverage(answer) == minutes


async def test_a_meter_without_energy_gives_no_ratio(shared_client: httpx.AsyncClient) -> None:
    await send(shared_client, charge("zero", 10, ac=0))
    answer = await performance(shared_client, "zero")
    assert (answer["efficiencyRatio"], answer["status"], answer["energyLossKwh"]) == (None, "insufficient_data", -4.5)


async def test_minutes_shared_with_another_vehicle_leave_the_ratio(shared_client: httpx.AsyncClient) -> None:
    first = minutes_ago(60)
    await send(shared_client, charge("host", 20, start=first))
    by_reading = [vehicle(first + n * MINUTE, 0.3, vehicle_id="guest", meterId="host") for n in range(4)]
    await map_vehicle(shared_client, "mapped-guest", "host")
    by_mapping = [vehicle(first + n * MINUTE, 0.3, vehicle_id="mapped-guest") for n in range(10, 13)]
    await send(shared_client, by_reading + by_mapping)
    host = await performance(shared_client, "host")
    assert coverage(host) == (20, 13, 7, 0)
    assert (host["totalAcConsumption"], host["totalDcDelivery"]) == (6.5, 9)
    assert host["efficiencyRatio"] == pytest.approx(0.9, rel=1e-12)
    guest = await performance(shared_client, "guest")
    assert (coverage(guest), guest["efficiencyRatio"]) == ((4, 0, 4, 0), None)
    assert guest["status"] == "insufficient_data"


async def test_reports_each_two_minutes_cover_the_minutes_between(shared_client: httpx.AsyncClient) -> None:
    first = minutes_ago(90)
    await send(shared_client, [meter(first + n * MINUTE, 0.5, meter_id="slow") for n in range(41)])
    instants = [first + timedelta(seconds=120 * n + 30) for n in range(21)]
    await send(shared_client, [vehicle(at, 0.9, vehicle_id="slow", meterId="slow") for at in instants])
    answer = await performance(shared_client, "slow")
    # The meter's readings begin 30 seconds after the energy of the vehicle's first, and end 30 seconds sooner.
    assert coverage(answer) == (42, 41, 0, 1)
    assert (answer["totalAcConsumption"], answer["pairedDcDelivery"], answer["dataPoints"]) == (20.5, 18.45, 21)
    assert (answer["totalDcDelivery"], answer["efficiencyRatio"]) == (18.9, 0.9)


@pytest.mark.parametrize(
    ("gap", "carried", "minutes"),
    [(5, 1, (15, 15, 0, 0)), (6, 1, (16, 10, 0, 6)), (6, 6, (16, 16, 0, 0))],
    ids=["no silence", "lost", "carried on"],
)
async def test_a_silence_of_more_than_five_minutes_is_paired_where_nothing_was_lost_in_it(
    shared_client: httpx.AsyncClient, gap: int, carried: int, minutes: tuple[int, ...]
) -> None:
    first, name = minutes_ago(90), f"pause-{gap}-{carried}"
    await send(shared_client, [meter(first + n * MINUTE, 0.5, meter_id=name) for n in range(20)])
    seen = [vehicle(first + n * MINUTE, vehicle_id=name, meterId=name) for n in range(10)]
    ends = vehicle(first + (9 + gap) * MINUTE, 0.45 * carried, vehicle_id=name, meterId=name)
    await send(shared_client, [*seen, ends])
    answer = await performance(shared_client, name)
    assert coverage(answer) == minutes
    if gap > 5:
        assert answer["efficiencyRatio"] == pytest.approx(0.9, rel=1e-6)


async def test_a_change_of_mapping_moves_the_vehicle_to_the_other_meter(shared_client: httpx.AsyncClient) -> None:
    first = minutes_ago(60)
    change = first + 10 * MINUTE
    await map_vehicle(shared_client, "moves", "from-here")
    await map_vehicle(shared_client, "moves", "to-there", validFrom=stamp(change))
    instants = [first + n * MINUTE for n in range(20)]
    await send(shared_client, [meter(at, 0.5, meter_id="from-here") for at in instants])
    await send(shared_client, [meter(at, 1.0, meter_id="to-there") for at in instants])
    await send(shared_client, [vehicle(at, 0.45, vehicle_id="moves") for at in instants])
    answer = await performance(shared_client, "moves")
    assert coverage(answer) == (20, 20, 0, 0)
    # The reading at the change carries the energy of the minute before it.
    assert (answer["totalAcConsumption"], answer["totalDcDelivery"]) == (11 * 0.5 + 9 * 1.0, 9)
    only_first = await performance(shared_client, "moves", **{"from": stamp(first), "to": stamp(change)})
    assert (only_first["totalAcConsumption"], only_first["efficiencyRatio"]) == (5, 0.9)


async def test_the_meter_that_a_reading_names_goes_before_the_mapped_one(shared_client: httpx.AsyncClient) -> None:
    await map_vehicle(shared_client, "names", "elsewhere")
    first = minutes_ago(40)
    await send(shared_client, charge("names", 10, start=first))
    await send(shared_client, [meter(first + n * MINUTE, 2, meter_id="elsewhere") for n in range(10)])
    answer = await performance(shared_client, "names")
    assert (answer["totalAcConsumption"], coverage(answer)) == (5, (10, 10, 0, 0))
