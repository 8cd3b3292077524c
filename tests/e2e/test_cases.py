"""Cases from the field, which enter by each door: over HTTP, over MQTT and by import. Each has the right answer.

The inputs in tests/fixtures/cases have the shapes that gateways, chargers and vehicles really send. Their times are
moved: the last reading is an hour and a minute old, so that each of their hours is over.
"""

import asyncio
import csv
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from app.settings import Settings
from tests.fixtures.alerts import judge_all
from tests.fixtures.broker import Broker, await_published, publish, publishing
from tests.fixtures.commands import command
from tests.fixtures.sending import Reading, minutes_ago, performance, stamp
from tests.fixtures.service import service
from tests.fixtures.waiting import eventually_here
from tests.integration.test_mqtt import consuming_here, count

CASES = Path(__file__).parents[1] / "fixtures" / "cases"
MINUTE = timedelta(minutes=1)
NDJSON = "application/x-ndjson"
#: Takes readings in, and returns what the door said of them.
Enter = Callable[[list[Reading]], Awaitable[str]]
Connection = psycopg.Connection[tuple[Any, ...]]


def moved(*files: str) -> list[Reading]:
    """Returns the readings of the cases, moved by whole minutes; epochs stay in their unit, in CSV as text."""
    readings: list[Reading] = []
    for file in files:
        with (CASES / file).open(encoding="utf-8") as lines:
            readings += csv.DictReader(lines) if file.endswith(".csv") else map(json.loads, lines)
    by = (minutes_ago(61) - max(map(instant, readings))) // MINUTE * MINUTE
    for reading in readings:
        at, given = instant(reading) + by, reading["timestamp"]
        if unit := per_second(given):
            reading["timestamp"] = type(given)(round(at.timestamp()) * unit)
        else:
            reading["timestamp"] = stamp(at)
    return readings


