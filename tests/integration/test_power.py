"""Power over HTTP: the energy of each reading is spread over the time in which it flowed, whatever the order."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from fractions import Fraction
from random import Random
from typing import Any

import httpx
import psycopg
import pytest

from app.ops.refresh import refresh_aggregates
from app.settings import Settings
from app.telemetry.reading import MeterReading
from tests.fixtures.readings import Reading, meter_reading, midnight, store, vehicle_reading
from tests.fixtures.sending import stamp
from tests.fixtures.service import service

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
SECOND_US, MINUTE_US = 1_000_000, 60_000_000
FIVE = 300


async def series(client: httpx.AsyncClient, what: str, start: datetime, end: datetime, bucket: str) -> dict[str, Any]:
    query = {"from": stamp(start), "to": stamp(end), "bucket": bucket}
    answer = await client.get(f"/v1/analytics/{what}/series", params=query)
    assert answer.status_code == httpx.codes.OK, answer.text
    document: dict[str, Any] = answer.json()
    return document


def by_time(answer: dict[str, Any], name: str) -> dict[int, float]:
    """Returns a column's values that are known, by the start of their bucket."""
    columns = answer["columns"]
    return {t: value for t, value in zip(columns["t"], columns[name], strict=True) if value is not None}


def charging(
    random: Random, name: str, start: datetime, minutes: int, *, every: float, kilowatt: float
) -> Iterator[Reading]:
    """Yields the readings of a meter and its vehicle; each falls silent now and then, and its next reading catches up.

    The vehicle gets 0.9 of the meter's energy.
    """
    for make, share in ((meter_reading, 1.0), (vehicle_reading, 0.9)):
        at = previous = start + timedelta(seconds=random.uniform(0, every))
        ids: Any = {"meter_id": name} if make is meter_reading else {"meter_id": name, "vehicle_id": name}
        while at < start + minutes * MINUTE:
            kwh = kilowatt * share * ((at - previous) / HOUR or every / 3600)
            yield make(at, kwh, **ids)
            previous, silent = at, random.random() < 0.02
            at += timedelta(seconds=every * random.uniform(0.95, 1.05) + silent * random.uniform(300, 6_000))


def fleet(seed: int, start: datetime, minutes: int) -> list[Reading]:
    random = Random(seed)
    return [
        reading
        for number, every in enumerate((15, 60, 60, 60, 90, 180, 300, 600, 900))
        for reading in charging(random, f"F{number}", start, minutes, every=every, kilowatt=random.choice([4, 11, 22]))
    ]


