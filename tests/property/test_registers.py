"""The energies of registers follow from the readings in order of time, whatever order and batches they come in."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from random import Random
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.ingest.batch import Source
from app.telemetry.reading import MeterReading, VehicleReading
from app.telemetry.register import count
from tests.fixtures.readings import EPOCH, batch_of, writing
from tests.property.brute_force import MINUTE_US
from tests.property.register_twin import LIMIT_KW, Sent, energies
from tests.property.test_order_and_repetition import Reading, moment, same

KWH = 1_000_000
HOUR = timedelta(hours=1)
# Minutes from one reading to the next: in a minute, within an hour, over hours.
STEPS = [0.25, 0.5, 1, 1, 1, 10, 50, 90, 400]
# What happens to a register between two readings: it goes up or stands still, is reset, shows a zero or a spike for a
# moment, goes back, or the device sends differences.
RISES = [0, 0, 1, KWH, 5 * KWH]
EVENTS = ["rise", "rise", "rise", "reset", "zero", "spike", "swap", "back", "difference"]


@st.composite
def histories(draw: st.DrawFn) -> list[Sent]:
    """Draws the readings of one device in order."""
    register = draw(st.sampled_from([0, 10 * KWH, 850 * KWH, 20_957 * KWH]))
    at_us, sent = 0, list[Sent]()
    for event, step, rise in draw(
        st.lists(st.tuples(st.sampled_from(EVENTS), st.sampled_from(STEPS), st.sampled_from(RISES)), max_size=14)
    ):
        at_us += round(step * MINUTE_US)
        shown = register
        if event == "difference":
            sent.append(Sent(at_us, None, rise))
            continue
        if event == "zero":
            shown = 0
        elif event == "spike":
            shown = register + 10**9 * KWH // 1000
        elif event == "back":
            shown = max(0, register - rise)
        else:
            register = {"rise": register + rise, "reset": rise, "swap": register + 50_000 * KWH}[event]
            shown = register
        sent.append(Sent(at_us, shown))
    return sent


@given(histories())
@settings(max_examples=500)
def test_readings_count_as_the_slow_way_says(sent: list[Sent]) -> None:
    counted = count([(one.ts_us, one.register) for one in sent], None, LIMIT_KW * 1_000_000)
    expected = energies(sent)
    for one, energy in zip(sent, counted.energies, strict=True):
        assert one.register is None or energy == expected[one.ts_us]


@dataclass(frozen=True)
class Example:
    """The histories of some devices, and the way they are sent."""

    meters: list[list[Sent]]
    vehicles: list[list[Sent]]
    hours_ago: int
    writers: int
    seed: int


examples = st.builds(
    Example,
    st.lists(histories(), min_size=1, max_size=3),
    st.lists(histories(), max_size=2),
    st.sampled_from([0, 3, 30]),
    st.integers(1, 3),
    st.integers(0, 2**32),
)


class Fleet:
    """An example's devices under names of their own, at their real times."""

    def __init__(self, number: int, example: Example) -> None:
        self.prefix = f"e{number}."
        self.example = example
        ends = [sent[-1].ts_us for sent in (*example.meters, *example.vehicles) if sent]
        now_us = time.time_ns() // 1000 // MINUTE_US * MINUTE_US
        self.start_us = now_us - example.hours_ago * 60 * MINUTE_US - max(ends, default=0)
        self.meters = {f"{self.prefix}m{n}": self._moved(sent) for n, sent in enumerate(example.meters)}
        self.vehicles = {f"{self.prefix}v{n}": self._moved(sent) for n, sent in enumerate(example.vehicles)}

    def _moved(self, sent: list[Sent]) -> list[Sent]:
        return [one._replace(ts_us=self.start_us + one.ts_us) for one in sent]

    def batches(self) -> list[list[Reading]]:
        """Returns every reading once or twice, in any order, in batches of any size."""
        readings: list[Reading] = [
            MeterReading(name, one.ts_us, one.difference, 23_000, one.register)
            for name, sent in self.meters.items()
            for one in sent
        ] + [
            VehicleReading(name, one.ts_us, one.difference, register_milliwh=one.register)
            for name, sent in self.vehicles.items()
            for one in sent
        ]
        random = Random(self.example.seed)
        readings += [reading for reading in readings if random.random() < 0.3]
        random.shuffle(readings)
        cuts = sorted(random.choices(range(len(readings) + 1), k=random.randrange(8)))
        batches = [readings[first:last] for first, last in pairwise([0, *cuts, len(readings)])]
        return [batch for batch in batches if batch]


@dataclass(frozen=True)
class Known:
    """A stored reading, as it must be."""

    device: str
    ts: datetime
    energy: int | None
    sent: Sent


def known(devices: dict[str, list[Sent]]) -> list[Known]:
    found = []
    for name, sent in devices.items():
        counted = energies(sent)
        found += [Known(name, moment(one.ts_us), counted[one.ts_us], one) for one in sent]
    return found


