"""Order, splitting and repetition change nothing: only the distinct good readings decide what is stored and answered.

Readings that contradict each other are not part of this law: the first of them wins (test_writer.py).
"""

import asyncio
import itertools
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import httpx
import msgspec
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.analytics.efficiency.evidence import Sides, pair_each
from app.analytics.efficiency.pairs import evidence_between
from app.settings import Settings
from app.telemetry.reading import MeterReading, VehicleReading
from tests.fixtures.service import service
from tests.property.brute_force import MINUTE_US, Performance, VehicleMeter, performance
from tests.property.brute_force import Fleet as SlowFleet
from tests.property.test_counter import columns

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Reading = MeterReading | VehicleReading

METERS = ["m1", "m2"]
VEHICLES = ["v1", "v2", "v3"]

# Minutes from now. The oldest are as old as readings may be, less the time that the test takes.
STARTS = {
    "now": -20,
    "across the border of late": -18,
    "hours ago": -200,
    "a day ago": -24 * 60,
    "oldest": -7 * 24 * 60 + 10,
}

BAD = [
    (5, "malformed"),
    (None, "malformed"),
    ("x", "malformed"),
    ({"meterId": "m1", "timestamp": "yesterday", "kwhConsumedAc": 1}, "malformed"),
    ({"meterId": "m1", "timestamp": "2020-01-01T00:00:00Z"}, "too_old"),
    ({"meterId": "m1", "timestamp": "2999-01-01T00:00:00Z", "kwhConsumedAc": 1}, "in_the_future"),
    ({"vehicleId": "v1", "timestamp": "2999-01-01T00:00:00", "kwhDeliveredDc": 1}, "timestamp_without_zone"),
    ({"vehicleId": "v 1", "timestamp": "2999-01-01T00:00:00Z", "kwhDeliveredDc": 1}, "invalid_id"),
    ({"meterId": "m1", "kwhConsumedAc": 1}, "missing_field"),
]


@dataclass(frozen=True)
class Mapping:
    """A mapping from the beginning of time, or from so many minutes after the start."""

    vehicle: str
    meter: str
    minute: int | None


@dataclass(frozen=True)
class Example:
    """Distinct good readings, with instants counted from the start; bad ones; and the way they are sent."""

    start: str
    good: list[Reading]
    bad: list[tuple[Any, str]]
    mappings: list[Mapping]
    times: list[int]
    clients: int
    seed: int


def some_or_many(readings: st.SearchStrategy[Any], device: str) -> st.SearchStrategy[list[Any]]:
    """Draws a few readings or many: left alone, hypothesis prefers lists so short that hardly a minute is paired."""

    def key(reading: Any) -> object:
        return getattr(reading, device), reading.ts_us

    return st.lists(readings, unique_by=key, max_size=5) | st.lists(readings, unique_by=key, min_size=8, max_size=30)


instants = st.builds(
    lambda minute, offset_us: minute * MINUTE_US + offset_us,
    st.integers(0, 20),
    st.sampled_from([0, 1, 30_000_000, MINUTE_US - 1]),
)
energies = st.one_of(st.just(0), st.integers(0, 1_000_000))
meter_readings = some_or_many(
    st.builds(
        MeterReading,
        meter_id=st.sampled_from(METERS),
        ts_us=instants,
        ac_milliwh=energies,
        voltage_centiv=st.none() | st.integers(0, 100_000),
    ),
    "meter_id",
)
vehicle_readings = some_or_many(
    st.builds(
        VehicleReading,
        vehicle_id=st.sampled_from(VEHICLES),
        ts_us=instants,
        dc_milliwh=energies,
        meter_id=st.sampled_from([*METERS, None, None]),
        soc_centipercent=st.none() | st.integers(0, 10_000),
        battery_temp_centic=st.none() | st.integers(-6_000, 15_000),
    ),
    "vehicle_id",
)
mappings = st.lists(
    st.builds(Mapping, st.sampled_from(VEHICLES), st.sampled_from(METERS), st.none() | st.integers(0, 20)),
    unique_by=lambda mapping: mapping.vehicle,
)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    good: list[Reading] = draw(meter_readings) + draw(vehicle_readings)
    bad = draw(st.lists(st.sampled_from(BAD), max_size=4))
    sent = len(good) + len(bad)
    return Example(
        draw(st.sampled_from(list(STARTS))),
        good,
        bad,
        draw(mappings),
        draw(st.lists(st.sampled_from([1, 1, 1, 2, 3]), min_size=sent, max_size=sent)),
        draw(st.integers(1, 4)),
        draw(st.integers(0, 2**32)),
    )


