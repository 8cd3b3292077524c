"""The writer: the fate of batches that are in flight together, and of batches that meet an obstacle."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from random import Random
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from app.database import TRANSACTION_SECONDS
from app.errors import Busy
from app.faults import UNAVAILABLE
from app.ingest.batch import Batch, Conflict, Receipt, Source
from app.ingest.store import statements, writer
from app.ingest.store.writer import KEPT_AT_ONCE, TRANSIENT_ATTEMPTS, Writer
from app.ingest.written import members_of
from app.telemetry.reading import MeterReading, Stream, VehicleReading
from tests.fixtures.readings import Reading, batch_of, rejected, writing

SECOND_US = 1_000_000
HOUR_US = 3_600 * SECOND_US

Connection = psycopg.Connection[tuple[Any, ...]]


class Clock:
    """The start of the test, in whole seconds, from which ages are counted."""

    us = 0


@pytest.fixture(autouse=True)
def _start() -> None:
    Clock.us = time.time_ns() // 1000 // SECOND_US * SECOND_US


@pytest.fixture
async def one(database_url: str) -> AsyncIterator[Writer]:
    async with writing(database_url) as new:
        yield new


def m(name: str, age_s: float = 0, ac_milliwh: int = 1_000, voltage_centiv: int | None = 23_000) -> MeterReading:
    """Returns a meter reading of so many seconds ago."""
    return MeterReading(name, Clock.us - round(age_s * SECOND_US), ac_milliwh, voltage_centiv)


def v(name: str, age_s: float = 0, dc_milliwh: int = 900, **others: Any) -> VehicleReading:
    """Returns a vehicle reading of so many seconds ago."""
    return VehicleReading(name, Clock.us - round(age_s * SECOND_US), dc_milliwh, **others)


async def store(to: Writer, *readings: Reading) -> Receipt:
    return await to.store(batch_of(*readings), Source.HTTP)


async def store_together(to: Writer, batches: Iterable[Batch]) -> list[Receipt]:
    """Stores the batches in one group: all are queued before the writer gets its turn."""
    return await asyncio.gather(*(to.store(one, Source.HTTP) for one in batches))


async def try_together(to: Writer, batches: Iterable[Batch]) -> list[Receipt | BaseException]:
    return await asyncio.gather(*(to.store(one, Source.HTTP) for one in batches), return_exceptions=True)


def counts(receipt: Receipt) -> tuple[int, int, int, int]:
    """Returns inserted, duplicates, conflicts and late."""
    assert receipt.received == receipt.inserted + receipt.duplicates + len(receipt.rejected)
    return receipt.inserted, receipt.duplicates, receipt.conflicts, receipt.late


def rows(connection: Connection, query: LiteralString) -> list[tuple[Any, ...]]:
    return connection.execute(query).fetchall()


def value(connection: Connection, query: LiteralString) -> Any:
    ((only,),) = rows(connection, query)
    return only


def stored(connection: Connection) -> set[Reading]:
    """Returns all stored readings; fails when one is stored twice."""
    found: list[Reading] = [
        MeterReading(name, round(ts.timestamp() * SECOND_US), ac, voltage)
        for name, ts, ac, voltage in rows(
            connection,
            "SELECT external_id, ts, ac_milliwh, voltage_centiv FROM meter_reading JOIN meter ON id = meter_id",
        )
    ]
    found += [
        VehicleReading(name, round(ts.timestamp() * SECOND_US), dc, meter, soc, temperature)
        for name, ts, dc, meter, soc, temperature in rows(
            connection,
            """
            SELECT vehicle.external_id, ts, dc_milliwh, meter.external_id, soc_centipercent, battery_temp_centic
            FROM vehicle_reading JOIN vehicle ON vehicle.id = vehicle_id LEFT JOIN meter ON meter.id = meter_id
            """,
        )
    ]
    assert len(found) == len(set(found))
    return set(found)


def interfere(connection: Connection, body: LiteralString, *, level: LiteralString = "STATEMENT") -> None:
    """Runs PL/pgSQL before each insert of meter readings; `attempts` counts, also in transactions that fail."""
    connection.execute("CREATE SEQUENCE IF NOT EXISTS attempts MINVALUE 0 START 1")
    connection.execute(
        sql.SQL(
            "CREATE FUNCTION interfere() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} RETURN NEW; END $$"
        ).format(sql.SQL(body))
    )
    connection.execute(
        sql.SQL(
            "CREATE TRIGGER interfere BEFORE INSERT ON meter_reading FOR EACH {} EXECUTE FUNCTION interfere()"
        ).format(sql.SQL(level))
    )


def attempts(connection: Connection) -> int:
    """Returns how often an insert was attempted since the last call."""
    made: int = value(connection, "SELECT nextval('attempts') - 1")
    connection.execute("SELECT setval('attempts', 0)")
    return made


# Groups


async def test_batches_in_flight_share_transactions(one: Writer, connection: Connection) -> None:
    await store(one, m("m0"))
    receipts = await store_together(one, [batch_of(m(f"m{n}", 1), v(f"v{n}", 1)) for n in range(32)])
    assert all(counts(receipt) == (2, 0, 0, 0) for receipt in receipts)
    assert len({receipt.committed_at for receipt in receipts}) <= 2
    assert value(connection, "SELECT count(DISTINCT xmin::text) FROM meter_reading") <= 3


async def test_a_lone_batch_does_not_wait(one: Writer) -> None:
    took = []
    for n in range(20):
        start = time.perf_counter()
        await store(one, m("m1", n))
        took.append(time.perf_counter() - start)
    assert min(took) < 0.05


async def test_a_group_is_bounded_in_readings(
    one: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "GROUP_READINGS", 10)
    monkeypatch.setattr(one, "_group_readings", 10)
    await store_together(one, [batch_of(*(m(f"m{n}", age) for age in range(4))) for n in range(5)])
    per_transaction = rows(connection, "SELECT count(*) FROM meter_reading GROUP BY xmin::text ORDER BY 1")
    assert per_transaction == [(4,), (8,), (8,)]


async def test_a_duplicate_across_batches_counts_in_the_earlier(one: Writer) -> None:
    both = batch_of(m("m1"), v("v1", meter_id="m1"))
    receipts = await store_together(one, [batch_of(m("m1")), both, both, batch_of(m("m2"), m("m1"))])
    assert [counts(receipt)[:2] for receipt in receipts] == [(1, 0), (1, 1), (0, 2), (1, 1)]


async def test_a_duplicate_within_a_batch(one: Writer, connection: Connection) -> None:
    receipt = await store(one, m("m1"), m("m1"), m("m1", ac_milliwh=7), v("v1"), v("v1", dc_milliwh=7))
    assert counts(receipt) == (2, 3, 2, 0)
    assert stored(connection) == {m("m1"), v("v1")}


@pytest.mark.parametrize("staged", [False, True])
async def test_a_conflict_is_a_duplicate_with_other_values(
    database_url: str, connection: Connection, staged: bool
) -> None:
    cases: list[tuple[Reading, Reading, int]] = [
        (m("m1"), m("m1"), 0),
        (m("m2"), m("m2", ac_milliwh=2), 1),
        (m("m3"), m("m3", voltage_centiv=2), 1),
        (m("m4"), m("m4", voltage_centiv=None), 1),
        (m("m5", voltage_centiv=None), m("m5"), 1),
        (m("m6", voltage_centiv=None), m("m6", voltage_centiv=None), 0),
        (v("v1"), v("v1"), 0),
        (v("v2"), v("v2", dc_milliwh=2), 1),
        (v("v3"), v("v3", meter_id="m1"), 1),
        (v("v4", meter_id="m1"), v("v4"), 1),
        (v("v5", meter_id="m1"), v("v5", meter_id="m2"), 1),
        (v("v6"), v("v6", soc_centipercent=0), 1),
        (v("v7", soc_centipercent=0), v("v7"), 1),
        (v("v8"), v("v8", battery_temp_centic=0), 1),
        (v("v9", battery_temp_centic=1), v("v9", battery_temp_centic=1), 0),
    ]
    for first, second, conflicts in cases:
        async with writing(database_url) as fresh:
            if staged:
                await store(fresh, m("m0"))
                await store(fresh, m("m0"))
            assert counts(await store(fresh, first)) == (1, 0, 0, 0)
            assert counts(await store(fresh, second)) == (0, 1, conflicts, 0)
    assert stored(connection) - {m("m0")} == {first for first, _, _ in cases}


Outcome = tuple[tuple[int, int, int, int], list[Conflict]]


def outcome(receipt: Receipt) -> Outcome:
    return counts(receipt), receipt.conflicting


class Model:
    """The expected receipts, computed one reading after another."""

    def __init__(self) -> None:
        self.stored: dict[tuple[type, str, int], Reading] = {}

    def store(self, batch: Batch) -> Outcome:
        inserted = duplicates = late = 0
        conflicts: list[Conflict] = []
        readings: list[Reading] = [*batch.meter, *batch.vehicle]
        for index, reading in enumerate(readings):
            device = reading.meter_id if isinstance(reading, MeterReading) else reading.vehicle_id
            known = self.stored.setdefault((type(reading), device, reading.ts_us), reading)
            if known is reading:
                inserted += 1
                late += reading.ts_us < Clock.us - 3_000 * SECOND_US
            else:
                duplicates += 1
                conflicts += [Conflict(index, members_of(known))] if known != reading else []
        return (inserted, duplicates, len(conflicts), late), conflicts


def random_batch(random: Random) -> Batch:
    def age() -> int:
        return random.choice([random.randrange(20), 7_200 + random.randrange(20), 86_400])

    meters = [m(f"m{random.randrange(3)}", age(), random.randrange(2)) for _ in range(random.randrange(6))]
    vehicles = [v(f"v{random.randrange(3)}", age(), random.randrange(2)) for _ in range(random.randrange(6))]
    return batch_of(*meters, *vehicles)


@pytest.mark.parametrize("seed", range(3))
async def test_receipts_are_exact_direct_and_staged(database_url: str, connection: Connection, seed: int) -> None:
    random, model = Random(seed), Model()
    for _ in range(8):
        async with writing(database_url) as fresh:
            for _ in range(3):
                group = [random_batch(random) for _ in range(random.randrange(1, 5))]
                receipts = await store_together(fresh, group)
                assert [outcome(receipt) for receipt in receipts] == [model.store(one) for one in group]
    assert stored(connection) == set(model.stored.values())


async def test_the_writer_stays_staged_after_a_duplicate(one: Writer, connection: Connection) -> None:
    interfere(connection, "PERFORM nextval('attempts');")
    await store(one, m("m1"))
    assert attempts(connection) == 1
    await store(one, m("m1"))
    assert attempts(connection) == 2
    for _ in range(3):
        assert counts(await store(one, m("m1"))) == (0, 1, 0, 0)
    assert attempts(connection) == 3


# Failures


async def test_one_batch_never_fails_another(one: Writer, connection: Connection) -> None:
    interfere(
        connection,
        "IF NEW.ac_milliwh = 666 THEN RAISE EXCEPTION 'bad' USING ERRCODE = '23514'; END IF;",
        level="ROW",
    )
    day = 86_400
    group = [batch_of(m(f"m{n}"), m(f"m{n}", day), v(f"v{n}")) for n in range(4)]
    group[1] = batch_of(m("m1", ac_milliwh=666), m("m1", 1))
    group[3] = batch_of(m("m3", day, ac_milliwh=666), m("m2", day), m("m3", day + 1))
    good = [*group[0].meter, *group[2].meter]
    results = await try_together(one, group)
    assert [isinstance(result, psycopg.errors.CheckViolation) for result in results] == [False, True, False, True]
    assert [counts(result) for result in results if isinstance(result, Receipt)] == [(3, 0, 0, 1)] * 2
    assert stored(connection) == {*good, v("v0"), v("v2")}


async def test_transient_errors_are_retried(one: Writer, connection: Connection) -> None:
    interfere(
        connection,
        """
        CASE nextval('attempts')
            WHEN 1 THEN RAISE EXCEPTION 'again' USING ERRCODE = '40001';
            WHEN 2 THEN RAISE EXCEPTION 'again' USING ERRCODE = '40P01';
            WHEN 3 THEN RAISE EXCEPTION 'again' USING ERRCODE = '55P03';
            ELSE
        END CASE;
        """,
    )
    receipts = await store_together(one, [batch_of(m("m1")), batch_of(m("m2"))])
    assert [counts(receipt) for receipt in receipts] == [(1, 0, 0, 0)] * 2
    assert attempts(connection) == 4


async def test_a_duplicate_found_at_the_last_attempt(database_url: str, one: Writer, connection: Connection) -> None:
    await store(one, m("m1"))
    interfere(connection, "IF nextval('attempts') < 6 THEN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END IF;")
    assert TRANSIENT_ATTEMPTS == 6
    async with writing(database_url) as other:
        assert counts(await store(other, m("m1"), m("m2"))) == (1, 1, 0, 0)
    assert stored(connection) == {m("m1"), m("m2")}


async def test_what_stays_transient_is_unavailable(one: Writer, connection: Connection) -> None:
    interfere(connection, "IF nextval('attempts') < 7 THEN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END IF;")
    with pytest.raises(psycopg.errors.SerializationFailure):
        await store(one, m("m1"))
    assert counts(await store(one, m("m1"))) == (1, 0, 0, 0)


async def test_a_deadlock_is_retried(one: Writer, connection: Connection) -> None:
    await store(one, m("m1", 5))
    await store(one, m("m2", 5))
    # The writer finds the deadlock first.
    connection.execute("SET deadlock_timeout = '20s'")
    with connection.transaction():
        connection.execute("UPDATE meter_state SET voltage_centiv = 1 FROM meter WHERE id = meter_id AND id = 2")
        storing = asyncio.create_task(store(one, m("m1"), m("m2")))
        await until_waiting(connection)
        statement = "UPDATE meter_state SET voltage_centiv = 1 WHERE meter_id = 1"
        await asyncio.to_thread(connection.execute, statement)
    assert counts(await storing) == (2, 0, 0, 0)
    assert rows(connection, "SELECT ts FROM meter_state WHERE voltage_centiv = 23000") == [(moment(0),), (moment(0),)]


async def until_waiting(connection: Connection) -> None:
    """Returns when one of the database's connections waits for a lock."""
    while not value(connection, WAITING):  # noqa: ASYNC110 - the database tells nobody
        await asyncio.sleep(0.01)


WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def moment(age_s: float) -> datetime:
    return datetime.fromtimestamp((Clock.us - round(age_s * SECOND_US)) / SECOND_US, UTC)


async def test_blocked_batches_fail_in_time_and_the_next_ones_work(database_url: str, connection: Connection) -> None:
    known = [batch_of(m("m1")), batch_of(m("m2"))]
    groups = [known[:1], known, [batch_of(m("m3")), batch_of(m("m4"))], [batch_of(rejected=[rejected(b"1")])]]
    async with AsyncExitStack() as stack:
        writers = [await stack.enter_async_context(writing(database_url)) for _ in groups]
        for to in writers:
            await store(to, m("m1", 5), m("m2", 5))
        with connection.transaction():
            connection.execute("LOCK TABLE meter, meter_state, quarantine IN EXCLUSIVE MODE")
            start = time.monotonic()
            results = await asyncio.gather(*map(try_together, writers, groups))
            took = time.monotonic() - start
        assert all(isinstance(result, UNAVAILABLE) for group in results for result in group)
        assert took < TRANSACTION_SECONDS + 3
        receipts = [await store_together(*pair) for pair in zip(writers, groups, strict=True)]
    assert [receipt.inserted for group in receipts for receipt in group] == [1, 0, 1, 1, 1, 0]
    assert stored(connection) == {m("m1", 5), m("m2", 5), m("m1"), m("m2"), m("m3"), m("m4")}