async def send_all(url: str, fleet: Fleet) -> None:
    """Sends all batches through several writers at once, which know nothing of each other."""
    batches = fleet.batches()

    async def send(mine: Sequence[list[Reading]]) -> None:
        async with writing(url) as writer:
            for batch in mine:
                await writer.store(batch_of(*batch), Source.HTTP)

    await asyncio.gather(*(send(batches[n :: fleet.example.writers]) for n in range(fleet.example.writers)))


def rows(connection: psycopg.Connection, statement: str, *parameters: object, **names: str) -> list[tuple[Any, ...]]:
    return connection.execute(statement.format(**names).encode(), parameters).fetchall()


READINGS = """
    SELECT external_id, ts, {energy}, register_milliwh FROM {stream}_{table} JOIN {stream} ON id = {stream}_id
    WHERE external_id LIKE %s
"""
SUMS = """
    SELECT external_id, bucket, {energy}, {counts}
    FROM {stream}_{width}(utc_bucket('1 day', now() - INTERVAL '8 days'), now() + INTERVAL '1 day')
    JOIN {stream} ON id = {stream}_id
    WHERE external_id LIKE %s
"""
FLEET = "SELECT * FROM fleet_{width}(utc_bucket('1 day', now() - INTERVAL '8 days'), now() + INTERVAL '1 day')"
WIDTHS = {"minute": timedelta(minutes=1), "hour": HOUR, "day": 24 * HOUR}
ENERGY = {"meter": "ac_milliwh", "vehicle": "dc_milliwh"}


def check_readings(connection: psycopg.Connection, stream: str, readings: list[Known], like: str) -> None:
    names = {"stream": stream, "energy": ENERGY[stream]}
    stored = rows(connection, READINGS, like, **names, table="reading")
    assert same(stored, [(one.device, one.ts, one.energy, one.sent.register) for one in readings])
    states = rows(connection, READINGS, like, **names, table="state")
    newest = {one.device: one for one in sorted(readings, key=lambda one: one.ts)}
    assert same(states, [(one.device, one.ts, one.sent.difference, one.sent.register) for one in newest.values()])


def summed(readings: Iterable[Known], width: timedelta, *, by_device: bool) -> dict[tuple[Any, ...], list[int | None]]:
    """Returns the energies of the readings by bucket, or by device and bucket."""
    groups = defaultdict(list)
    for one in readings:
        bucket = EPOCH + (one.ts - EPOCH) // width * width
        groups[(one.device, bucket) if by_device else (bucket,)].append(one.energy)
    return groups


def check_sums(connection: psycopg.Connection, stream: str, readings: list[Known], like: str) -> None:
    names = {"stream": stream, "energy": ENERGY[stream]}
    for name, width in WIDTHS.items():
        counts = "readings, unknown_readings" if name == "minute" else "readings"
        expected = [
            (*key, sum(energy or 0 for energy in of_key), len(of_key), of_key.count(None))
            for key, of_key in summed(readings, width, by_device=True).items()
        ]
        found = rows(connection, SUMS, like, **names, width=name, counts=counts)
        assert same(found, [one[: len(found[0])] for one in expected] if found else expected), (stream, name)


def check_fleet(connection: psycopg.Connection, fleets: list[Fleet]) -> None:
    meters = known({name: sent for fleet in fleets for name, sent in fleet.meters.items()})
    vehicles = known({name: sent for fleet in fleets for name, sent in fleet.vehicles.items()})
    for name, width in WIDTHS.items():
        ac, dc = (
            {bucket: (sum(energy or 0 for energy in found), len(found)) for bucket, found in of_stream.items()}
            for of_stream in (summed(readings, width, by_device=False) for readings in (meters, vehicles))
        )
        silent = None, None
        expected = [(*bucket, *ac.get(bucket, silent), *dc.get(bucket, silent)) for bucket in ac.keys() | dc.keys()]
        assert same(rows(connection, FLEET, width=name), expected), name


@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.soak)])
def test_what_is_stored_follows_from_the_readings_in_order(
    count: int, database_url: str, connection: psycopg.Connection
) -> None:
    fleets: list[Fleet] = []

    @settings(max_examples=count)
    @given(examples)
    def law(example: Example) -> None:
        fleet = Fleet(len(fleets), example)
        fleets.append(fleet)
        asyncio.run(send_all(database_url, fleet))
        assert rows(connection, "SELECT * FROM register_due") == []
        connection.execute("CALL refresh_aggregates()")
        for stream, devices in (("meter", fleet.meters), ("vehicle", fleet.vehicles)):
            check_readings(connection, stream, known(devices), fleet.prefix + "%")
            check_sums(connection, stream, known(devices), fleet.prefix + "%")

    law()
    check_fleet(connection, fleets)