class Fleet:
    """An example's devices under names of their own, with its readings at their real times."""

    def __init__(self, number: int, example: Example) -> None:
        self.prefix = f"e{number}."
        now_minute = time.time_ns() // 1000 // MINUTE_US
        self.start_us = (now_minute + STARTS[example.start]) * MINUTE_US
        self.example = example
        self.good = [self._moved(reading) for reading in example.good]

    def _moved(self, reading: Reading) -> Reading:
        changes: dict[str, Any] = {"ts_us": self.start_us + reading.ts_us}
        if reading.meter_id is not None:
            changes["meter_id"] = self.prefix + reading.meter_id
        if isinstance(reading, VehicleReading):
            changes["vehicle_id"] = self.prefix + reading.vehicle_id
        return msgspec.structs.replace(reading, **changes)

    @property
    def meters(self) -> list[MeterReading]:
        return [reading for reading in self.good if isinstance(reading, MeterReading)]

    @property
    def vehicles(self) -> list[VehicleReading]:
        return [reading for reading in self.good if isinstance(reading, VehicleReading)]

    @property
    def window(self) -> tuple[datetime, datetime]:
        return moment(self.start_us - 5 * MINUTE_US), moment(self.start_us + 30 * MINUTE_US)

    def batches(self) -> list[list[Any]]:
        """Returns every reading as often as the example says, in any order, in batches of any size."""
        random = Random(self.example.seed)
        items = [wire(reading) for reading in self.good] + [bad for bad, _ in self.example.bad]
        sent = [item for item, times in zip(items, self.example.times, strict=True) for _ in range(times)]
        random.shuffle(sent)
        cuts = sorted(random.choices(range(len(sent) + 1), k=random.randrange(8)))
        batches = [sent[first:last] for first, last in itertools.pairwise([0, *cuts, len(sent)])]
        return [batch for batch in batches if batch]

    def rejected(self) -> Counter[str]:
        codes: Counter[str] = Counter()
        for (_, code), times in zip(self.example.bad, self.example.times[len(self.good) :], strict=True):
            codes[code] += times
        return codes

    def mappings(self) -> list[VehicleMeter]:
        return [
            (
                self.prefix + mapping.vehicle,
                self.prefix + mapping.meter,
                -math.inf if mapping.minute is None else self.start_us + mapping.minute * MINUTE_US,
                math.inf,
            )
            for mapping in self.example.mappings
        ]

    def performance(self, vehicle: str) -> Performance:
        start, end = self.window
        return performance(
            vehicle, self.meters, self.vehicles, self.mappings(), from_us=microseconds(start), to_us=microseconds(end)
        )


def moment(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)


def microseconds(instant: datetime) -> int:
    return (instant - EPOCH) // timedelta(microseconds=1)


def wire(reading: Reading) -> dict[str, Any]:
    """Returns the reading as a client writes it."""
    timestamp = moment(reading.ts_us).isoformat()
    if isinstance(reading, MeterReading):
        voltage = None if reading.voltage_centiv is None else reading.voltage_centiv / 100
        energy = (reading.ac_milliwh or 0) / 1_000_000
        return {"meterId": reading.meter_id, "timestamp": timestamp, "kwhConsumedAc": energy, "voltage": voltage}
    written: dict[str, Any] = {
        "vehicleId": reading.vehicle_id,
        "timestamp": timestamp,
        "kwhDeliveredDc": (reading.dc_milliwh or 0) / 1_000_000,
    }
    if reading.meter_id is not None:
        written["meterId"] = reading.meter_id
    if reading.soc_centipercent is not None:
        written["soc"] = reading.soc_centipercent / 100
    if reading.battery_temp_centic is not None:
        written["batteryTemp"] = reading.battery_temp_centic / 100
    return written


async def send_all(client: httpx.AsyncClient, fleet: Fleet) -> list[dict[str, Any]]:
    """Sends all batches by several clients at once; returns the receipts."""
    batches = fleet.batches()

    async def send(batches: Sequence[list[Any]]) -> list[dict[str, Any]]:
        return [await receipt_of(client, batch) for batch in batches]

    clients = fleet.example.clients
    received = await asyncio.gather(*(send(batches[n::clients]) for n in range(clients)))
    return [receipt for receipts in received for receipt in receipts]


async def receipt_of(client: httpx.AsyncClient, batch: list[Any]) -> dict[str, Any]:
    answer = await client.post("/v1/telemetry", json=batch)
    receipt: dict[str, Any] = answer.json()
    all_rejected = len(receipt["rejected"]) == len(batch)
    assert answer.status_code == (422 if all_rejected else 200), answer.text
    assert receipt["received"] == len(batch)
    assert receipt["received"] == receipt["inserted"] + receipt["duplicates"] + len(receipt["rejected"])
    return receipt