def instant(reading: Reading) -> datetime:
    given = reading["timestamp"]
    if unit := per_second(given):
        return datetime.fromtimestamp(int(given) // unit, UTC)
    return datetime.fromisoformat(given)


def per_second(timestamp: Any) -> int:
    """Returns how many of an epoch's unit are a second, 0 for other timestamps."""
    return 10 ** (len(str(timestamp)) - 10) if str(timestamp).isdecimal() else 0


def as_lines(readings: list[Reading]) -> bytes:
    return "\n".join(map(json.dumps, readings)).encode()


@pytest.fixture(params=["http", "mqtt", "import"])
def enter(request: pytest.FixtureRequest, database_url: str, connection: Connection, tmp_path: Path) -> Enter:
    async def over_http(readings: list[Reading]) -> str:
        async with service(Settings(database_url=database_url)) as client:
            answer = await client.post("/v1/telemetry", content=as_lines(readings), headers={"Content-Type": NDJSON})
            assert answer.status_code == httpx.codes.OK, answer.text
            return answer.text

    async def over_mqtt(readings: list[Reading]) -> str:
        broker: Broker = request.getfixturevalue("broker")

        def publish_streams() -> None:
            with publishing(broker) as publisher:
                for stream in "meter", "vehicle":
                    if some := [one for one in readings if ("vehicleId" in one) == (stream == "vehicle")]:
                        sent = publish(publisher, f"telemetry/{stream}", as_lines(some), NDJSON)
                        await_published([sent])

        def have_arrived() -> bool:
            tables = "meter_reading", "vehicle_reading", "quarantine"
            return sum(count(connection, table) for table in tables) == len(readings)

        async with consuming_here(database_url, mqtt_url=broker.url):
            await asyncio.to_thread(publish_streams)
            await eventually_here(have_arrived)
        return ""

    async def by_import(readings: list[Reading]) -> str:
        file = tmp_path / "case.ndjson"
        file.write_bytes(as_lines(readings))
        return (await asyncio.to_thread(command, "import", str(file), DATABASE_URL=database_url)).stdout

    return {"http": over_http, "mqtt": over_mqtt, "import": by_import}[request.param]


@pytest.fixture
async def judged(database_url: str) -> AsyncIterator[Callable[[], Awaitable[httpx.AsyncClient]]]:
    """Yields a function that judges all hours, and returns a client of the service."""
    async with service(Settings(database_url=database_url)) as client:

        async def judge() -> httpx.AsyncClient:
            await judge_all(database_url)
            return client

        yield judge


Judged = Callable[[], Awaitable[httpx.AsyncClient]]


async def implausible(client: httpx.AsyncClient) -> dict[str, tuple[str, int]]:
    """Returns what the energy of each device looks like, and in how many readings; no other alert may be there."""
    alerts = (await client.get("/v1/analytics/alerts")).json()["alerts"]
    assert {alert["kind"] for alert in alerts} <= {"implausible_energy"}
    return {alert["deviceId"]: (alert["evidence"]["looksLike"], alert["evidence"]["readings"]) for alert in alerts}


@pytest.mark.parametrize(
    ("file", "vehicle_id", "within"),
    [
        ("04-catch-up-after-outage.ndjson", "cu-V", 0.005),
        ("34-vehicle-offline-catch-up.ndjson", "vo-V", 0.005),
        ("35-vehicle-each-6min.ndjson", "s6-V", 0.01),
    ],
)
async def test_the_efficiency_is_right_whatever_the_silences_and_cadences(
    enter: Enter, judged: Judged, file: str, vehicle_id: str, within: float
) -> None:
    await enter(moved(file))
    client = await judged()
    answer = await performance(client, vehicle_id)
    assert answer["efficiencyRatio"] == pytest.approx(0.9, abs=within)
    assert answer["status"] == "ok"


@pytest.mark.parametrize(
    "file",
    [
        "04-catch-up-after-outage.ndjson",
        "34-vehicle-offline-catch-up.ndjson",
        "35-vehicle-each-6min.ndjson",
    ],
)
async def test_silences_and_cadences_raise_no_alert(enter: Enter, judged: Judged, file: str) -> None:
    await enter(moved(file))
    assert (await (await judged()).get("/v1/analytics/alerts")).json()["alerts"] == []


async def test_a_catch_up_makes_no_peak(enter: Enter, database_url: str) -> None:
    await enter(moved("04-catch-up-after-outage.ndjson"))
    assert (await asyncio.to_thread(command, "refresh", DATABASE_URL=database_url)).returncode == 0
    async with service(Settings(database_url=database_url)) as client:
        for path, names in (
            ("meters/cu-M", ["powerKw"]),
            ("vehicles/cu-V", ["powerKw"]),
            ("fleet", ["acKw", "dcKw"]),
        ):
            for bucket in "1m", "1h":
                query = {"hours": 12, "bucket": bucket}
                columns = (await client.get(f"/v1/analytics/{path}/series", params=query)).json()["columns"]
                powers = [power for name in names for power in columns[name] if power is not None]
                assert 10 < max(powers) < 12.1, (path, bucket)


async def test_totals_sent_as_differences_are_told_and_give_no_verdict(enter: Enter, judged: Judged) -> None:
    await enter(moved("02-cumulative-register.ndjson"))
    client = await judged()
    assert await implausible(client) == {"reg-M": ("register", 120), "reg-V": ("register", 120)}
    answer = await performance(client, "reg-V")
    assert (answer["efficiencyRatio"], answer["status"]) == (None, "insufficient_data")


async def test_totals_sent_as_registers_give_the_energy_and_the_efficiency(enter: Enter, judged: Judged) -> None:
    names = {"kwhConsumedAc": "kwhRegisterAc", "kwhDeliveredDc": "kwhRegisterDc"}
    totals = moved("02-cumulative-register.ndjson")
    await enter([{names.get(name, name): value for name, value in total.items()} for total in totals])
    client = await judged()
    assert await implausible(client) == {}
    answer = await performance(client, "reg-V")
    assert (answer["totalAcConsumption"], answer["totalDcDelivery"]) == (pytest.approx(14.4), pytest.approx(12.96))
    assert (answer["efficiencyRatio"], answer["status"]) == (pytest.approx(0.9), "ok")


async def test_wh_as_kwh_are_told(enter: Enter, judged: Judged) -> None:
    await enter(moved("05-wh-as-kwh.ndjson"))
    assert await implausible(await judged()) == {"wh-M": ("wh", 120), "wh-V": ("wh", 120)}


async def test_a_step_is_told_where_it_exceeds_the_limit(enter: Enter, judged: Judged, database_url: str) -> None:
    await enter(moved("06-impossible-step.ndjson"))
    assert await implausible(await judged()) == {"imp-M": ("step", 1)}
    limit = "device", "limit", "imp-M", "22", "--stream", "meter"
    assert (await asyncio.to_thread(command, *limit, DATABASE_URL=database_url)).returncode == 0
    assert await implausible(await judged()) == {"imp-M": ("step", 2)}


async def test_ids_of_the_trade_are_stored_and_others_refused_by_name(
    enter: Enter, database_url: str, connection: Connection, request: pytest.FixtureRequest
) -> None:
    readings = moved("08-device-ids.ndjson")
    await enter(readings)
    stored = connection.execute("SELECT external_id FROM meter JOIN meter_reading ON id = meter_id")
    assert sorted(name for (name,) in stored) == [
        *("100001", "AA:BB:CC:DD:EE:FF", "BoxCS-0000AAAA00001", "DE*ABC*E1234*1", "NL-ABC-E1+2"),
        *("aa:bb:cc:dd:ee:ff", "urn:dev:mac:0024befffe804ff1", "user@site"),
    ]
    refused = connection.execute("SELECT code, field FROM quarantine").fetchall()
    # In files, an empty text is an absent one; over MQTT, the topic could have named the device.
    empty = "missing_field" if "import" in request.node.name else "invalid_id"
    absent = "no_device_in_topic" if "mqtt" in request.node.name else "missing_field"
    codes = [*["invalid_id"] * 8, "malformed", empty, absent]
    assert Counter(refused) == Counter((code, "meterId") for code in codes)
    doctor = await asyncio.to_thread(command, "doctor", DATABASE_URL=database_url)
    assert "AA:BB:CC:DD:EE:FF and aa:bb:cc:dd:ee:ff" in " ".join(doctor.stdout.split())


async def test_the_noise_of_floats_is_rounded(enter: Enter, connection: Connection) -> None:
    await enter(moved("16-float-noise.ndjson"))
    assert connection.execute("SELECT ac_milliwh FROM meter_reading").fetchall() == [(0,)]
    states_of_charge = connection.execute("SELECT soc_centipercent FROM vehicle_reading ORDER BY ts").fetchall()
    assert states_of_charge == [(10_000,), (0,)]


async def test_epochs_of_any_unit_are_the_same_instants(enter: Enter, connection: Connection) -> None:
    files = [f"26-epoch-{unit}.csv" for unit in ("s", "ms", "us", "ns")]
    readings = moved(*files, "26-epoch.ndjson")
    await enter(readings)
    stored = connection.execute(
        "SELECT external_id, ts, ac_milliwh FROM meter_reading JOIN meter ON id = meter_id ORDER BY 1, 2"
    ).fetchall()
    assert stored == sorted((reading["meterId"], instant(reading), 120_000) for reading in readings)
    assert len({at for _, at, _ in stored}) == 3


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_epochs_in_a_csv_file_are_instants(
    unit: str, database_url: str, connection: Connection, tmp_path: Path
) -> None:
    readings = moved(f"26-epoch-{unit}.csv")
    file = tmp_path / "case.csv"
    file.write_text("\n".join(",".join(row) for row in (readings[0], *(one.values() for one in readings))))
    assert command("import", str(file), DATABASE_URL=database_url).returncode == 0
    stored = connection.execute("SELECT ts FROM meter_reading ORDER BY 1").fetchall()
    assert stored == [(instant(reading),) for reading in readings]


async def test_a_sensors_error_value_costs_nothing_but_itself(
    enter: Enter, connection: Connection, request: pytest.FixtureRequest
) -> None:
    said = await enter(moved("38-sentinel.ndjson"))
    stored = connection.execute("SELECT dc_milliwh, soc_centipercent FROM vehicle_reading").fetchall()
    assert stored == [(180_000, None)]
    if "http" in request.node.name:
        assert [(one["index"], one["field"]) for one in json.loads(said)["warnings"]] == [(0, "soc")]
    if "import" in request.node.name:
        assert "dropped 1 bad value of soc" in said