async def test_a_database_that_was_away(one: Writer, connection: Connection) -> None:
    await store(one, m("m1", 5))
    allow_connections(connection, "false")
    connection.execute(TERMINATE)
    for _ in range(2):
        with pytest.raises(psycopg.OperationalError):
            await store(one, m("m1"), m("m2"))
    allow_connections(connection, "true")
    assert counts(await store(one, m("m1"), m("m2"))) == (2, 0, 0, 0)


def allow_connections(connection: Connection, allow: LiteralString) -> None:
    """Lets the database take new connections or not; the statement comes from a connection to another database."""
    alter = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(connection.info.dsn, dbname="postgres", autocommit=True) as other:
        other.execute(alter.format(sql.Identifier(connection.info.dbname), sql.SQL(allow)))


TERMINATE = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'wattline'
"""


async def test_lost_connections_under_load(one: Writer, connection: Connection) -> None:
    sent: set[Reading] = set()
    acknowledged: list[Receipt] = []
    terminated: list[tuple[Any, ...]] = []

    async def send(client: int) -> None:
        for n in range(60):
            readings: list[Reading] = [m(f"m{client}", n, n), v(f"v{n}", client, n), m(f"m{n}", 7_200 + client)]
            sent.update(readings)
            acknowledged.append(await until_stored(one, batch_of(*readings)))

    async def interrupt() -> None:
        random = Random(1)
        while True:
            await asyncio.sleep(random.uniform(0.01, 0.1))
            terminated.extend((await asyncio.to_thread(connection.execute, TERMINATE)).fetchall())

    interrupting = asyncio.create_task(interrupt())
    await asyncio.gather(*map(send, range(8)))
    interrupting.cancel()
    await asyncio.gather(interrupting, return_exceptions=True)
    assert len(terminated) >= 3
    assert stored(connection) == sent
    assert sum(receipt.received for receipt in acknowledged) == len(sent)


async def until_stored(to: Writer, batch: Batch) -> Receipt:
    """Sends the batch until its receipt comes."""
    while True:
        try:
            return await to.store(batch, Source.HTTP)
        except (*UNAVAILABLE, Busy):
            await asyncio.sleep(0.005)


async def test_cancelling_the_caller_cancels_nothing(one: Writer, connection: Connection) -> None:
    callers = [asyncio.create_task(store(one, m(f"m{n}"))) for n in range(4)]
    await asyncio.sleep(0)
    callers[0].cancel()
    await callers[1]
    callers[2].cancel()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert counts(await store(one, m("m9"))) == (1, 0, 0, 0)
    assert stored(connection) == {m("m0"), m("m1"), m("m2"), m("m3"), m("m9")}


async def test_a_full_queue_refuses_and_recovers(database_url: str, connection: Connection) -> None:
    def many(name: str, number: int) -> Batch:
        return batch_of(*(m(name, age) for age in range(number)))

    async with writing(database_url, queue_max_readings=100) as small:
        # Nothing waits, so that even a batch above the limit is taken.
        await small.store(many("m1", 150), Source.HTTP)
        with connection.transaction():
            connection.execute("LOCK TABLE meter_state IN EXCLUSIVE MODE")
            in_flight = asyncio.create_task(small.store(many("m2", 60), Source.HTTP))
            await until_waiting(connection)
            waiting = asyncio.create_task(small.store(many("m3", 90), Source.HTTP))
            await asyncio.sleep(0)
            with pytest.raises(Busy) as caught:
                await small.store(many("m4", 11), Source.HTTP)
            assert caught.value.headers == {"Retry-After": "1"}
            fits = asyncio.create_task(small.store(many("m5", 10), Source.HTTP))
            await asyncio.sleep(0)
        receipts = [await in_flight, await waiting, await fits]
        assert [receipt.inserted for receipt in receipts] == [60, 90, 10]
        assert (await small.store(many("m4", 11), Source.HTTP)).inserted == 11


async def test_close_finishes_what_is_in_flight_and_then_refuses(database_url: str, connection: Connection) -> None:
    closing = Writer(database_url, queue_max_readings=200_000, new_devices_per_hour=None)
    running = asyncio.create_task(closing.run())
    callers = [asyncio.create_task(store(closing, m(f"m{n}"))) for n in range(8)]
    await asyncio.sleep(0)
    closing.close()
    with pytest.raises(Busy):
        await store(closing, m("m9"))
    await running
    assert [counts(await caller) for caller in callers] == [(1, 0, 0, 0)] * 8
    with pytest.raises(Busy):
        await store(closing, m("m9"))
    assert stored(connection) == {m(f"m{n}") for n in range(8)}


# Devices


async def test_two_writers_register_the_same_devices_at_once(database_url: str, connection: Connection) -> None:
    random = Random(2)
    async with writing(database_url) as first, writing(database_url) as second:
        for rounds in range(8):
            names = [f"d{rounds}.{n}" for n in range(60)]
            sent = [m(name) for name in names] + [v(name, meter_id=name) for name in names]
            groups = [random.sample(sent, len(sent)) for _ in range(2)]
            receipts = await asyncio.gather(store(first, *groups[0]), store(second, *groups[1]))
            assert sum(receipt.inserted for receipt in receipts) == len(sent)
            assert sum(receipt.duplicates for receipt in receipts) == len(sent)
    assert len(stored(connection)) == 8 * 120
    assert value(connection, "SELECT count(*) FROM meter") == value(connection, "SELECT count(*) FROM vehicle") == 480


async def test_devices_are_registered_in_a_transaction_of_their_own(one: Writer, connection: Connection) -> None:
    interfere(connection, "RAISE EXCEPTION 'bad' USING ERRCODE = '23514';")
    with pytest.raises(psycopg.errors.CheckViolation):
        await store(one, m("m1"), v("v1", meter_id="m2"))
    assert rows(connection, "SELECT external_id FROM meter ORDER BY id") == [("m1",), ("m2",)]
    assert rows(connection, "SELECT external_id FROM vehicle") == [("v1",)]
    connection.execute("DROP TRIGGER interfere ON meter_reading")
    assert counts(await store(one, m("m1"), v("v1", meter_id="m2"))) == (2, 0, 0, 0)


async def test_an_id_is_not_used_when_its_registration_did_not_commit(one: Writer, connection: Connection) -> None:
    connection.execute("CREATE SEQUENCE attempts")
    connection.execute(
        """
        CREATE FUNCTION fail_once() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('attempts') = 1 THEN RAISE EXCEPTION 'at COMMIT' USING ERRCODE = '53100'; END IF;
            RETURN NULL;
        END $$
        """
    )
    connection.execute(
        "CREATE CONSTRAINT TRIGGER fail_once AFTER INSERT ON meter DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION fail_once()"
    )
    with pytest.raises(psycopg.errors.DiskFull):
        await store(one, m("m1"))
    assert counts(await store(one, m("m1"))) == (1, 0, 0, 0)
    assert stored(connection) == {m("m1")}


@pytest.mark.parametrize("table", ["meter", "quarantine"])
async def test_transient_errors_around_the_readings_are_retried(
    one: Writer, connection: Connection, table: LiteralString
) -> None:
    interfere(connection, "IF nextval('attempts') < 3 THEN RAISE EXCEPTION 'again' USING ERRCODE = '40P01'; END IF;")
    connection.execute("DROP TRIGGER interfere ON meter_reading")
    connection.execute(
        sql.SQL("CREATE TRIGGER interfere BEFORE INSERT ON {} FOR EACH ROW EXECUTE FUNCTION interfere()").format(
            sql.SQL(table)
        )
    )
    receipt = await one.store(batch_of(m("m1"), rejected=[rejected(b"1")]), Source.HTTP)
    assert (receipt.inserted, len(receipt.rejected)) == (1, 1)
    assert rows(connection, "SELECT payload, times FROM quarantine") == [(b"1", 1)]


# Latest states


async def test_a_batch_of_bad_readings_alone_is_kept_in_transactions_that_are_short_enough(
    one: Writer, connection: Connection
) -> None:
    bad = [rejected(b"%d" % n) for n in range(2 * KEPT_AT_ONCE + 1)]
    receipt = await one.store(Batch(len(bad), [], [], bad), Source.HTTP)
    assert len(receipt.rejected) == len(bad)
    kept = rows(connection, "SELECT count(*) FROM quarantine GROUP BY xmin::text ORDER BY 1")
    assert kept == [(1,), (KEPT_AT_ONCE,), (KEPT_AT_ONCE,)]


async def test_states_never_move_backwards(one: Writer, connection: Connection) -> None:
    newest = v("v1", 10, 3, meter_id="m2", soc_centipercent=5, battery_temp_centic=6)
    await store(one, m("m1", 30, 1), m("m1", 10, 2), m("m1", 20, 3), newest, v("v1", 20, 1))
    await store(one, m("m1", 15, 4), m("m1", 7_200, 5), v("v1", 15, 2), v("v1", 90_000, 2))
    await store(one, m("m1", 10, 6), v("v1", 10, 7))
    assert rows(connection, "SELECT ts, ac_milliwh, voltage_centiv FROM meter_state") == [(moment(10), 2, 23_000)]
    assert rows(
        connection,
        """
        SELECT ts, dc_milliwh, external_id, soc_centipercent, battery_temp_centic
        FROM vehicle_state JOIN meter ON id = meter_id
        """,
    ) == [(moment(10), 3, "m2", 5, 6)]


async def test_states_after_two_writers_are_the_newest(database_url: str, connection: Connection) -> None:
    random = Random(3)
    async with writing(database_url) as first, writing(database_url) as second:

        async def send(to: Writer, ages: list[int]) -> None:
            for age in ages:
                devices = random.sample(range(10), 10)
                await store(to, *(m(f"m{n}", age, age) for n in devices), *(v(f"v{n}", age, age) for n in devices))

        ages = random.sample(range(1, 61), 60)
        await asyncio.gather(send(first, ages[:30]), send(second, ages[30:]))
    assert rows(connection, "SELECT DISTINCT ts, ac_milliwh FROM meter_state") == [(moment(1), 1)]
    assert rows(connection, "SELECT DISTINCT ts, dc_milliwh FROM vehicle_state") == [(moment(1), 1)]


# Touched hours


async def test_touched_hours_are_those_of_the_inserted_rows(
    database_url: str, one: Writer, connection: Connection
) -> None:
    first = await store(one, m("m1"), m("m1", 3_600), m("m2", 86_400), v("v1"), v("v1", 7_200), v("v2", 86_400))
    readings = [(m("m1"), 1), (m("m1", 3_600), 1), (m("m2", 86_400), 2)]
    vehicle_readings = [(v("v1"), 1), (v("v1", 7_200), 1), (v("v2", 86_400), 2)]
    expected = {(Stream.METER, device, hour_of(reading)) for reading, device in readings}
    expected |= {(Stream.VEHICLE, device, hour_of(reading)) for reading, device in vehicle_readings}
    assert touched(connection).keys() == expected
    assert all(at > first.committed_at for at in touched(connection).values())

    connection.execute("DELETE FROM touched_hour")
    async with writing(database_url) as other:
        receipt = await store(other, m("m1"), m("m2", 86_400), v("v1"), v("v1", 7_200, dc_milliwh=1), m("m2", 90_000))
        assert counts(receipt) == (1, 4, 1, 1)
        assert touched(connection).keys() == {(Stream.METER, 2, hour_of(m("m2", 90_000)))}


def hour_of(reading: Reading) -> datetime:
    return datetime.fromtimestamp(reading.ts_us // HOUR_US * 3_600, UTC)


def touched(connection: Connection) -> dict[tuple[str, int, datetime], datetime]:
    return {
        (stream, device, hour): at
        for stream, device, hour, at in rows(connection, "SELECT stream, device_id, hour, at FROM touched_hour")
    }


async def test_every_reading_is_covered_by_a_note_until_it_is_judged(
    one: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads a note after `at` may consume it; readings that come then need another one."""
    monkeypatch.setattr(statements, "NOTED_SECONDS", 1)
    monkeypatch.setattr(statements, "TRANSACTION_SECONDS", 1)
    hour = Clock.us // HOUR_US * HOUR_US
    consumed: list[datetime] = []
    instants = itertools.count(hour)

    async def store_and_judge(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            consumed.extend(at for (at,) in rows(connection, "DELETE FROM touched_hour WHERE at < now() RETURNING at"))
            receipt = await store(one, MeterReading("m1", next(instants), 1))
            notes = [at for (at,) in rows(connection, "SELECT at FROM touched_hour")]
            assert max([*notes, *consumed]) >= receipt.committed_at

    await store_and_judge(1.2)
    await asyncio.sleep(2.1)
    await store_and_judge(0.2)
    assert len(consumed) == 1


# Late readings


async def test_late_readings_have_a_transaction_for_each_hour(one: Writer, connection: Connection) -> None:
    hours: list[list[Reading]] = [[m("m1", 3_600 * n), v("v1", 3_600 * n + 1)] for n in range(1, 7)]
    flat = [reading for hour in hours for reading in hour]
    receipts = await store_together(one, [batch_of(m("m1"), *flat), batch_of(v("v1", 300), m("m2", 3_600 * 5))])
    assert [counts(receipt) for receipt in receipts] == [(13, 0, 0, 12), (2, 0, 0, 1)]
    transactions = rows(
        connection,
        """
        SELECT date_bin('1 hour', ts, TIMESTAMPTZ '2000-01-01 00:00Z'), ts < now() - INTERVAL '10 minutes',
               array_agg(DISTINCT writer)
        FROM (SELECT ts, xmin::text AS writer FROM meter_reading UNION SELECT ts, xmin::text FROM vehicle_reading)
        GROUP BY 1, 2
        """,
    )
    assert all(len(writers) == 1 for _, _, writers in transactions)
    late = [writers[0] for _, is_late, writers in transactions if is_late]
    fresh = {writers[0] for _, is_late, writers in transactions if not is_late}
    assert len(late) == len(set(late)) == len({hour_of(reading) for reading in flat})
    assert len(fresh) == 1
    assert fresh.isdisjoint(late)


async def test_a_day_that_retention_dropped_is_prepared_again(one: Writer, connection: Connection, engine: str) -> None:
    drop: dict[str, LiteralString] = {
        "plain": "SELECT drop_expired()",
        "timescale": "SELECT drop_chunks('meter_reading', now() - INTERVAL '30 days')",
    }
    old = m("m1", 40 * 86_400)
    for _ in range(3):
        assert counts(await store(one, old)) == (1, 0, 0, 1)
        assert counts(await store(one, old)) == (0, 1, 0, 0)
        connection.execute(drop[engine])
        assert stored(connection) == set()


# Quarantine


async def test_rejected_readings_count_up(one: Writer, connection: Connection) -> None:
    same = rejected(b"same")
    await one.store(batch_of(m("m1"), rejected=[same, rejected(b"other"), same]), Source.HTTP)
    await one.store(batch_of(rejected=[same, rejected(b"same", "missing_field")]), Source.MQTT)
    quarantined = rows(connection, "SELECT source, code, payload, times FROM quarantine")
    assert sorted(quarantined) == [
        ("http", "malformed", b"other", 1),
        ("http", "malformed", b"same", 3),
        ("mqtt", "missing_field", b"same", 1),
    ]
    assert value(connection, "SELECT bool_and(first_at <= last_at) FROM quarantine")


async def test_a_count_that_is_full_fails_no_neighbour(one: Writer, connection: Connection) -> None:
    await one.store(batch_of(rejected=[rejected(b"same")]), Source.HTTP)
    connection.execute("UPDATE quarantine SET times = 2147483647")
    receipts = await asyncio.gather(
        one.store(batch_of(rejected=[rejected(b"same")]), Source.HTTP),
        one.store(batch_of(m("m1")), Source.HTTP),
    )
    assert [receipt.inserted for receipt in receipts] == [0, 1]
    assert value(connection, "SELECT times FROM quarantine") == 2147483647


async def test_two_writers_reject_the_same_readings_at_once(database_url: str, connection: Connection) -> None:
    random = Random(4)
    bad = [rejected(b"%d" % n) for n in range(300)]
    async with writing(database_url) as first, writing(database_url) as second:
        for _ in range(5):
            group = [batch_of(rejected=random.sample(bad, len(bad))) for _ in range(2)]
            await asyncio.gather(*(to.store(one, Source.HTTP) for to, one in zip((first, second), group, strict=True)))
    assert rows(connection, "SELECT times, count(*) FROM quarantine GROUP BY times") == [(10, 300)]
