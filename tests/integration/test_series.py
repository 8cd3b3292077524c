"""Series over HTTP: the sums of the readings sent, by minute, hour and day, for as long as each is kept."""

import asyncio
import csv
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime, timedelta, timezone
from random import Random
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import psycopg
import pytest
import pytest_asyncio

from app.analytics.efficiency.pairs import total
from app.database import connect
from app.ops.maintenance import maintain
from app.ops.refresh import refresh_aggregates
from app.settings import Settings
from app.telemetry.reading import MeterReading, VehicleReading
from tests.fixtures.database import Server
from tests.fixtures.engines import on_timescale, refresh_while_young, run_policies
from tests.fixtures.readings import Reading, meter_reading, midnight, random_readings, store, vehicle_reading
from tests.fixtures.sending import map_vehicle, performance, problem, stamp
from tests.fixtures.service import service
from tests.property.brute_force import Fleet, VehicleMeter, minutes_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
SECONDS = {"1m": 60, "1h": 3_600, "1d": 86_400}
MINUTE_US = 60_000_000
METER, VEHICLE, FLEET = "meters/M1", "vehicles/V1", "fleet"
REFRESH, RETENTION = "cagg_refresh", "policy_retention"

Columns = dict[str, list[Any]]
Series = dict[str, Any]


def path_of(what: str) -> str:
    return f"/v1/analytics/{what}/series"


async def series(client: httpx.AsyncClient, what: str, **query: Any) -> Series:
    """Returns an answer; `start` and `end` become from and to."""
    names = {"start": "from", "end": "to"}
    params = {
        names.get(name, name): value.isoformat() if isinstance(value, datetime) else value
        for name, value in query.items()
    }
    answer = await client.get(path_of(what), params=params)
    assert answer.status_code == httpx.codes.OK, answer.text
    document: Series = answer.json()
    return document


# Expected answers, computed from the readings


def seconds(at: datetime) -> float:
    return at.timestamp()


def touched(start: datetime, end: datetime, bucket: str) -> tuple[int, int]:
    """Returns the first second of the buckets that [start, end) touches, and the last + 1, counted from 1970."""
    first, after = (round(at.timestamp() * 1_000_000) for at in (start, end))
    width = SECONDS[bucket] * 1_000_000
    return first // width * SECONDS[bucket], -(-after // width) * SECONDS[bucket]


def statistics(values: Iterable[int | None]) -> tuple[float | None, float | None, float | None]:
    """Returns the average, least and greatest of hundredths."""
    there = [value for value in values if value is not None]
    return (sum(there) / (100 * len(there)), min(there) / 100, max(there) / 100) if there else (None, None, None)


def meter_point(readings: list[Any]) -> list[Any]:
    energy = sum(reading.ac_milliwh for reading in readings) / 1_000_000
    return [energy, len(readings), *statistics(reading.voltage_centiv for reading in readings)]


def vehicle_point(readings: list[Any]) -> list[Any]:
    return [
        sum(reading.dc_milliwh for reading in readings) / 1_000_000,
        len(readings),
        *statistics(reading.soc_centipercent for reading in readings),
        *statistics(reading.battery_temp_centic for reading in readings),
    ]


def fleet_point(readings: list[Any]) -> list[Any]:
    ac = [reading.ac_milliwh or 0 for reading in readings if isinstance(reading, MeterReading)]
    dc = [reading.dc_milliwh or 0 for reading in readings if isinstance(reading, VehicleReading)]
    sums = [sum(energies) / 1_000_000 if energies else None for energies in (ac, dc)]
    return [*sums, len(ac) or None, len(dc) or None]


