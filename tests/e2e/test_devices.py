"""An operator's work with the registry: seeding, listing, retiring, renaming, and a limit against strangers."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import httpx
import psycopg
import pytest

from app.ingest.batch import REJECTIONS
from app.settings import Settings
from tests.e2e.test_cli import refusal
from tests.fixtures.commands import command
from tests.fixtures.sending import map_vehicle, meter, minutes_ago, problem, send, vehicle
from tests.fixtures.service import service

Connection = psycopg.Connection[tuple[Any, ...]]
STATES = "/v1/analytics/meters/states"


def value(connection: Connection, query: LiteralString) -> Any:
    ((only,),) = connection.execute(query).fetchall()
    return only


def done(*arguments: str, url: str) -> str:
    """Returns the output of a command, which must succeed."""
    ran = command(*arguments, DATABASE_URL=url)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_a_fleet_is_seeded_once(database_url: str, connection: Connection) -> None:
    connection.execute("INSERT INTO vehicle (external_id) VALUES ('vehicle-0002')")
    connection.execute("INSERT INTO meter (external_id) VALUES ('elsewhere')")
    connection.execute("INSERT INTO vehicle_meter (vehicle_id, meter_id, valid) VALUES (1, 1, '(,)')")
    started = time.monotonic()
    assert done("seed", "5000", "4000", url=database_url) == "Added: 4,999 vehicles, 4,000 meters, 3,999 mappings.\n"
    print(f"seeded within {time.monotonic() - started:.1f} s")  # noqa: T201 - a figure to look at
    assert done("seed", "5000", "4000", url=database_url) == "Added: 0 vehicles, 0 meters, 0 mappings.\n"
    assert value(connection, "SELECT count(*) FROM vehicle") == 5000
    pairs = """
        SELECT count(*) FROM vehicle_meter
        JOIN vehicle ON vehicle.id = vehicle_id JOIN meter ON meter.id = vehicle_meter.meter_id
        WHERE replace(vehicle.external_id, 'vehicle', 'meter') = meter.external_id AND valid = '(,)'
    """
    assert value(connection, pairs) == 3999
    assert value(connection, "SELECT meter_id FROM vehicle_meter WHERE vehicle_id = 1") == 1


def test_seeding_holds_the_registry_for_a_slice_at_a_time(
    database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.fleet.devices.SLICE_DEVICES", 10)
    # Seeding with another size was stopped after its first slice.
    done("seed", "7", "3", url=database_url)
    assert done("seed", "25", "38", url=database_url) == "Added: 18 vehicles, 35 meters, 22 mappings.\n"
    for table in (b"vehicle", b"meter", b"vehicle_meter"):
        slices = connection.execute(b"SELECT count(*) FROM " + table + b" GROUP BY xmin").fetchall()
        assert max(slices) <= (10,)
        assert len(slices) >= 3
    assert value(connection, "SELECT count(*) FROM vehicle_meter WHERE valid = '(,)'") == 25


def test_seeding_is_not_limited_and_takes_nothing_negative(database_url: str, connection: Connection) -> None:
    ran = command("seed", "3", "0", DATABASE_URL=database_url, WATTLINE_NEW_DEVICES_PER_HOUR="0")
    assert ran.stdout == "Added: 3 vehicles, 0 meters, 0 mappings.\n"
    for counts in ("-1", "1"), ("x", "1"), ("1",), ("9" * 9, "1"):
        assert command("seed", *counts, DATABASE_URL=database_url).returncode == 2


async def test_a_retired_device_is_neither_expected_nor_listed_until_it_measures_again(
    database_url: str, client: httpx.AsyncClient, connection: Connection
) -> None:
    ahead = datetime.now(UTC) + timedelta(minutes=2)
    await send(client, [meter(minutes_ago(3)), meter(ahead, meter_id="M2"), vehicle(minutes_ago(3))])

    async def fleet() -> tuple[int, int, list[str]]:
        fresh = (await client.get("/v1/analytics/freshness")).json()
        listed = [state["meterId"] for state in (await client.get(STATES)).json()]
        return fresh["devicesReporting"], fresh["devicesExpected"], listed

    assert await fleet() == (3, 3, ["M1", "M2"])
    for name in ("M1", "M2"):
        assert (
            done("device", "retire", name, "--stream", "meter", url=database_url) == f"The meter {name} is retired.\n"
        )
    assert await fleet() == (1, 1, [])
    # An earlier measurement is late; it says nothing about today.
    await send(client, meter(minutes_ago(20)))
    assert await fleet() == (1, 1, [])
    assert done("device", "list", "--retired", url=database_url).endswith("2 devices.\n")
    done("device", "retire", "M2", "--stream", "meter", "--undo", url=database_url)
    assert await fleet() == (2, 2, ["M2"])
    await send(client, meter(datetime.now(UTC)))
    assert await fleet() == (3, 3, ["M1", "M2"])
    assert value(connection, "SELECT count(*) FROM meter_reading") == 4


async def test_devices_are_listed_by_what_they_lack(database_url: str, client: httpx.AsyncClient) -> None:
    assert done("device", "list", url=database_url) == "0 devices.\n"
    await send(client, [meter(minutes_ago(1), 0.25), meter(minutes_ago(90), meter_id="M2"), vehicle(minutes_ago(1))])
    await map_vehicle(client, "V2", "M1")

    def names(*filters: str) -> list[list[str]]:
        return [line.split()[:2] for line in done("device", "list", *filters, url=database_url).splitlines()[1:-1]]

    everything = [["meter", "M1"], ["meter", "M2"], ["vehicle", "V1"], ["vehicle", "V2"]]
    assert names() == everything
    assert names("--stream", "vehicle") == everything[2:]
    assert names("--silent", "30") == [["meter", "M2"], ["vehicle", "V2"]]
    done("device", "retire", "M2", "--stream", "meter", url=database_url)
    assert names("--silent", "30") == [["vehicle", "V2"]]
    assert names("--retired") == [["meter", "M2"]]
    assert " 0.25 " in done("device", "list", url=database_url).splitlines()[1]
    assert "cannot be combined" in refusal(
        command("device", "list", "--retired", "--silent", "3", DATABASE_URL=database_url)
    )


async def test_a_device_renamed_under_running_services_stays_one_device(
    database_url: str, client: httpx.AsyncClient, connection: Connection
) -> None:
    readings = [meter(minutes_ago(age), meter_id="old") for age in (9, 8, 7)]
    await send(client, readings[0])
    done("device", "rename", "old", "new", "--stream", "meter", url=database_url)
    # This service has the old name in its cache; the other one has never heard of either.
    async with service(Settings(database_url=database_url)) as other:
        for each, reading in zip((client, other), readings[1:], strict=True):
            assert (await send(each, readings))["inserted"] == (2 if each is client else 0)
            assert (await send(each, reading | {"meterId": "new"}))["duplicates"] == 1
            await send(each, meter(minutes_ago(1), meter_id="new"))
            mapped = (await map_vehicle(each, "V1", "old")).json()
            assert (mapped["meterId"], mapped["validFrom"]) == ("new", None)
        await send(other, vehicle(minutes_ago(1), meterId="old"))
    assert value(connection, "SELECT array_agg(external_id) FROM meter") == ["new"]
    assert value(connection, "SELECT count(*) FROM meter_reading") == 4
    assert value(connection, "SELECT count(*) FROM vehicle_meter") == 1
    assert [state["meterId"] for state in (await client.get(STATES)).json()] == ["new"]


async def test_a_name_means_one_device(database_url: str, client: httpx.AsyncClient) -> None:
    await send(client, [meter(minutes_ago(1), meter_id=name) for name in ("A", "B")])

    def rename(old: str, new: str, stream: str = "meter") -> tuple[str, ...]:
        return ("device", "rename", old, new, "--stream", stream)

    done(*rename("A", "C"), url=database_url)
    for arguments, reason in (
        (rename("B", "C"), "There is a meter C already, or there was."),
        (rename("B", "A"), "There is a meter A already, or there was."),
        (rename("B", "B"), "There is a meter B already, or there was."),
        (rename("A", "D"), "There is no meter A; it is called C now."),
        (rename("X", "D"), "There is no meter X."),
        (rename("B", "D", "vehicle"), "There is no vehicle B."),
        *((rename("B", name), REJECTIONS["invalid_id"]) for name in ("a b", "x" * 65, "", ".", "..")),
        (("device", "retire", "A", "--stream", "meter"), "There is no meter A; it is called C now."),
    ):
        assert refusal(command(*arguments, DATABASE_URL=database_url)) == reason
    done(*rename("C", "A"), url=database_url)
    done(*rename("A", "E"), url=database_url)
    assert [line.split()[1] for line in done("device", "list", url=database_url).splitlines()[1:-1]] == ["B", "E"]


async def test_strangers_cannot_fill_the_registry(database_url: str, connection: Connection) -> None:
    settings = Settings(database_url=database_url, new_devices_per_hour=100)
    at = minutes_ago(1)
    async with service(settings) as client:
        await send(client, [meter(at), vehicle(at, meterId="M1")])
        inserted = slowest = 0.0
        for start in range(0, 30_000, 5_000):
            batch = [vehicle(at, vehicle_id=f"stranger-{n}") for n in range(start, start + 4_999)]
            batch.append(meter(at, start / 1000 + 1))
            # Sent again while a busy machine's store is too slow.
            while (answered := await client.post("/v1/telemetry", json=batch)).status_code == 503:
                pass
            answer = answered.json()
            assert answer["received"] == 5_000 == answer["inserted"] + answer["duplicates"] + len(answer["rejected"])
            assert {one["code"] for one in answer["rejected"]} == {"too_many_new_devices"}
            inserted += answer["inserted"]
            started = time.monotonic()
            known = [meter(at + timedelta(seconds=start / 1000 + 1)), vehicle(at + timedelta(seconds=start / 1000 + 1))]
            assert (await send(client, known))["inserted"] == 2
            slowest = max(slowest, time.monotonic() - started)
        # A meter in a mapping or in the reading of a known vehicle is a new device too.
        refused = problem(await map_vehicle(client, "V1", "stranger"), 429, "too_many_new_devices")
        assert "newDevices" not in refused
        mixed = [
            vehicle(at),
            meter(at, meter_id="x"),
            vehicle(at, meterId="x"),
            {"meterId": 3},
            meter(at),
            vehicle(at, vehicle_id="y"),
        ]
        answer = (await client.post("/v1/telemetry", json=mixed)).json()
        assert [(one["index"], one["field"]) for one in answer["rejected"]] == [
            (1, "meterId"),
            (2, "meterId"),
            (3, "meterId"),
            (5, "vehicleId"),
        ]
    print(f"a known device waited for {slowest * 1000:.0f} ms at most")  # noqa: T201 - a figure to look at
    assert inserted == 98
    assert value(connection, "SELECT (SELECT count(*) FROM meter) + (SELECT count(*) FROM vehicle)") == 100
    assert value(connection, "SELECT count(*) FROM quarantine WHERE code <> 'conflict'") == 6 * 4_999 - 98 + 4
    # After an hour there is room again.
    connection.execute("UPDATE vehicle SET registered_at = now() - INTERVAL '61 minutes'")
    async with service(settings) as client:
        await send(client, vehicle(at, vehicle_id="stranger-20000"))