def spread(readings: list[Reading], *, is_meter: bool) -> dict[int, Fraction]:
    """Returns the milliwatt-hours of each five minutes: of a reading long after another, over the time between them."""
    devices: defaultdict[str, defaultdict[tuple[int, str | None], list[tuple[int, int]]]]
    devices = defaultdict(lambda: defaultdict(list))
    for reading in readings:
        if isinstance(reading, MeterReading) == is_meter:
            energy = reading.ac_milliwh if isinstance(reading, MeterReading) else reading.dc_milliwh
            device = reading.meter_id if isinstance(reading, MeterReading) else reading.vehicle_id
            minute = reading.ts_us // MINUTE_US, None if is_meter else reading.meter_id
            devices[device or ""][minute].append((reading.ts_us, energy or 0))
    found: defaultdict[int, Fraction] = defaultdict(Fraction)
    for minutes in devices.values():
        previous = None
        for rows in sorted(minutes.values(), key=max):
            first, last, energy = min(rows)[0], max(rows)[0], sum(each for _, each in rows)
            at = last // SECOND_US // FIVE * FIVE
            if previous is not None and first - previous <= 4 * 3600 * SECOND_US:
                for bucket in range(previous // SECOND_US // FIVE * FIVE, at + 1, FIVE):
                    inside = min(last, (bucket + FIVE) * SECOND_US) - max(previous, bucket * SECOND_US)
                    found[bucket] += Fraction(energy * max(0, inside), last - previous)
            else:
                found[at] += 0
            previous = last
    return found


async def test_the_fleet_s_power_is_that_of_energy_spread_over_the_time_in_which_it_flowed(database_url: str) -> None:
    start = midnight(3) + 5 * HOUR + 7 * MINUTE
    end, readings = start + 9 * HOUR, fleet(7, start, 540)
    Random(8).shuffle(readings)
    async with service(Settings(database_url=database_url)) as client:
        for part in range(3):
            await store(database_url, *readings[part::3])
            await asyncio.to_thread(refresh_aggregates, database_url, None, None)
        minutes = await series(client, "fleet", start - HOUR, end + HOUR, "1m")
        hours = await series(client, "fleet", start - HOUR, end + HOUR, "1h")
    for side, name in (("ac", "acKw"), ("dc", "dcKw")):
        energies, powers = spread(readings, is_meter=side == "ac"), by_time(minutes, name)
        assert len(powers) > 480
        for t, power in powers.items():
            assert power == pytest.approx(float(energies[t // FIVE * FIVE]) * 12 / 1e6, abs=1e-3)
        demands = [
            sum(energies[t + FIVE * part] for part in range(3)) * 4 / 1_000_000
            for t in energies
            if all(t + FIVE * part in {at // FIVE * FIVE for at in powers} for part in range(3))
        ]
        assert minutes["peakKw"][side] == pytest.approx(float(max(demands)), abs=1e-3)
        assert hours["peakKw"][side] is None
        by_hour = by_time(hours, name)
        assert len(by_hour) >= 8
        for t, power in by_hour.items():
            total = sum(energies[at] for at in range(t, t + 3600, FIVE))
            assert power == pytest.approx(float(total) / 1e6, abs=1e-3)


async def test_energy_that_catches_up_makes_no_peak_in_any_series(database_url: str) -> None:
    start, kwh = midnight(2) + 10 * HOUR, 0.2
    silent = range(60, 91)
    meter = [meter_reading(start + at * MINUTE, kwh) for at in range(180) if at not in silent]
    meter[60] = meter_reading(start + 91 * MINUTE, kwh * 32)
    vehicle = [vehicle_reading(start + at * MINUTE, 0.9 * kwh) for at in range(180)]
    lone = meter_reading(start + 30 * MINUTE, 0.48, meter_id="lone")
    async with service(Settings(database_url=database_url)) as client:
        await store(database_url, *meter, *vehicle, lone)
        await asyncio.to_thread(refresh_aggregates, database_url, None, None)
        for bucket, least in (("1m", 140), ("1h", 3)):
            of = [await series(client, what, start, start + 3 * HOUR, bucket) for what in ("meters/M1", "vehicles/V1")]
            powers = [by_time(answer, "powerKw") for answer in of]
            assert [len(power) >= least for power in powers] == [True, True]
            for power, truth in zip(powers, (12, 10.8), strict=True):
                assert [*power.values()] == pytest.approx([truth] * len(power), rel=0.01)
            if bucket == "1m":
                assert [answer["peakKw"] for answer in of] == [pytest.approx(12), pytest.approx(10.8)]
        fleet = await series(client, "fleet", start, start + 3 * HOUR, "1m")
        powers_of_fleet = [*by_time(fleet, "acKw").values()]
        assert powers_of_fleet == pytest.approx([12] * len(powers_of_fleet), rel=0.01)
        assert fleet["peakKw"] == {"ac": pytest.approx(12), "dc": pytest.approx(10.8)}
        alone = await series(client, "meters/lone", start, start + HOUR, "1m")
        assert alone["columns"]["acKwh"] == [0.48]
        assert alone["columns"]["powerKw"] == [None]
        assert alone["peakKw"] is None


async def test_dc_is_never_above_ac_though_another_number_of_readings_falls_into_each_minute(
    database_url: str,
) -> None:
    random, start = Random(11), midnight(2) + 10 * HOUR
    readings: list[Reading] = []
    for number in range(12):
        for make, share in ((meter_reading, 1.0), (vehicle_reading, 0.9)):
            ids: Any = {"meter_id": f"{number}"} | ({} if make is meter_reading else {"vehicle_id": f"{number}"})
            at = start + timedelta(seconds=random.uniform(0, 60))
            while at < start + 2 * HOUR:
                every = timedelta(seconds=random.gauss(60, 8))
                at += every
                readings.append(make(at, 11 * share * (every / HOUR), **ids))
    async with service(Settings(database_url=database_url)) as client:
        await store(database_url, *readings)
        await asyncio.to_thread(refresh_aggregates, database_url, None, None)
        answer = await series(client, "fleet", start, start + 2 * HOUR, "1m")
    kwh, kilowatt = ([by_time(answer, f"{side}{unit}") for side in ("ac", "dc")] for unit in ("Kwh", "Kw"))
    assert any(kwh[1][t] > kwh[0][t] for t in kwh[0].keys() & kwh[1].keys())
    assert len(kilowatt[0]) > 100
    assert all(kilowatt[1][t] < kilowatt[0][t] for t in kilowatt[0])
    assert answer["peakKw"] == {"ac": pytest.approx(132, rel=0.001), "dc": pytest.approx(118.8, rel=0.001)}


async def test_power_is_null_until_it_is_known_when_the_energy_of_all_readings_flowed(
    database_url: str, connection: psycopg.Connection
) -> None:
    start = midnight(1)
    readings = [meter_reading(start + at * MINUTE, 0.2) for at in range(120) if at not in range(50, 70)]
    hold, release = (f"SELECT pg_advisory_{verb}(hashtext('wattline spread'))".encode() for verb in ("lock", "unlock"))

    async def known_minutes() -> list[float]:
        await asyncio.to_thread(refresh_aggregates, database_url, None, None)
        answer = await series(client, "fleet", start, start + 2 * HOUR, "1m")
        return [(t - start.timestamp()) / 60 for t in by_time(answer, "acKw")]

    async with service(Settings(database_url=database_url)) as client:
        connection.execute(hold)
        await store(database_url, *readings)
        assert await known_minutes() == []
        connection.execute(release)
        there = [at for at in range(120) if at not in range(50, 70)]
        assert await known_minutes() == there[5:-5]
        # The late reading divides the silence: what ends it flowed in the second part of it.
        connection.execute(hold)
        await store(database_url, meter_reading(start + 60.5 * MINUTE, 0.01))
        assert await known_minutes() == there[5:-5]
        connection.execute(release)
        assert await known_minutes() == sorted([*there[5:-5], 60])
        answer = await series(client, "fleet", start + HOUR, start + HOUR + MINUTE, "1m")
        flowed = 0.01 * 0.5 / 11.5 + 0.2 * 4.5 / 9.5
        assert answer["columns"]["acKw"] == [pytest.approx(12 * flowed, abs=1e-4)]