def fleet_ratio(readings: list[Reading], start: int, bucket: str) -> float | None:
    """Returns all DC over all AC of the bucket, or of the hour that ends with it, where both streams reported.

    It is None where they did so in less than 15 minutes.
    """
    width = SECONDS[bucket]
    end = start + width
    energies: defaultdict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for reading in readings:
        if end - max(width, 3_600) <= reading.ts_us // 1_000_000 < end:
            ac, dc = energies[reading.ts_us // 1_000_000 // width]
            if isinstance(reading, MeterReading):
                ac.append(reading.ac_milliwh or 0)
            else:
                dc.append(reading.dc_milliwh or 0)
    both = [(sum(ac), sum(dc)) for ac, dc in energies.values() if ac and dc]
    consumed = sum(ac for ac, _ in both)
    return sum(dc for _, dc in both) / consumed if consumed and len(both) * width >= 900 else None


class Kind(NamedTuple):
    chosen: Callable[[Reading], bool]
    point: Callable[[list[Any]], list[Any]]
    columns: list[str]


KINDS = {
    METER: Kind(
        lambda reading: isinstance(reading, MeterReading) and reading.meter_id == "M1",
        meter_point,
        ["t", "acKwh", "readings", "avgVoltage", "minVoltage", "maxVoltage"],
    ),
    VEHICLE: Kind(
        lambda reading: isinstance(reading, VehicleReading) and reading.vehicle_id == "V1",
        vehicle_point,
        [
            *("t", "dcKwh", "readings", "avgSoc", "minSoc", "maxSoc"),
            *("avgBatteryTemp", "minBatteryTemp", "maxBatteryTemp"),
        ],
    ),
    FLEET: Kind(
        lambda _: True,
        fleet_point,
        ["t", "acKwh", "dcKwh", "meterReadings", "vehicleReadings", "efficiencyRatio"],
    ),
}
EVIDENCE = ["pairedMinutes", "efficiencyRatio"]
POWER = ["powerKw", "acKw", "dcKw"]
"""These columns have tests of their own, in test_power.py."""


def expected(what: str, readings: list[Reading], start: datetime, end: datetime, bucket: str) -> Columns:
    kind, buckets = KINDS[what], defaultdict[int, list[Reading]](list)
    first, after = touched(start, end, bucket)
    for reading in readings:
        if kind.chosen(reading) and first <= reading.ts_us // 1_000_000 < after:
            buckets[reading.ts_us // 1_000_000 // SECONDS[bucket] * SECONDS[bucket]].append(reading)
    points = [[at, *kind.point(buckets[at])] for at in sorted(buckets)]
    if what == FLEET:
        points = [[*point, fleet_ratio(readings, point[0], bucket)] for point in points]
    return {name: [point[position] for point in points] for position, name in enumerate(kind.columns)}


def without_evidence(what: str, columns: Columns) -> Columns:
    """Returns the columns that come from sums alone."""
    others = POWER if what != VEHICLE else POWER + EVIDENCE
    return {name: columns[name] for name in columns if name not in others}


async def assert_sums(client: httpx.AsyncClient, readings: list[Reading]) -> None:
    """Compares every kind and width, over some ranges, with the readings."""
    first = midnight(4)
    kathmandu, st_johns = (timezone(timedelta(minutes=minutes)) for minutes in (345, -210))
    for start, end in (
        (first, first + 4 * DAY),
        ((first + timedelta(hours=5, seconds=1)).astimezone(kathmandu), (first + 2.3 * DAY).astimezone(st_johns)),
        (first + DAY + timedelta(microseconds=1), first + 2 * DAY - timedelta(microseconds=1)),
        (first + timedelta(hours=30, minutes=7, seconds=59.5), first + timedelta(hours=77, minutes=11, seconds=0.5)),
        (first - 9 * DAY, first - 8 * DAY),
    ):
        for bucket in SECONDS:
            for what in KINDS:
                answer = await series(client, what, start=start, end=end, bucket=bucket)
                assert without_evidence(what, answer["columns"]) == expected(what, readings, start, end, bucket)
                bounds = [datetime.fromisoformat(answer[name]).timestamp() for name in ("from", "to")]
                assert bounds == list(touched(start, end, bucket))
                assert (answer["id"], answer["bucket"]) == (what.partition("/")[2] or "fleet", bucket)


async def test_every_bucket_holds_exactly_the_readings_sent_before_and_after_a_refresh(database_url: str) -> None:
    readings = list(random_readings(31, midnight(4), 4, 1500, hours=14))
    async with service(Settings(database_url=database_url)) as client:
        await store(database_url, *readings[:1000])
        await assert_sums(client, readings[:1000])
        await asyncio.to_thread(refresh_aggregates, database_url, None, None)
        await assert_sums(client, readings[:1000])
        await store(database_url, *readings[1000:])
        await asyncio.to_thread(refresh_aggregates, database_url, None, None)
        await assert_sums(client, readings)


# One database with some history, for all tests that only read

DENSE = 1_200
"""The minutes of midnight(2) in which a meter and a vehicle of the name D report; each is silent once."""
METER_SILENT, VEHICLE_SILENT = range(300, 320), range(130, 132)
SHARED = [*range(400, 440), *range(600, 660)]


def dense_readings() -> list[Reading]:
    random, first = Random(32), midnight(2)
    readings: list[Reading] = []
    for minute in range(DENSE):
        at = first + minute * MINUTE + timedelta(seconds=random.uniform(0, 59))
        if minute not in METER_SILENT:
            readings.append(meter_reading(at, random.uniform(0.1, 0.2), meter_id="D", voltage=[None, 230][minute % 2]))
        if minute not in VEHICLE_SILENT:
            soc = [None, random.uniform(1, 99)][minute % 3 == 0]
            readings.append(vehicle_reading(at, random.uniform(0.1, 0.2), vehicle_id="D", meter_id="D", soc=soc))
        if minute in SHARED:
            readings.append(vehicle_reading(at, vehicle_id="guest", meter_id="D"))
    return readings


PATCHY_MINUTES = 330
MAPPED = {"P1": ("P0", "P1"), "P2": ("P1", "P0")}
"""The meters that a vehicle is mapped to, first for three hours, then from there on."""


def patchy_start() -> datetime:
    return midnight(3) + timedelta(hours=7, minutes=11)


def patchy_readings() -> list[Reading]:
    """Returns readings of devices that report each 1 to 7 minutes, so that gaps cross the edges of every bucket."""
    random, first = Random(33), patchy_start()
    readings: list[Reading] = []
    for name in ("P0", "P1", "P2"):
        for make in (meter_reading, vehicle_reading):
            minute, meter_id = random.uniform(0, 5), None
            while minute < PATCHY_MINUTES:
                at, kwh = first + minute * MINUTE, random.uniform(0.1, 0.9)
                if make is meter_reading:
                    readings.append(meter_reading(at, kwh, meter_id=name))
                else:
                    if random.random() < 0.1:
                        meter_id = random.choice([None, None, "P0", "P1", "P2"])
                    readings.append(vehicle_reading(at, kwh, vehicle_id=name, meter_id=meter_id))
                minute += random.choice([1, 1, 1, 2, 3, 4, 5, 6, 7]) * random.uniform(0.9, 1.1)
    return readings


class History(NamedTuple):
    client: httpx.AsyncClient
    readings: list[Reading]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def history(server: Server) -> AsyncIterator[History]:
    """Runs a service on two days of readings, refreshed."""
    url, readings = server.clone(), dense_readings() + patchy_readings()
    at = midnight(2) + MINUTE
    bare: list[Reading] = [meter_reading(at, 0, meter_id="zero"), meter_reading(at, meter_id="lone")]
    bare += [vehicle_reading(at, vehicle_id=name, meter_id=name) for name in ("zero", "other")]
    bare += [vehicle_reading(at, vehicle_id="meterless", meter_id=None)]
    async with service(Settings(database_url=url)) as client:
        await store(url, *readings, *bare)
        for vehicle, (before, after) in MAPPED.items():
            for meter, start in ((before, midnight(20)), (after, patchy_start() + 3 * HOUR)):
                answer = await map_vehicle(client, vehicle, meter, validFrom=stamp(start))
                assert answer.status_code == httpx.codes.OK, answer.text
        await asyncio.to_thread(refresh_aggregates, url, None, None)
        yield History(client, readings)
    server.drop(url)


# A vehicle's efficiency


def evidence_of(answer: Series) -> dict[int, tuple[int | None, float | None]]:
    columns = answer["columns"]
    return dict(zip(columns["t"], zip(*(columns[name] for name in EVIDENCE), strict=True), strict=True))


async def performance_of(client: httpx.AsyncClient, start: datetime, end: datetime) -> tuple[int, float | None]:
    answer = await performance(client, "D", **{"from": stamp(start), "to": stamp(end)})
    return answer["coverage"]["paired"], answer["efficiencyRatio"]


@pytest.mark.parametrize("bucket", ["1h", "1d"])
async def test_a_bucket_s_efficiency_is_the_performance_of_its_hours_where_devices_report_at_its_edges(
    history: History, bucket: str
) -> None:
    first, width = midnight(2), timedelta(seconds=SECONDS[bucket])
    found = evidence_of(await series(history.client, "vehicles/D", start=first, end=first + DAY, bucket=bucket))
    assert len(found) == {"1h": 20, "1d": 1}[bucket]
    for at, evidence in found.items():
        start = datetime.fromtimestamp(at, UTC)
        assert evidence == await performance_of(history.client, start, start + width)


async def test_a_minute_s_efficiency_is_the_performance_of_the_hour_that_ends_with_it(history: History) -> None:
    first = midnight(2)
    for start in (first, first + 50 * MINUTE):
        answer = await series(history.client, "vehicles/D", start=start, end=first + DAY, bucket="1m")
        found = evidence_of(answer)
        for minute in (50, 59, 60, 150, 188, 305, 345, 379, 410, 459, 499, 659, 700, DENSE - 1):
            end = first + (minute + 1) * MINUTE
            assert found[int(seconds(end - MINUTE))] == await performance_of(history.client, end - HOUR, end)


async def test_shared_and_lost_time_is_in_no_efficiency(history: History) -> None:
    first = midnight(2)
    hours = await series(history.client, "vehicles/D", start=first, end=first + DAY, bucket="1h")
    paired = hours["columns"]["pairedMinutes"]
    # The guest fell silent while it charged, so it may have gone on until it was seen again. Clocks differ.
    whole = [60 - 21 * (hour == 5) - 20 * (hour == 6) - 60 * (hour in (7, 8, 9, 10)) for hour in range(20)]
    assert all(abs(minutes - expected) <= 2 for minutes, expected in zip(paired, whole, strict=True)), f"{paired}"
    day = await series(history.client, "vehicles/D", start=first, end=first + DAY, bucket="1d")
    assert abs(day["columns"]["pairedMinutes"][0] - sum(paired)) <= 10
    guest = await series(history.client, "vehicles/guest", start=first, end=first + DAY, bucket="1d")
    assert guest["columns"]["pairedMinutes"][0] <= 4


@pytest.mark.parametrize("vehicle", ["zero", "other", "meterless"], ids=["no AC", "no readings of it", "no meter"])
async def test_without_ac_energy_or_paired_time_there_is_no_ratio(history: History, vehicle: str) -> None:
    for bucket in SECONDS:
        answer = await series(history.client, f"vehicles/{vehicle}", start=midnight(2), end=midnight(1), bucket=bucket)
        assert [answer["columns"][name] for name in EVIDENCE] == [[0], [None]]


def patchy_fleet() -> Fleet:
    change = seconds(patchy_start() + 3 * HOUR) * 1_000_000
    mappings: list[VehicleMeter] = []
    for name, (before, after) in MAPPED.items():
        mappings += [(name, before, seconds(midnight(20)) * 1_000_000, change), (name, after, change, float("inf"))]
    readings = patchy_readings()
    meters = [reading for reading in readings if isinstance(reading, MeterReading)]
    vehicles = [reading for reading in readings if isinstance(reading, VehicleReading)]
    return Fleet(meters, vehicles, mappings, 5)


async def test_a_bucket_s_efficiency_is_that_of_the_slow_way_whatever_the_range(history: History) -> None:
    fleet, first = patchy_fleet(), patchy_start()
    for vehicle in ("P0", "P1", "P2"):
        for start, end in (
            (first - HOUR, first + 6 * HOUR),
            (first + timedelta(minutes=97, seconds=3), first + timedelta(minutes=208, seconds=30)),
        ):
            for bucket, width in SECONDS.items():
                answer = await series(history.client, f"vehicles/{vehicle}", start=start, end=end, bucket=bucket)
                found = evidence_of(answer)
                assert found
                # The slow way is slow: some buckets are enough.
                for at in sorted(found)[:: 1 if bucket != "1m" else 60]:
                    after = at + width
                    window = (1_000_000 * (after - max(width, 3600)), 1_000_000 * after)
                    evidence = total(fleet.evidence(vehicle, *window).values())
                    ac, dc = evidence.paired_ac_milliwh, evidence.paired_dc_milliwh
                    assert found[at] == (minutes_of(evidence.paired_us), dc / ac if ac else None)


# Retention


async def maintained(connection: psycopg.Connection, url: str, engine: str) -> None:
    """Drops what is too old, as the jobs and the maintenance loop do."""
    if engine == "timescale":
        run_policies(connection, RETENTION)
        run_policies(connection, REFRESH)
        await asyncio.to_thread(refresh_aggregates, url, None, None)
        return
    own = await connect(url)
    try:
        assert await maintain(own)
    finally:
        await own.close()


def hold_maintenance(connection: psycopg.Connection) -> None:
    """Makes the service's own loop leave the database alone until it is released."""
    connection.execute("SELECT pg_advisory_lock(hashtext('wattline maintenance'))")


def release_maintenance(connection: psycopg.Connection) -> None:
    connection.execute("SELECT pg_advisory_unlock(hashtext('wattline maintenance'))")


def count_readings(connection: psycopg.Connection, before: datetime) -> int:
    ((count,),) = connection.execute(
        """
        SELECT (SELECT count(*) FROM meter_reading WHERE ts < %(before)s)
            + (SELECT count(*) FROM vehicle_reading WHERE ts < %(before)s)
        """,
        {"before": before},
    ).fetchall()
    return int(count)


async def columns_by(client: httpx.AsyncClient, start: datetime, *buckets: str) -> dict[tuple[str, str], Columns]:
    found = {}
    for bucket in buckets:
        for what in KINDS:
            answer = await series(client, what, start=start, end=midnight(0), bucket=bucket)
            # Power waits until maintenance has found when the energy flowed.
            found[what, bucket] = {name: column for name, column in answer["columns"].items() if name not in POWER}
    return found


def points_from(columns: Columns, start: datetime) -> Columns:
    first = sum(at < seconds(start) for at in columns["t"])
    return {name: values[first:] for name, values in columns.items()}


RAW_GONE, MINUTES_GONE, HOURS_GONE = 41, 200, 1200
"""Days ago: each is longer than its aggregate is kept, plus a chunk."""


async def test_hours_and_days_outlive_the_readings_and_days_and_the_fleet_s_hours_what_they_are_made_of(
    connection: psycopg.Connection, database_url: str, engine: str
) -> None:
    readings = [
        reading
        for days in (RAW_GONE, MINUTES_GONE, HOURS_GONE, 3)
        for reading in random_readings(days, midnight(days), 2, 300, hours=5)
    ]
    hold_maintenance(connection)
    await store(database_url, *readings)
    refresh_while_young(connection, midnight(HOURS_GONE + 1), midnight(0))
    async with service(Settings(database_url=database_url)) as client:
        before = await columns_by(client, midnight(HOURS_GONE), "1h", "1d")
        for (what, bucket), columns in before.items():
            wanted = expected(what, readings, midnight(HOURS_GONE), midnight(0), bucket)
            assert without_evidence(what, columns) == wanted
        release_maintenance(connection)
        for _ in range(2):
            await maintained(connection, database_url, engine)
            assert count_readings(connection, midnight(38)) == 0
            after = await columns_by(client, midnight(HOURS_GONE), "1h", "1d")
            for what, bucket in before:
                expired = bucket == "1h" and what != FLEET
                kept = points_from(before[what, bucket], midnight(1000)) if expired else before[what, bucket]
                assert after[what, bucket] == kept
        for what in KINDS:
            gone = await series(client, what, start=midnight(MINUTES_GONE), end=midnight(190), bucket="1m")
            assert set(map(tuple, gone["columns"].values())) == {()}


async def test_where_its_minutes_are_no_longer_kept_a_bucket_has_no_paired_minutes_rather_than_0(
    connection: psycopg.Connection, database_url: str, engine: str
) -> None:
    days = (RAW_GONE, 3) if engine == "plain" else (MINUTES_GONE, 115)
    hold_maintenance(connection)
    for ago in days:
        for make in (meter_reading, vehicle_reading):
            await store(database_url, *[make(midnight(ago) + minute * MINUTE) for minute in range(30)])
    refresh_while_young(connection, midnight(HOURS_GONE + 1), midnight(0))
    async with service(Settings(database_url=database_url)) as client:
        asked = {"start": midnight(days[0]), "end": midnight(days[1] - 1)}
        # The answers are the same before they are dropped and after.
        for _ in range(2):
            for bucket in ("1h", "1d"):
                columns = (await series(client, VEHICLE, bucket=bucket, **asked))["columns"]
                # The energy of the first reading flowed on the day before.
                assert (columns["readings"], columns["pairedMinutes"]) == ([30, 30], [None, 29])
                assert columns["efficiencyRatio"][0] is None
            release_maintenance(connection)
            await maintained(connection, database_url, engine)


# The choice of the bucket


async def test_auto_takes_the_narrowest_bucket_that_gives_at_most_max_points(history: History) -> None:
    first = midnight(9)
    for what in (FLEET, "meters/D", "vehicles/D"):
        for span, more, bucket in (
            (1_500 * MINUTE, {}, "1m"),
            (1_500 * MINUTE + timedelta(microseconds=1), {}, "1h"),
            (MINUTE, {"maxPoints": 1}, "1m"),
            (2 * MINUTE, {"maxPoints": 1}, "1h"),
            (2 * HOUR, {"maxPoints": 1}, "1d"),
            (7 * DAY, {"maxPoints": 100_000}, "1m"),
            (7 * DAY, {"maxPoints": 168}, "1h"),
            (7 * DAY, {"maxPoints": 167}, "1d"),
            (7 * DAY, {"maxPoints": 7}, "1d"),
        ):
            for asked in ({}, {"bucket": "auto"}):
                answer = await series(history.client, what, start=first, end=first + span, **more, **asked)
                assert answer["bucket"] == bucket, (what, span, more)
        hours = await series(history.client, what, start=first - 60 * DAY, end=first + 2.5 * DAY)
        days = await series(history.client, what, start=first - 60 * DAY, end=first + 2.5 * DAY + MINUTE)
        assert (hours["bucket"], days["bucket"]) == ("1h", "1d")


async def test_max_points_does_not_bind_a_bucket_that_is_asked_for(history: History) -> None:
    asked = {"start": midnight(2), "end": midnight(1), "bucket": "1m", "maxPoints": 1}
    assert len((await series(history.client, "meters/D", **asked))["columns"]["t"]) == DENSE - len(METER_SILENT)


async def test_auto_does_not_ask_for_what_is_no_longer_kept(history: History, engine: str) -> None:
    minutes_kept = 30 if engine == "plain" else 180
    for what, days, bucket in (
        ("meters/D", minutes_kept - 1, "1m"),
        ("meters/D", minutes_kept + 1, "1h"),
        ("vehicles/D", minutes_kept - 1, "1m"),
        ("vehicles/D", minutes_kept + 1, "1h"),
        ("meters/D", 1_094, "1h"),
        ("meters/D", 1_096, "1d"),
        ("vehicles/D", 1_096, "1d"),
        (FLEET, 179, "1m"),
        (FLEET, 181, "1h"),
        (FLEET, 1_096, "1h"),
    ):
        start = datetime.now(UTC) - days * DAY
        answer = await series(history.client, what, start=start, end=start + 2 * HOUR)
        assert answer["bucket"] == bucket, (what, days)


async def test_the_default_is_a_day_by_minutes_up_to_5_minutes_from_now(history: History) -> None:
    for what in (FLEET, "meters/D", "vehicles/D"):
        before = datetime.now(UTC)
        answer = await series(history.client, what)
        start, end = (datetime.fromisoformat(answer[name]) for name in ("from", "to"))
        assert before + 5 * MINUTE <= end < datetime.now(UTC) + 6 * MINUTE
        assert end - start == DAY + MINUTE
        assert answer["bucket"] == "1m"
        named = ["id", "bucket", "from", "to", "asOf", "materializedThrough", "keptFrom", "peakKw", "columns"]
        assert [name for name in answer if name != "site"] == named
    until = await series(history.client, FLEET, hours=3, end=midnight(1))
    assert (until["from"], until["to"]) == (stamp(midnight(1) - 3 * HOUR), stamp(midnight(1)))


async def test_a_known_device_without_readings_in_the_range_has_empty_columns(history: History) -> None:
    for what in (FLEET, "meters/D", "vehicles/D"):
        for bucket in SECONDS:
            answer = await series(history.client, what, start=midnight(9), end=midnight(8), bucket=bucket)
            assert set(map(tuple, answer["columns"].values())) == {()}


async def test_a_mapped_vehicle_that_never_reported_has_empty_columns(history: History) -> None:
    await map_vehicle(history.client, "silent", "lone")
    assert (await series(history.client, "vehicles/silent"))["columns"]["t"] == []


async def test_absent_buckets_are_absent(history: History) -> None:
    first = midnight(2)
    minutes = await series(history.client, "meters/D", start=first, end=first + DAY, bucket="1m")
    assert minutes["columns"]["t"] == [
        int(seconds(first)) + 60 * minute for minute in range(DENSE) if minute not in METER_SILENT
    ]


async def test_a_stream_of_the_fleet_that_was_silent_is_null(history: History) -> None:
    start = midnight(2) + METER_SILENT.start * MINUTE
    answer = await series(history.client, FLEET, start=start, end=start + 2 * MINUTE)
    columns = answer["columns"]
    assert columns["vehicleReadings"] == [1, 1]
    for name in ("acKwh", "meterReadings"):
        assert columns[name] == [None, None]
    start = midnight(2) + VEHICLE_SILENT.start * MINUTE
    columns = (await series(history.client, FLEET, start=start, end=start + MINUTE))["columns"]
    assert (columns["meterReadings"], columns["vehicleReadings"], columns["dcKwh"]) == ([1], [None], [None])


async def test_each_answer_says_from_when_on_its_buckets_are_kept(history: History, engine: str) -> None:
    now, tolerance = datetime.now(UTC), timedelta(minutes=1)
    raw_days = {"plain": 30, "timescale": 180}[engine]
    for what, bucket, days in (
        ("vehicles/D", "1m", raw_days),
        ("meters/D", "1h", 1095),
        (FLEET, "1m", 180),
    ):
        answer = await series(history.client, what, start=midnight(2), end=midnight(1), bucket=bucket)
        assert abs(datetime.fromisoformat(answer["keptFrom"]) - (now - days * DAY)) < tolerance
    for what, bucket in (("vehicles/D", "1d"), (FLEET, "1h"), (FLEET, "1d")):
        answer = await series(history.client, what, start=midnight(2), end=midnight(1), bucket=bucket)
        assert answer["keptFrom"] is None


# Errors

NOON, LATER = "2026-05-01T12:00:00Z", "2026-05-01T13:00:00Z"
WRONG: list[tuple[dict[str, str], str, str]] = [
    ({"bucket": "5m"}, "invalid_parameter", "bucket"),
    ({"bucket": ""}, "invalid_parameter", "bucket"),
    ({"bucket": "1M"}, "invalid_parameter", "bucket"),
    ({"maxPoints": "0"}, "invalid_parameter", "maxPoints"),
    ({"maxPoints": "-1"}, "invalid_parameter", "maxPoints"),
    ({"maxPoints": "100001"}, "invalid_parameter", "maxPoints"),
    ({"maxPoints": "9" * 40}, "invalid_parameter", "maxPoints"),
    ({"maxPoints": "many"}, "invalid_parameter", "maxPoints"),
    ({"maxPoints": "1.5"}, "invalid_parameter", "maxPoints"),
    ({"hours": "abc"}, "invalid_parameter", "hours"),
    ({"from": "yesterday"}, "invalid_parameter", "from"),
    ({"to": "2026-13-01T00:00:00Z"}, "invalid_parameter", "to"),
    ({"from": "10000-01-01T00:00:00Z"}, "invalid_parameter", "from"),
    ({"from": "2026-05-01T12:00:00Z\x00"}, "invalid_parameter", "from"),
    ({"from": "2026-05-01T12:00:00"}, "invalid_time_range", "zone"),
    ({"to": "2026-05-01T12:00:00"}, "invalid_time_range", "zone"),
    ({"from": LATER, "to": NOON}, "invalid_time_range", "after"),
    ({"from": NOON, "to": NOON}, "invalid_time_range", "after"),
    ({"from": NOON, "hours": "24"}, "invalid_time_range", "`hours`"),
    ({"hours": "0"}, "invalid_time_range", "`hours`"),
    ({"hours": "9" * 30}, "invalid_time_range", "`hours`"),
    ({"hours": "2635200"}, "invalid_time_range", "1900"),
    ({"from": "0001-01-01T00:00:00Z", "to": NOON}, "invalid_time_range", "1900"),
    ({"from": "0001-01-01T00:00:00+14:00", "to": NOON}, "invalid_time_range", "calendar"),
    ({"from": NOON, "to": "9999-12-31T23:59:59-14:00"}, "invalid_time_range", "calendar"),
    ({"from": NOON, "to": "2200-01-01T00:00:01Z"}, "invalid_time_range", "2200"),
    ({"hours": "1700", "bucket": "1m"}, "invalid_time_range", "100,000"),
    ({"from": "1950-01-01T00:00:00Z", "to": NOON, "bucket": "1h"}, "invalid_time_range", "100,000"),
    ({"from": "1900-01-01T00:00:00Z", "to": "2200-01-01T00:00:00Z", "bucket": "1d"}, "invalid_time_range", "100,000"),
    ({"from": "2020-01-01T00:00:00Z", "to": NOON}, "invalid_time_range", "maxPoints"),
    ({"from": "2026-04-29T00:00:00Z", "to": NOON, "maxPoints": "2"}, "invalid_time_range", "maxPoints"),
]


async def test_wrong_parameters_are_a_400_that_names_what_is_wrong(history: History) -> None:
    for what in (FLEET, "meters/D", "vehicles/D"):
        for query, code, named in WRONG:
            for accept in ("application/json", "text/csv"):
                answer = await history.client.get(path_of(what), params=query, headers={"Accept": accept})
                assert answer.json().get("code") == code, (query, answer.text)
                assert named in problem(answer, 400, code)["detail"], (query, answer.text)


async def test_the_whole_calendar_is_answered_by_days_as_far_as_an_answer_may_be_long(history: History) -> None:
    start, end = datetime(1930, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
    for asked in ({"bucket": "1d"}, {"maxPoints": 100_000}):
        answer = await series(history.client, "meters/D", start=start, end=end, **asked)
        assert (answer["bucket"], answer["columns"]["t"]) == ("1d", [int(seconds(midnight(2)))])
        assert (answer["from"], answer["to"]) == (stamp(start), stamp(end))


async def test_an_unknown_device_is_a_404(history: History) -> None:
    for kind in ("meters", "vehicles"):
        for name in ("unknown", "guest" if kind == "meters" else "lone", "d", "d ", "D%", "_"):
            for query in ({}, {"bucket": "1d"}, {"from": stamp(midnight(2000)), "to": stamp(midnight(1999))}):
                answer = await history.client.get(path_of(f"{kind}/{quote(name, safe='')}"), params=query)
                assert kind[:-1] in problem(answer, 404, "unknown_device")["detail"]


async def test_odd_ids_in_the_path_are_unknown_devices(history: History) -> None:
    for kind in ("meters", "vehicles"):
        for name in ("\u20ac", "a b", "x" * 10_000, "' OR 1=1 --", "%", "\U0001f600", "{}", "\n", '"'):
            answer = await history.client.get(path_of(f"{kind}/{quote(name, safe='')}"))
            problem(answer, 404, "unknown_device")
        problem(await history.client.get(path_of(f"{kind}/%FF%FE")), 404, "unknown_device")
        problem(await history.client.get(path_of(f"{kind}/a%00b")), 400, "invalid_parameter")
        for slashes in ("..", "a/b", ""):
            answer = await history.client.get(path_of(f"{kind}/{quote(slashes, safe='')}"))
            assert answer.status_code == httpx.codes.NOT_FOUND
            problem(answer, 404, answer.json()["code"])


async def test_a_plus_that_is_not_escaped_is_refused_not_taken_for_another_time(history: History) -> None:
    first = midnight(2).strftime("%Y-%m-%dT%H:%M:%S")
    for what in (FLEET, "meters/D", "vehicles/D"):
        answer = await history.client.get(f"{path_of(what)}?from={first}%2B02:00&to={first}-03:00")
        assert answer.status_code == httpx.codes.OK
        assert datetime.fromisoformat(answer.json()["from"]) == midnight(2) - 2 * HOUR
        answer = await history.client.get(f"{path_of(what)}?from={first}+02:00&to={first}-03:00")
        assert "from" in problem(answer, 400, "invalid_parameter")["detail"]


# CSV


async def as_csv(client: httpx.AsyncClient, what: str, accept: str = "text/csv", **query: Any) -> list[list[str]]:
    answer = await client.get(path_of(what), params=query, headers={"Accept": accept})
    assert answer.status_code == httpx.codes.OK, answer.text
    assert answer.headers["content-type"].partition(";")[0] == "text/csv"
    assert answer.headers["vary"] == "Accept"
    rows = list(csv.reader(answer.text.splitlines(), strict=True))
    assert answer.text.count("\r\n") == len(rows)
    return rows


def number(cell: str) -> float | None:
    return float(cell) if cell else None


async def test_csv_has_the_numbers_of_the_json_answer(history: History) -> None:
    for what, bucket in (
        *((what, "1m") for what in (FLEET, "meters/D", "vehicles/D", "vehicles/P1")),
        *((what, "1h") for what in (FLEET, "meters/D", "vehicles/D")),
    ):
        query = {"from": stamp(midnight(4)), "to": stamp(midnight(1)), "bucket": bucket}
        answer = await history.client.get(path_of(what), params=query)
        assert answer.headers["vary"] == "Accept"
        columns = answer.json()["columns"]
        header, *rows = await as_csv(history.client, what, **query)
        assert header == ["time", *list(columns)[1:]]
        assert len(rows) == len(columns["t"]) > (1_000 if bucket == "1m" and "P1" not in what else 0)
        for row, *values in zip(rows, *columns.values(), strict=True):
            assert row[0] == datetime.fromtimestamp(values[0], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            assert [number(cell) for cell in row[1:]] == values[1:]
        assert any("" in row for row in rows) or (bucket == "1h" and what != "vehicles/D")


async def test_csv_says_as_whose_file_it_is_to_be_saved_and_how_fresh_it_is(history: History) -> None:
    for what, name in ((FLEET, "fleet-1d.csv"), ("meters/D", "D-1d.csv"), ("vehicles/D", "D-1d.csv")):
        answer = await history.client.get(path_of(what), params={"bucket": "1d"}, headers={"Accept": "text/csv"})
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
        as_of = datetime.fromisoformat(answer.headers["wattline-as-of"])
        assert timedelta(0) <= datetime.now(UTC) - as_of < timedelta(minutes=5)


async def test_csv_of_nothing_is_a_header(history: History) -> None:
    query = {"from": stamp(midnight(9)), "to": stamp(midnight(8)), "bucket": "1h"}
    for what in (FLEET, "meters/D", "vehicles/D"):
        ((first, *_),) = await as_csv(history.client, what, **query)
        assert first == "time"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("application/*", "application/json"),
        ("application/xml", "application/json"),
        ("", "application/json"),
        ("text/csv;q=0.5, application/json", "application/json"),
        ("application/json, text/csv", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "application/json"),
        (";;;, /, text", "application/json"),
        ("text/csv", "text/csv"),
        ("TEXT/CSV", "text/csv"),
        ("text/*", "text/csv"),
        ("text/csv;charset=utf-8", "text/csv"),
        ("text/csv; header=present", "text/csv"),
        ("application/json;q=0.5, text/csv", "text/csv"),
        ("text/csv, */*;q=0.1", "text/csv"),
        ("application/xml, text/csv;q=0.2", "text/csv"),
        ("text/csv;q=0, application/json;q=0.1", "application/json"),
        ("text/csv;q=high", "text/csv"),
    ],
)
async def test_accept_chooses_between_json_and_csv(history: History, accept: str | None, media_type: str) -> None:
    headers = {} if accept is None else {"Accept": accept}
    answer = await history.client.get(path_of("meters/D"), params={"bucket": "1d"}, headers=headers)
    assert answer.status_code == httpx.codes.OK, answer.text
    assert answer.headers["content-type"].partition(";")[0] == media_type


# Freshness


async def instants(client: httpx.AsyncClient, what: str, bucket: str) -> tuple[Any, Any]:
    answer = await series(client, what, hours=72, bucket=bucket)
    found = (answer[name] for name in ("asOf", "materializedThrough"))
    as_of, through = (None if instant is None else datetime.fromisoformat(instant) for instant in found)
    return as_of, through


@on_timescale
async def test_before_the_first_refresh_of_all_that_it_is_made_of_a_series_claims_no_freshness(
    connection: psycopg.Connection, database_url: str
) -> None:
    readings: list[Reading] = [make(midnight(1)) for make in (meter_reading, vehicle_reading)]
    await store(database_url, *readings)
    async with service(Settings(database_url=database_url)) as client:
        for what in KINDS:
            for bucket in SECONDS:
                assert await instants(client, what, bucket) == (None, None)
        await asyncio.to_thread(refresh_aggregates, database_url, None, None)
        for source, refreshed in {
            "meter_minute": {(METER, "1h"), (METER, "1d"), (FLEET, "1m"), (FLEET, "1h"), (FLEET, "1d")},
            "vehicle_hour": {(METER, "1m"), (METER, "1h"), (METER, "1d"), (VEHICLE, "1m"), (VEHICLE, "1d"),
                             (FLEET, "1m"), (FLEET, "1h"), (FLEET, "1d")},
            "fleet_vehicle_hour": {(METER, "1m"), (METER, "1h"), (METER, "1d"), (VEHICLE, "1m"), (VEHICLE, "1h"),
                                   (VEHICLE, "1d"), (FLEET, "1m")},
        }.items():  # fmt: skip
            connection.execute("DELETE FROM cagg_refreshed WHERE name = %s", [source])
            known = {
                (what, bucket)
                for what in KINDS
                for bucket in SECONDS
                if (await instants(client, what, bucket))[0] is not None
            }
            assert known == refreshed
            await asyncio.to_thread(refresh_aggregates, database_url, None, None)


COUNTS = {METER: "readings", VEHICLE: "readings", FLEET: "meterReadings"}


async def test_after_the_next_refresh_a_late_reading_is_in_and_as_of_says_so(database_url: str, engine: str) -> None:
    at, both = midnight(2) + timedelta(hours=10, seconds=7), (meter_reading, vehicle_reading)
    until = at + timedelta(seconds=1)
    async with service(Settings(database_url=database_url)) as client:
        await store(database_url, *[make(at - DAY) for make in both], *[make(datetime.now(UTC)) for make in both])
        await asyncio.to_thread(refresh_aggregates, database_url, None, None)
        receipt = await store(database_url, *[make(at) for make in both])
        for what, count in COUNTS.items():
            for bucket in SECONDS:
                answer = await series(client, what, start=at, end=until, bucket=bucket)
                is_in = answer["columns"][count] == [1]
                assert is_in or engine == "timescale"
                assert is_in or datetime.fromisoformat(answer["asOf"]) < receipt.committed_at
        called = datetime.now(UTC)
        await asyncio.to_thread(refresh_aggregates, database_url, None, None)
        for what, count in COUNTS.items():
            for bucket in SECONDS:
                answer = await series(client, what, start=at, end=until, bucket=bucket)
                assert answer["columns"][count] == [1]
                as_of, through = await instants(client, what, bucket)
                assert called - timedelta(seconds=5.5) <= as_of <= datetime.now(UTC)
                # A vehicle's efficiency is made of minutes, whatever the bucket is.
                assert touched(at, until, "1m")[1] <= seconds(through) <= seconds(datetime.now(UTC))
                # Readings newer than the materialised part are in the answer all the same.
                assert (await series(client, what, hours=1, bucket=bucket))["columns"]["t"]
