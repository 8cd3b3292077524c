"""No accepted policies, however they change, remove a bucket of any aggregate before its own retention.

Forty days pass in minutes: a schema `sim` before pg_catalog in the search path holds a now() of its own, so that the
refreshes and the functions of Wattline run at the simulated time. Retention and columnstore policies of TimescaleDB ask
the real clock, so the test does what they do, with the ages of the live jobs.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, get_args

import msgspec
import psycopg
import pytest
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from app.database import command_connection
from app.policies.apply import migrate_policies
from app.policies.desired import Aggregate, Policies, Readings, Refresh, span
from app.policies.invariants import SOURCES, read_policies, violations
from app.telemetry.instant import MAX_AGE
from tests.fixtures.database import Server
from tests.fixtures.engines import on_timescale, policy_jobs
from tests.fixtures.policies import apply_policies
from tests.fixtures.readings import Rows, midnight

DAYS = 40
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
START = timedelta(days=DAYS + 15)
"""The first day lies so long ago; the last one is over too."""

LONGEST_END, LONGEST_TURN = timedelta(days=5), timedelta(days=1)
# No reading of a bucket this old, late ones included, waits for its refresh at any level.
SETTLED = MAX_AGE + LONGEST_END + 3 * LONGEST_TURN + DAY

SIMULATE = """
    CREATE SCHEMA sim;
    CREATE FUNCTION sim.now() RETURNS timestamptz LANGUAGE sql STABLE
    AS $$ SELECT current_setting('sim.now')::timestamptz $$;
    CREATE TABLE sim.sent (stream text, device integer, ts timestamptz, milliwh integer);
    SET search_path = sim, public, pg_catalog;
    ALTER FUNCTION cagg_find_history() SET search_path = sim, public, pg_catalog;
"""
INSERT = {
    "meter": "INSERT INTO meter_reading (ts, meter_id, ac_milliwh) VALUES (%s, %s, %s)",
    "vehicle": "INSERT INTO vehicle_reading (ts, vehicle_id, dc_milliwh) VALUES (%s, %s, %s)",
}
JOBS = """
    SELECT coalesce(hypertable_name, config ->> 'aggregate' || '_cagg'),
           (config ->> %s)::interval
    FROM timescaledb_information.jobs WHERE proc_name = %s
    ORDER BY job_id
"""
# Chunks of a hypertable or of an aggregate that end by some time and are not compressed.
COMPRESSIBLE = """
    SELECT format('%%I.%%I', chunk_schema, chunk_name)
    FROM timescaledb_information.chunks AS chunk
    LEFT JOIN timescaledb_information.continuous_aggregates AS cagg
        ON cagg.materialization_hypertable_name = chunk.hypertable_name
    WHERE coalesce(cagg.view_name, chunk.hypertable_name) = %s AND range_end <= %s AND NOT is_compressed
"""


def intervals(*choices: str) -> st.SearchStrategy[str]:
    return st.sampled_from(choices)


# A file of the first ages keeps as little as it may; one of the others reaches far back.
SHORT = intervals("1 hour", "604801 seconds", "8 days")
LONG = intervals("9 days", "12 days", "25 days", "60 days")


@st.composite
def accepted_policies(draw: st.DrawFn, ages: st.SearchStrategy[str]) -> Policies:
    """Draws a file, and mends each entry that is refused as the error says, so that many stand right at a limit."""
    refresh = st.builds(
        Refresh,
        start_offset=ages,
        end_offset=intervals("1 minute", "1 hour", "1 day", "5 days"),
        schedule_interval=intervals("10 seconds", "1 minute", "1 hour", "1 day"),
        buckets_per_batch=st.sampled_from([0, 100, 1440]),
    )
    names, compressed = (*get_args(Readings), *get_args(Aggregate)), read_policies().columnstore_after
    widths = intervals("6 hours", "1 day", "30 hours", "3 days", "31 days")
    policies = Policies(
        chunk_interval=draw(st.fixed_dictionaries(dict.fromkeys(get_args(Readings), widths))),
        columnstore_after=draw(st.fixed_dictionaries({}, optional=dict.fromkeys(compressed, ages))),
        retention=draw(st.fixed_dictionaries(dict.fromkeys(names[:6], ages), optional=dict.fromkeys(names[6:], ages))),
        refresh=draw(st.fixed_dictionaries(dict.fromkeys(get_args(Aggregate), refresh))),
    )
    document = msgspec.to_builtins(policies)
    while broken := next(violations(policies), None):
        mend(document, broken)
        policies = msgspec.convert(document, Policies)
    return policies


def mend(document: dict[str, Any], broken: str) -> None:
    """Raises the entry to the limit that the error names; an entry without such a limit is removed."""
    found = re.match(r'([\w.]+) .*?must be (at least|longer than) "([^"]+)"', broken)
    place = re.match(r"[\w.]+", broken)
    assert place
    *tables, key = place[0].split(".")
    entries = document
    for table in tables:
        entries = entries[table]
    if found:
        limit = span(found[3]) + timedelta(seconds=found[2] == "longer than")
        minutes = -(-limit // timedelta(minutes=1))
        entries[key] = f"{minutes} minutes" if limit.total_seconds() > 999_999 else f"{limit // SECOND} seconds"
    else:
        del entries[key]


@dataclass(frozen=True)
class Change:
    """Other policies, which `wattline migrate` applies as far as they lose nothing, or `policy apply` as a whole."""

    day: int
    policies: Policies
    whole: bool


@dataclass(frozen=True)
class Example:
    """Forty days: the policies and their changes, the minute at which a day's work is done, and what is random."""

    first: Policies
    changes: tuple[Change, ...]
    minute: int
    seed: int