def check_receipts(fleet: Fleet, receipts: list[dict[str, Any]]) -> None:
    assert sum(receipt["inserted"] for receipt in receipts) == len(fleet.good)
    assert sum(receipt["conflicts"] for receipt in receipts) == 0
    assert Counter(bad["code"] for receipt in receipts for bad in receipt["rejected"]) == fleet.rejected()
    ages = [time.time_ns() // 1000 - reading.ts_us for reading in fleet.good]
    late = sum(receipt["late"] for receipt in receipts)
    assert sum(age > 11 * MINUTE_US for age in ages) <= late <= sum(age > 10 * MINUTE_US for age in ages)


METER_ROWS = """
    SELECT external_id, ts, ac_milliwh, voltage_centiv
    FROM {} AS stored JOIN meter ON id = meter_id
    WHERE external_id LIKE %s
"""
VEHICLE_ROWS = """
    SELECT vehicle.external_id, ts, dc_milliwh, meter.external_id, soc_centipercent, battery_temp_centic
    FROM {} AS stored JOIN vehicle ON vehicle.id = vehicle_id LEFT JOIN meter ON meter.id = stored.meter_id
    WHERE vehicle.external_id LIKE %s
"""


class Stored:
    """The rows that the database holds of a fleet."""

    def __init__(self, connection: psycopg.Connection, fleet: Fleet) -> None:
        self.connection = connection
        self.devices = fleet.prefix + "%"

    def meters(self, table: str) -> list[MeterReading]:
        rows = self.connection.execute(METER_ROWS.format(table).encode(), [self.devices])
        return [MeterReading(name, microseconds(ts), *values) for name, ts, *values in rows]

    def vehicles(self, table: str) -> list[VehicleReading]:
        rows = self.connection.execute(VEHICLE_ROWS.format(table).encode(), [self.devices])
        return [VehicleReading(name, microseconds(ts), *values) for name, ts, *values in rows]


def same(found: Sequence[object], expected: Sequence[object]) -> bool:
    """Returns True when both have the same items, each as often."""
    return Counter(found) == Counter(expected)


def newest(readings: Iterable[Any], device: str) -> list[Any]:
    ordered = sorted(readings, key=lambda reading: reading.ts_us)
    return list({getattr(reading, device): reading for reading in ordered}.values())


def check_rows(connection: psycopg.Connection, fleet: Fleet) -> None:
    stored = Stored(connection, fleet)
    assert same(stored.meters("meter_reading"), fleet.meters)
    assert same(stored.vehicles("vehicle_reading"), fleet.vehicles)
    assert same(stored.meters("meter_state"), newest(fleet.meters, "meter_id"))
    assert same(stored.vehicles("vehicle_state"), newest(fleet.vehicles, "vehicle_id"))


def summed(readings: Iterable[Any], key: Callable[[Any], tuple[Any, ...]], *fields: str) -> list[tuple[Any, ...]]:
    """Returns for each key: the key, then sum and count of each field; the sum of nothing is None."""
    by_key = defaultdict(list)
    for reading in readings:
        by_key[key(reading)].append(reading)
    rows = []
    for of_key, group in by_key.items():
        row = [*of_key]
        for field in fields:
            values = [value for reading in group if (value := getattr(reading, field)) is not None]
            row += [sum(values) if values else None, len(values)]
        rows.append(tuple(row))
    return rows


def with_instants(readings: list[Any], key: Callable[[Any], tuple[Any, ...]], *fields: str) -> list[tuple[Any, ...]]:
    """Returns the rows of summed(), each with the instants of the first and the last reading of its key."""
    by_key = defaultdict(list)
    for reading in readings:
        by_key[key(reading)].append(moment(reading.ts_us))
    rows = summed(readings, key, *fields)
    return [(*row, min(instants), max(instants)) for row, instants in zip(rows, by_key.values(), strict=True)]


def minute_of(reading: Reading) -> datetime:
    return moment(reading.ts_us // MINUTE_US * MINUTE_US)


def check_minutes(connection: psycopg.Connection, fleet: Fleet) -> None:
    parameters = [*fleet.window, fleet.prefix + "%"]
    meter_minutes = connection.execute(
        """
        SELECT external_id, bucket, ac_milliwh, readings, voltage_centiv_sum, voltage_readings, first_ts, last_ts
        FROM meter_minute(%s, %s) JOIN meter ON id = meter_id
        WHERE external_id LIKE %s
        """,
        parameters,
    )
    vehicle_minutes = connection.execute(
        """
        SELECT vehicle.external_id, bucket, meter.external_id, dc_milliwh, readings, soc_centipercent_sum, soc_readings,
               battery_temp_centic_sum, battery_temp_readings, first_ts, last_ts
        FROM vehicle_minute(%s, %s) AS minute
        JOIN vehicle ON vehicle.id = vehicle_id
        LEFT JOIN meter ON meter.id = minute.meter_id
        WHERE vehicle.external_id LIKE %s
        """,
        parameters,
    )
    meter_fields = ("ac_milliwh", "voltage_centiv")
    vehicle_fields = ("dc_milliwh", "soc_centipercent", "battery_temp_centic")
    assert same(
        meter_minutes.fetchall(), with_instants(fleet.meters, lambda r: (r.meter_id, minute_of(r)), *meter_fields)
    )
    assert same(
        vehicle_minutes.fetchall(),
        with_instants(fleet.vehicles, lambda r: (r.vehicle_id, minute_of(r), r.meter_id), *vehicle_fields),
    )


def check_fleet_minutes(connection: psycopg.Connection, fleets: list[Fleet]) -> None:
    meters = [reading for fleet in fleets for reading in fleet.meters]
    vehicles = [reading for fleet in fleets for reading in fleet.vehicles]
    ac = {minute: sums for minute, *sums in summed(meters, lambda r: (minute_of(r),), "ac_milliwh")}
    dc = {minute: sums for minute, *sums in summed(vehicles, lambda r: (minute_of(r),), "dc_milliwh")}
    silent = [None, None]
    expected = [(minute, *ac.get(minute, silent), *dc.get(minute, silent)) for minute in ac.keys() | dc.keys()]
    found = connection.execute("SELECT * FROM fleet_minute(now() - INTERVAL '8 days', now() + INTERVAL '1 hour')")
    assert same(found.fetchall(), expected)


async def check_performance(client: httpx.AsyncClient, fleet: Fleet) -> None:
    start, end = fleet.window
    for name in VEHICLES:
        expected = fleet.performance(fleet.prefix + name)
        answer = await client.get(
            f"/v1/analytics/performance/{fleet.prefix + name}",
            params={"from": start.isoformat(), "to": end.isoformat()},
        )
        if not expected.data_points:
            assert (answer.status_code, answer.json()["code"]) == (404, "no_charging_data")
            continue
        assert answer.status_code == 200, answer.text
        for member, number in expected.answer().items():
            found = answer.json()[member]
            assert found == number or math.isclose(found, number, rel_tol=1e-12), (name, member, found, number)


@given(examples())
@settings(max_examples=300)
def test_minutes_pair_as_the_slow_way_says_where_instants_coincide(example: Example) -> None:
    fleet = Fleet(0, example)
    slow = SlowFleet(fleet.meters, fleet.vehicles, fleet.mappings(), 5)
    number = {name: position for position, name in enumerate(sorted(slow.vehicles))}
    sides = Sides(
        {number[name]: columns(minutes) for name, minutes in slow.vehicle_minutes.items()},
        {slow.number[name]: columns(minutes) for name, minutes in slow.meter_minutes.items()},
        {number[name]: history for name, history in slow.mappings.items() if name in number},
        {},
        {},
        {meter: {*number.values()} for meter in slow.number.values()},
    )
    pairs = pair_each(number.values(), sides, Settings())
    window = fleet.start_us - 5 * MINUTE_US, fleet.start_us + 30 * MINUTE_US
    for name in number:
        assert evidence_between(pairs[number[name]], *window) == slow.evidence(name, *window)


async def map_all(client: httpx.AsyncClient, fleet: Fleet) -> None:
    for vehicle, meter, from_us, _ in fleet.mappings():
        body = {"vehicleId": vehicle, "meterId": meter}
        if from_us > -math.inf:
            body["validFrom"] = moment(int(from_us)).isoformat()
        answer = await client.post("/v1/ingestion/mapping", json=body)
        assert answer.status_code == 200, answer.text


@contextmanager
def serving(url: str) -> Iterator[tuple[asyncio.Runner, httpx.AsyncClient]]:
    """Yields a client of the service and the loop that both live in: hypothesis calls functions, not coroutines."""
    with asyncio.Runner() as runner:
        running = service(Settings(database_url=url))
        client = runner.run(running.__aenter__())
        try:
            yield runner, client
        finally:
            runner.run(running.__aexit__(None, None, None))


@pytest.mark.parametrize("count", [25, pytest.param(300, marks=pytest.mark.soak)])
def test_only_the_distinct_good_readings_count(count: int, database_url: str, connection: psycopg.Connection) -> None:
    fleets: list[Fleet] = []
    with serving(database_url) as (runner, client):

        @settings(max_examples=count)
        @given(examples())
        def law(example: Example) -> None:
            fleet = Fleet(len(fleets), example)
            fleets.append(fleet)
            check_receipts(fleet, runner.run(send_all(client, fleet)))
            check_rows(connection, fleet)
            connection.execute("CALL refresh_aggregates()")
            check_minutes(connection, fleet)
            runner.run(map_all(client, fleet))
            runner.run(check_performance(client, fleet))

        law()
        check_fleet_minutes(connection, fleets)