def changes(first: int, last: int, ages: st.SearchStrategy[str], *, whole: bool) -> st.SearchStrategy[Change]:
    return st.builds(
        Change, st.integers(first, last), accepted_policies(ages), st.just(True) if whole else st.booleans()
    )


# What was dropped under the first files lies within the reach of the last one.
examples = st.builds(
    Example,
    accepted_policies(SHORT),
    st.tuples(
        changes(2, 15, SHORT | LONG, whole=False),
        changes(16, 24, SHORT, whole=False),
        changes(25, DAYS - 2, LONG, whole=True),
    ),
    st.integers(0, 1439),
    st.integers(0, 2**32),
)


class Simulation:
    """A database in the past. `kept_from` is the instant since which each relation has kept all, by its retention."""

    def __init__(self, connection: psycopg.Connection, url: str, seed: int) -> None:
        self.connection, self.url, self.random = connection, url, Random(seed)
        self.kept_from: dict[str, datetime] = {}
        connection.execute(SIMULATE)

    def at(self, now: datetime) -> None:
        """Sets the time of all that this connection calls."""
        self.connection.execute("SELECT set_config('sim.now', %s, false)", [now.isoformat()])

    def change(self, policies: Policies, *, whole: bool) -> None:
        """Changes the policies as a command does, in a session of its own."""
        with command_connection(self.url) as connection, connection.begin():
            note("; ".join((apply_policies if whole else migrate_policies)(connection, policies)))

    def store(self, start: datetime, end: datetime) -> None:
        """Stores what four devices have measured in that time, and some late readings, at its end."""
        for stream, insert in INSERT.items():
            hours = range((end - start) // HOUR)
            new = [start + hour * HOUR + self.random.random() * HOUR for hour in hours if self.random.random() < 0.6]
            late = [end - self.random.choice([self.random.random() * MAX_AGE, MAX_AGE]) for _ in range(3)]
            rows = [(ts, device, self.random.randrange(1000)) for ts in {*new, *late} for device in (1, 2)]
            with self.connection.cursor() as cursor, self.connection.transaction():
                cursor.executemany(insert, rows)
                cursor.executemany(
                    "INSERT INTO sim.sent VALUES (%s, %s, %s, %s)",
                    [(stream, device, ts, milliwh) for ts, device, milliwh in rows],
                )

    def refresh(self, now: datetime) -> None:
        """Runs each refresh as long after the one below it as its schedule allows."""
        done = dict.fromkeys(get_args(Readings), now)
        for job in policy_jobs(self.connection, "cagg_refresh"):
            ((config, every),) = self.connection.execute(
                "SELECT config, schedule_interval FROM timescaledb_information.jobs WHERE job_id = %s", [job]
            ).fetchall()
            name = config["aggregate"]
            done[name] = done.get(SOURCES[name], now) + every
            self.at(done[name])
            self.connection.execute("CALL cagg_refresh(%s, %s)", [job, Jsonb(config)])
        self.at(now)

    def drop(self, now: datetime) -> None:
        """Drops chunks as the retention policies do."""
        for relation, age in self.ages("policy_retention", "drop_after"):
            self.connection.execute("SELECT drop_chunks(%s::regclass, %s::timestamptz)", [relation, now - age])
            self.kept_from[relation] = max(now - age, self.kept_from.get(relation, now - age))

    def compress(self, now: datetime) -> None:
        """Converts chunks as the columnstore policies do."""
        for relation, age in self.ages("policy_compression", "compress_after"):
            for (chunk,) in self.connection.execute(COMPRESSIBLE, [relation, now - age]).fetchall():
                self.connection.execute("CALL convert_to_columnstore(%s::regclass)", [chunk])

    def ages(self, procedure: str, key: str) -> Rows:
        return self.connection.execute(JOBS, [key, procedure]).fetchall()

    def check(self, before: datetime) -> None:
        """Compares each level's buckets with all readings that were sent: none too few, and none with a wrong sum."""
        for relation, *queries in levels():
            found, right = (
                {row for row in self.connection.execute(query.encode()) if row[1] < before} for query in queries
            )
            kept_from = self.kept_from.get(relation, datetime.min.replace(tzinfo=UTC))
            lost = sorted(row for row in right - found if row[1] >= kept_from)
            assert lost == [], f"{len(lost)} buckets of {relation} lost"
            wrong = sorted(found - right)
            assert wrong == [], f"{len(wrong)} buckets of {relation} wrong"


READINGS = "SELECT {stream}_id, ts, 1, {energy} FROM {stream}_reading"
SENT = "SELECT device, ts, 1, milliwh FROM sim.sent WHERE stream = '{stream}'"
BUCKETS = "SELECT {stream}_id, bucket, readings, {energy} FROM {stream}_{width}('2000-01-01', '2100-01-01')"
RIGHT = """
    SELECT device, utc_bucket('1 {width}', ts), count(*), sum(milliwh)
    FROM sim.sent WHERE stream = '{stream}' GROUP BY 1, 2
"""
FLEET = "SELECT 0, bucket, readings, {energy} FROM cagg_fleet_{stream}_{width}('2000-01-01', '2100-01-01')"
FLEET_RIGHT = RIGHT.replace("device", "0")


def levels() -> Iterator[tuple[str, str, str]]:
    """Yields each relation with a query for its buckets, and one for what they ought to be."""
    for stream, energy in (("meter", "ac_milliwh"), ("vehicle", "dc_milliwh")):
        for name, width, *queries in (
            ("{stream}_reading", "", READINGS, SENT),
            ("{stream}_{width}_cagg", "minute", BUCKETS, RIGHT),
            ("{stream}_{width}_cagg", "hour", BUCKETS, RIGHT),
            ("{stream}_{width}_cagg", "day", BUCKETS, RIGHT),
            ("fleet_{stream}_{width}_cagg", "minute", FLEET, FLEET_RIGHT),
            ("fleet_{stream}_{width}_cagg", "hour", FLEET, FLEET_RIGHT),
        ):
            relation, found, right = (
                text.format(stream=stream, width=width, energy=energy) for text in (name, *queries)
            )
            yield relation, found, right


def live_through(simulation: Simulation, example: Example) -> None:
    """Lives through the forty days of an example, and checks what is left before each change and at the end."""
    now = midnight(START.days) + timedelta(minutes=example.minute)
    changed = {change.day: change for change in example.changes}
    simulation.change(example.first, whole=True)
    for day in range(DAYS):
        if change := changed.get(day):
            simulation.check(now - SETTLED)
            simulation.change(change.policies, whole=change.whole)
        simulation.store(now, now + DAY)
        now += DAY
        simulation.at(now)
        works = [simulation.refresh, simulation.drop, simulation.compress]
        simulation.random.shuffle(works)
        for work in works:
            work(now)
        if simulation.random.random() < 0.1:
            simulation.connection.execute("CALL refresh_aggregates()")
    for later in range(LONGEST_END.days + 1):
        simulation.refresh(now + later * DAY)
    simulation.check(now)


@contextmanager
def simulated(server: Server, seed: int) -> Iterator[Simulation]:
    url = server.clone()
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        yield Simulation(connection, url, seed)
    server.drop(url)


@on_timescale
@pytest.mark.parametrize("count", [4, pytest.param(200, marks=pytest.mark.soak)])
def test_no_accepted_policies_lose_a_bucket_before_its_own_retention(server: Server, count: int) -> None:
    # An example takes too long for making it smaller.
    @settings(max_examples=count, derandomize=count < 10, phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @given(examples)
    def law(example: Example) -> None:
        with simulated(server, example.seed) as simulation:
            live_through(simulation, example)

    law()
