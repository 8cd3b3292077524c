"""House-keeping: partitions made ahead, old days dropped without changing an answer, everything bounded."""

import asyncio
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, get_args

import msgspec
import psycopg
import pytest
from psycopg import sql

from app.database import command_connection, connect
from app.ops.maintenance import QUARANTINE_ROWS, maintain
from app.ops.refresh import refresh_aggregates
from app.policies.desired import Table
from app.policies.invariants import read_policies
from tests.fixtures.engines import on_plain, on_timescale, policy_jobs, refresh_while_young, run_policies
from tests.fixtures.policies import apply_policies
from tests.fixtures.readings import (
    Reading,
    Rows,
    answer,
    answers,
    counted,
    meter_reading,
    midnight,
    random_readings,
    store,
    vehicle_reading,
)

REFRESH, COLUMNSTORE, RETENTION = "cagg_refresh", "policy_compression", "policy_retention"
PARTITIONS = """
    SELECT child.relname FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid
    WHERE inhparent IN ('meter_reading'::regclass, 'vehicle_reading'::regclass)
    ORDER BY 1
"""
PREPARE_AHEAD = "SELECT prepare_days(now() + INTERVAL '10 days', now() + INTERVAL '20 days')"


def drop_all_expired(connection: psycopg.Connection) -> None:
    """Drops all old partitions, one per call."""
    while connection.execute("SELECT drop_expired()").fetchone() == (True,):
        pass


def column(connection: psycopg.Connection, query: str) -> list[Any]:
    return [value for (value,) in connection.execute(query.encode())]


def partitions(*days: datetime) -> list[str]:
    return sorted(f"{table}_{day:%Y%m%d}" for table in ("meter_reading", "vehicle_reading") for day in days)


async def maintain_once(url: str) -> bool:
    connection = await connect(url)
    try:
        return await maintain(connection)
    finally:
        await connection.close()


def days_and_hours(connection: psycopg.Connection) -> dict[str, Rows]:
    found = answers(connection, midnight(1200), midnight(-1), "hour", "day")
    assert all(found.values())
    return found


def minutes_before(connection: psycopg.Connection, end: datetime) -> int:
    return sum(map(len, answers(connection, midnight(1200), end, "meter_minute", "vehicle_minute").values()))


@on_plain
def test_each_touched_day_gets_its_partitions_once(connection: psycopg.Connection) -> None:
    first, last = midnight(50), midnight(48)
    for _ in range(2):
        connection.execute("SELECT prepare_days(%s, %s)", [first + timedelta(hours=23), last])
        assert column(connection, PARTITIONS) == partitions(midnight(50), midnight(49), midnight(48))


@on_plain
def test_days_are_utc_days_whatever_the_session_s_time_zone(connection: psycopg.Connection) -> None:
    connection.execute("SET timezone = 'Pacific/Auckland'")
    connection.execute("SET datestyle = 'SQL, DMY'")
    connection.execute("SELECT prepare_days(%s, %s)", [midnight(50), midnight(50)])
    connection.execute(
        "INSERT INTO meter_reading (ts, meter_id, ac_milliwh) VALUES (%s, 1, 1), (%s, 1, 1)",
        [midnight(50), midnight(49) - timedelta(microseconds=1)],
    )
    assert column(connection, "SELECT DISTINCT tableoid::regclass::text FROM meter_reading") == [
        f"meter_reading_{midnight(50):%Y%m%d}"
    ]


@on_plain
def test_many_may_prepare_the_same_days_at_once(connection: psycopg.Connection, database_url: str) -> None:
    def prepare(_: int) -> None:
        with psycopg.connect(database_url, autocommit=True) as own:
            own.execute(PREPARE_AHEAD)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(prepare, range(8)))
    assert len(column(connection, PARTITIONS)) == 22


@on_plain
def test_preparing_days_waits_for_no_insert_and_no_insert_waits_for_it(
    connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute("SELECT prepare_days(now(), now())")
    insert = "INSERT INTO meter_reading (ts, meter_id, ac_milliwh) VALUES (now(), %s, 1)"
    with psycopg.connect(database_url) as storing, psycopg.connect(database_url) as preparing:
        storing.execute(insert, [1])
        preparing.execute("SET LOCAL lock_timeout = '1s'")
        preparing.execute(PREPARE_AHEAD)
        connection.execute("SET lock_timeout = '1s'")
        connection.execute(insert, [2])


@on_plain
async def test_dropping_a_day_keeps_its_hours_and_days_and_the_rest(
    connection: psycopg.Connection, database_url: str
) -> None:
    await store(database_url, *random_readings(13, midnight(33), 2, 400), *random_readings(14, midnight(29), 2, 200))
    before = days_and_hours(connection)
    assert minutes_before(connection, midnight(31)) > 0
    young = answers(connection, midnight(29), midnight(-1))
    drop_all_expired(connection)
    assert days_and_hours(connection) == before
    assert answers(connection, midnight(29), midnight(-1)) == young
    assert column(connection, PARTITIONS) == partitions(midnight(29), midnight(28))
    assert minutes_before(connection, midnight(31)) == 0
    drop_all_expired(connection)
    assert days_and_hours(connection) == before


@on_plain
async def test_a_reader_of_an_old_day_is_not_disturbed_and_the_day_is_dropped_next_time(
    connection: psycopg.Connection, database_url: str
) -> None:
    await store(database_url, *random_readings(15, midnight(33), 1, 100))
    before = days_and_hours(connection)
    with psycopg.connect(database_url) as reading:
        reading.execute("SELECT count(*) FROM meter_reading")
        started = time.monotonic()
        with pytest.raises(psycopg.errors.LockNotAvailable):
            drop_all_expired(connection)
        assert time.monotonic() - started < 20  # the limit is half a second
        assert column(connection, PARTITIONS) == partitions(midnight(33))
        assert days_and_hours(connection) == before
    drop_all_expired(connection)
    assert column(connection, PARTITIONS) == []
    assert days_and_hours(connection) == before


@on_plain
async def test_a_refused_drop_undoes_no_other_step(connection: psycopg.Connection, database_url: str) -> None:
    await store(database_url, *random_readings(16, midnight(33), 1, 10))
    with psycopg.connect(database_url) as reading:
        reading.execute("SELECT count(*) FROM meter_reading")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await maintain_once(database_url)
    assert partitions(midnight(-1))[0] in column(connection, PARTITIONS)


@on_plain
async def test_the_retention_table_decides_for_each_table_by_itself(
    connection: psycopg.Connection, database_url: str
) -> None:
    await store(database_url, *random_readings(17, midnight(33), 1, 100))
    connection.execute("UPDATE retention SET drop_after = '100 days' WHERE name = 'meter_reading'")
    drop_all_expired(connection)
    assert column(connection, PARTITIONS) == partitions(midnight(33))[:1]
    connection.execute("DELETE FROM retention WHERE name = 'meter_reading'")
    drop_all_expired(connection)
    assert column(connection, PARTITIONS) == partitions(midnight(33))[:1]
    connection.execute("INSERT INTO retention VALUES ('meter_reading', '1 day')")
    drop_all_expired(connection)
    assert column(connection, PARTITIONS) == []


@on_plain
async def test_hours_and_fleet_minutes_go_at_their_own_ages(connection: psycopg.Connection, database_url: str) -> None:
    old, older, oldest = midnight(100), midnight(185), midnight(1100)
    for day in (old, older, oldest):
        await store(database_url, *both_at(day + timedelta(hours=12), day + timedelta(hours=12, minutes=1)))
    before = days_and_hours(connection)
    drop_all_expired(connection)
    assert column(connection, PARTITIONS) == []
    for stream in ("meter", "vehicle"):
        hours = [row[1] for row in answer(connection, f"{stream}_hour", midnight(1200), midnight(-1))]
        assert sorted(hours) == [day + timedelta(hours=12) for day in (older, old)]
    assert column(connection, "SELECT bucket FROM fleet_minute('2000-01-01', now()) ORDER BY bucket") == [
        old + timedelta(hours=12, minutes=minute) for minute in (0, 1)
    ]
    # The hours and days made of them stay.
    after = days_and_hours(connection)
    for name in before.keys() - {"meter_hour", "vehicle_hour"}:
        assert after[name] == before[name]
    drop_all_expired(connection)
    assert days_and_hours(connection) == after


def both_at(*instants: datetime) -> list[Reading]:
    return [make(at) for at in instants for make in (meter_reading, vehicle_reading)]


def reject(connection: psycopg.Connection, source: str, device: str | None, count: int, **more: Any) -> None:
    """Puts so many readings into quarantine, whose payloads are numbered after those of before."""
    connection.execute(
        """
        INSERT INTO quarantine (source, device, code, message, payload, hash, last_at)
        SELECT %(source)s, replace(%(device)s, '*', n::text), %(code)s, '', '', n::text::bytea,
               now() - make_interval(days => %(days)s)
        FROM (SELECT count(*) AS before FROM quarantine) AS known, generate_series(before + 1, before + %(count)s) AS n
        """,
        {"code": "malformed", "days": 0} | more | {"source": source, "device": device, "count": count},
    )


def left(connection: psycopg.Connection) -> dict[tuple[str, str | None, str], int]:
    """Returns the number of readings in quarantine by source, device and reason; made-up devices are `x`."""
    rows = connection.execute(
        "SELECT source, regexp_replace(device, '^x.*', 'x'), code, count(*) FROM quarantine GROUP BY 1, 2, 3"
    )
    return {(source, device, code): count for source, device, code, count in rows}


async def test_quarantine_is_bounded_in_age_and_rows(connection: psycopg.Connection, database_url: str) -> None:
    reject(connection, "http", "M1", 5, days=31)
    reject(connection, "http", "M1", QUARANTINE_ROWS + 7, days=29)
    assert await maintain_once(database_url)
    kept = column(connection, "SELECT convert_from(hash, 'UTF8')::int FROM quarantine ORDER BY id")
    assert kept == list(range(5 + 7 + 1, 5 + 7 + QUARANTINE_ROWS + 1))
    assert await maintain_once(database_url)
    assert column(connection, "SELECT quarantine_dropped FROM installation") == [5 + 7]


async def test_one_device_does_not_push_the_readings_of_others_out_of_quarantine(
    connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute("INSERT INTO meter (external_id) VALUES ('M1'), ('M2'), ('both')")
    connection.execute("INSERT INTO vehicle (external_id) VALUES ('V1'), ('both')")
    evidence = {
        ("http", "M2", "malformed"): 30,
        ("http", "V1", "too_old"): 20,
        ("http", "both", "malformed"): 4,
        ("mqtt", "M1", "malformed"): 10,
        ("mqtt", None, "malformed"): 6,
        ("http", None, "malformed"): 5,
    }
    for (source, device, code), count in evidence.items():
        reject(connection, source, device, count, code=code)
    reject(connection, "http", "M1", QUARANTINE_ROWS)
    assert await maintain_once(database_url)
    kept = left(connection)
    assert kept.pop(("http", "M1", "malformed")) == QUARANTINE_ROWS - sum(evidence.values())
    assert kept == evidence
    assert column(connection, "SELECT quarantine_dropped FROM installation") == [sum(evidence.values())]


async def test_the_quarantine_is_shared_equally_by_devices_that_have_more_than_their_share(
    connection: psycopg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(5)
    connection.execute("INSERT INTO meter (external_id) SELECT 'M' || n FROM generate_series(0, 5) AS n")
    sent: Counter[tuple[str, str | None, str]] = Counter()
    for _ in range(60):
        source, device, count = random.choice(["http", "mqtt"]), f"M{random.randrange(6)}", random.randrange(1, 12)
        reject(connection, source, device, count)
        sent[source, device, "malformed"] += count
    for bound in 300, 100, 40, 5, 0:
        monkeypatch.setattr("app.ops.maintenance.QUARANTINE_ROWS", bound)
        assert await maintain_once(database_url)
        kept = left(connection)
        assert sum(kept.values()) == min(bound, sum(sent.values()))
        cut = [kept.get(group, 0) for group in sent if kept.get(group, 0) < sent[group]]
        # Who lost a reading has at most one less than anybody else.
        assert max(kept.values(), default=0) <= min(cut, default=bound) + 1


async def test_made_up_devices_share_one_place_in_quarantine_for_each_reason(
    connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute("INSERT INTO meter (external_id) VALUES ('M1')")
    evidence = {("http", "M1", "malformed"): 50, ("http", "x", "malformed"): 40, ("http", None, "malformed"): 1}
    for (source, device, code), count in evidence.items():
        reject(connection, source, device, count, code=code)
    reject(connection, "http", "x-*", QUARANTINE_ROWS, code="too_many_new_devices")
    assert await maintain_once(database_url)
    kept = left(connection)
    assert kept.pop(("http", "x", "too_many_new_devices")) == QUARANTINE_ROWS - sum(evidence.values())
    assert kept == evidence


async def test_an_import_is_forgotten_once_it_is_refreshed_and_older_than_readings_are_kept(
    connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute(
        """
        INSERT INTO import_journal
        SELECT id::bytea, 'h.csv', 1, 1, '', 0, 0, 0, 0, 0, 0, touched::tstzmultirange, now() - age * INTERVAL '1 day'
        FROM (VALUES ('1', '{}', 29), ('2', '{}', 31), ('3', '{[2000-01-01, 2000-01-02)}', 31)) AS r (id, touched, age)
        """
    )
    assert await maintain_once(database_url)
    assert column(connection, "SELECT convert_from(id, 'UTF8') FROM import_journal ORDER BY 1") == ["1", "3"]


async def test_what_alerts_are_judged_by_and_their_log_come_to_an_end(
    connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute(
        """
        INSERT INTO efficiency_hour
        SELECT age, now() - age * INTERVAL '1 day', 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
        FROM unnest('{1094, 1096}'::int[]) AS age;
        INSERT INTO alert
        SELECT 'frozen_meter', 'meter', n, '2000-01-01', now() - age * INTERVAL '1 day', '{}'
        FROM unnest('{1094, 1096, NULL}'::int[]) WITH ORDINALITY AS r (age, n);
        """
    )
    connection.execute(
        """
        INSERT INTO alert_transition (at, transition, kind, stream, device_id, opened, evidence)
        SELECT now() - age * INTERVAL '1 day', 'opened', 'frozen_meter', 'meter', age, '2000-01-01', '{}'
        FROM unnest('{89, 91, 92}'::int[]) AS age
        """
    )
    connection.execute("INSERT INTO webhook SELECT id FROM alert_transition WHERE device_id = 92")
    assert await maintain_once(database_url)
    assert column(connection, "SELECT vehicle_id FROM efficiency_hour") == [1094]
    assert column(connection, "SELECT device_id FROM alert ORDER BY 1") == [1, 3]
    assert column(connection, "SELECT device_id FROM alert_transition ORDER BY 1") == [89, 92]


@pytest.mark.parametrize(("age", "left"), [("20 days", 0), ("40 days", 1), (None, 1)])
async def test_what_policies_retain_is_what_maintenance_leaves(
    connection: psycopg.Connection, database_url: str, age: str | None, left: int
) -> None:
    policies = read_policies()
    retention = {name: kept for name, kept in policies.retention.items() if name not in get_args(Table)}
    if age is not None:
        retention |= dict.fromkeys(get_args(Table), age)
    with command_connection(database_url) as migrating, migrating.begin():
        words = apply_policies(migrating, msgspec.structs.replace(policies, retention=retention))
    assert sorted(words) == sorted(
        f"keep {name} for {age or 'good'} (was {policies.retention[name]})" for name in get_args(Table)
    )
    connection.execute(
        """
        INSERT INTO fleet_spread SELECT now() - INTERVAL '30 days', now() - INTERVAL '30 days', 1, 0, 0, 0;
        INSERT INTO efficiency_hour SELECT 1, now() - INTERVAL '30 days', 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0;
        INSERT INTO session_hour
        SELECT 1, '2000-01-01', now() - INTERVAL '30 days', now(), true, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0;
        INSERT INTO charging_session
        SELECT 1, '2000-01-01', now() - INTERVAL '30 days', now(), 1, 1, 1, 1, 0, 'ok', 1, 1, 1, 1, 1, 1, 1;
        INSERT INTO alert SELECT 'frozen_meter', 'meter', 1, '2000-01-01', now() - INTERVAL '30 days', '{}';
        INSERT INTO alert_transition (at, transition, kind, stream, device_id, opened, evidence)
        SELECT now() - INTERVAL '30 days', 'opened', 'frozen_meter', 'meter', 1, '2000-01-01', '{}';
        INSERT INTO quarantine (source, code, message, payload, hash, last_at)
        SELECT 'http', 'malformed', '', '', '', now() - INTERVAL '30 days';
        INSERT INTO import_journal
        SELECT '1', 'h.csv', 1, 1, '', 0, 0, 0, 0, 0, 0, '{}', now() - INTERVAL '30 days';
        INSERT INTO storage_size SELECT now() - INTERVAL '30 days', 'quarantine', 1;
        """
    )
    assert await maintain_once(database_url)
    connection.execute("DELETE FROM storage_size WHERE at > now() - INTERVAL '1 day'")  # those of this round
    for table in get_args(Table):
        rows = sql.SQL("TABLE {}").format(sql.Identifier(table))
        assert connection.execute(rows).rowcount == left, table


async def test_of_two_processes_one_maintains(connection: psycopg.Connection, database_url: str) -> None:
    with psycopg.connect(database_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtext('wattline maintenance'))")
        assert not await maintain_once(database_url)
    assert await maintain_once(database_url)


async def test_maintenance_and_ingest_get_along(database_url: str) -> None:
    maintained = asyncio.gather(*(maintain_once(database_url) for _ in range(4)))
    receipts = [await store(database_url, *both_at(datetime.now(UTC))) for _ in range(4)]
    assert any(await maintained)
    assert [receipt.inserted for receipt in receipts] == [2] * 4


@on_plain
async def test_maintenance_makes_the_partitions_of_the_coming_days(
    connection: psycopg.Connection, database_url: str
) -> None:
    assert await maintain_once(database_url)
    assert column(connection, PARTITIONS) == partitions(midnight(0), midnight(-1), midnight(-2))


def raw_chunks_before(connection: psycopg.Connection, end: datetime) -> int:
    ((count,),) = connection.execute(
        """
        SELECT count(*) FROM timescaledb_information.chunks
        WHERE hypertable_name IN ('meter_reading', 'vehicle_reading') AND range_end <= %s
        """,
        [end],
    ).fetchall()
    return int(count)


@on_timescale
async def test_the_retention_job_drops_old_readings_and_no_refresh_erases_their_hours(
    connection: psycopg.Connection, database_url: str
) -> None:
    await store(database_url, *random_readings(18, midnight(40), 2, 100), *random_readings(19, midnight(3), 3, 100))
    refresh_while_young(connection, midnight(1210), midnight(0))
    before = answers(connection, midnight(50), midnight(-1))
    assert all(answers(connection, midnight(50), midnight(30)).values())
    assert raw_chunks_before(connection, midnight(30)) > 0
    run_policies(connection, RETENTION)
    assert raw_chunks_before(connection, midnight(31)) == 0
    assert answers(connection, midnight(50), midnight(-1)) == before
    run_policies(connection, REFRESH)
    assert answers(connection, midnight(50), midnight(-1)) == before


@on_timescale
async def test_no_refresh_erases_what_was_dropped_whatever_is_set_by_hand(
    connection: psycopg.Connection, database_url: str
) -> None:
    await store(database_url, *(each for day in range(1, 26) for each in random_readings(day, midnight(day), 2, 40)))
    refresh_while_young(connection, midnight(26), midnight(0))
    run_policies(connection, REFRESH)
    before = answers(connection, midnight(26), midnight(-1))
    assert all(answers(connection, midnight(7), midnight(6)).values())

    # A retention far below the refreshes' reach, in both ways to set one.
    connection.execute(CONFIGURE, ["drop_after", "3 days", RETENTION, "meter_reading"])
    connection.execute("SELECT remove_retention_policy('vehicle_reading')")
    connection.execute("SELECT add_retention_policy('vehicle_reading', drop_after => INTERVAL '7 days')")
    run_policies(connection, RETENTION)
    assert raw_chunks_before(connection, midnight(7)) == 0
    run_policies(connection, REFRESH)
    assert answers(connection, midnight(26), midnight(-1)) == before

    # A refresh that reaches further back afterwards: what was dropped stays invalid for good.
    for (name,) in connection.execute("SELECT name FROM cagg_level").fetchall():
        connection.execute(CONFIGURE, ["start_offset", "24 days", REFRESH, name])
    run_policies(connection, REFRESH)
    assert answers(connection, midnight(26), midnight(-1)) == before

    # Chunks dropped by hand, and late readings that make new ones in their place, with nothing else in them.
    connection.execute("SELECT drop_chunks('vehicle_reading', older_than => %s)", [midnight(5)])
    await store(database_url, *both_at(midnight(6) + timedelta(hours=12, seconds=1)))
    for _ in range(2):
        run_policies(connection, REFRESH)
        refresh_aggregates(database_url, None, None)
    assert answers(connection, midnight(26), midnight(-1)) == before


@on_timescale
async def test_minutes_dropped_below_the_reach_of_the_hours_leave_hours_and_days(
    connection: psycopg.Connection, database_url: str
) -> None:
    await store(database_url, *(each for day in range(1, 29) for each in random_readings(day, midnight(day), 2, 40)))
    refresh_while_young(connection, midnight(29), midnight(0))
    run_policies(connection, REFRESH)
    before = days_and_hours(connection)
    connection.execute(CONFIGURE, ["drop_after", "5 days", RETENTION, "meter_minute"])
    connection.execute(CONFIGURE, ["start_offset", "27 days", REFRESH, "meter_hour"])
    run_policies(connection, RETENTION)
    run_policies(connection, REFRESH)
    refresh_aggregates(database_url, None, None)
    assert days_and_hours(connection) == before


@on_timescale
async def test_no_refresh_of_others_erases_what_was_dropped(connection: psycopg.Connection, database_url: str) -> None:
    await store(database_url, *(each for day in range(1, 26) for each in random_readings(day, midnight(day), 2, 40)))
    refresh_while_young(connection, midnight(26), midnight(0))
    run_policies(connection, REFRESH)
    run_policies(connection, COLUMNSTORE)
    before = answers(connection, midnight(26), midnight(-1))
    for reading in ("meter_reading", "vehicle_reading"):
        connection.execute("SELECT drop_chunks(%s::regclass, older_than => %s)", [reading, midnight(5)])
    await store(database_url, *both_at(midnight(6) + timedelta(hours=12, seconds=1)))
    for (name,) in connection.execute("SELECT name || '_cagg' FROM cagg_level").fetchall():
        connection.execute("SELECT add_continuous_aggregate_policy(%s, NULL, NULL, INTERVAL '1 hour')", [name])
        connection.execute("CALL refresh_continuous_aggregate(%s::regclass, NULL, NULL, force => true)", [name])
    run_policies(connection, "policy_refresh_continuous_aggregate")
    assert answers(connection, midnight(26), midnight(-1)) == before


@on_timescale
async def test_a_refresh_without_a_whole_bucket_to_do_does_nothing(
    connection: psycopg.Connection, database_url: str
) -> None:
    await store(database_url, *both_at(midnight(1)))
    for bound, offset in (("start_offset", "25 hours"), ("end_offset", "2 hours")):
        connection.execute(CONFIGURE, [bound, offset, REFRESH, "meter_day"])
    run_policies(connection, REFRESH)
    assert len(answer(connection, "meter_day", midnight(2), midnight(0))) == 1


@on_timescale
async def test_a_late_reading_of_a_day_that_was_refreshed_by_hand_does_not_wait_for_the_end_offset(
    connection: psycopg.Connection, database_url: str
) -> None:
    at = midnight(1) + timedelta(hours=23)
    await store(database_url, *both_at(at))
    refresh_aggregates(database_url, None, None)
    assert counted(connection, "meter_day", midnight(1), midnight(0)) == 1
    await store(database_url, *both_at(at + timedelta(minutes=1)))
    run_policies(connection, REFRESH)
    assert counted(connection, "meter_day", midnight(1), midnight(0)) == 2


CONFIGURE = """
    SELECT alter_job(job_id, config => jsonb_set(config, ARRAY[change.key], to_jsonb(change.value)))
    FROM timescaledb_information.jobs, (VALUES (%s, %s, %s, %s)) AS change (key, value, procedure, name)
    WHERE proc_name = change.procedure
        AND change.name IN (config ->> 'aggregate', regexp_replace(hypertable_name, '_cagg$', ''))
"""


@on_timescale
async def test_dropped_minutes_leave_their_hours_and_dropped_hours_their_days(
    connection: psycopg.Connection, database_url: str
) -> None:
    minutes_gone, hours_gone = midnight(200), midnight(1200)
    for day in (minutes_gone, hours_gone):
        await store(database_url, *both_at(day + timedelta(hours=12)))
    await store(database_url, *random_readings(20, midnight(3), 3, 50))
    refresh_while_young(connection, midnight(1210), midnight(0))
    before = days_and_hours(connection)
    assert all(answers(connection, midnight(1200), midnight(1199)).values())
    assert minutes_before(connection, midnight(190)) > 0
    run_policies(connection, RETENTION)
    run_policies(connection, REFRESH)
    refresh_aggregates(database_url, None, None)
    after = days_and_hours(connection)
    assert minutes_before(connection, midnight(190)) == 0
    for name in before:
        for_good = name.startswith("fleet_") or name.endswith("_day")
        assert after[name] == [row for row in before[name] if for_good or row[1] > midnight(1095)]


@on_timescale
async def test_the_columnstore_changes_no_answer_and_knows_its_duplicates(
    connection: psycopg.Connection, database_url: str
) -> None:
    readings = list(random_readings(21, midnight(22), 3, 200))
    await store(database_url, *readings)
    refresh_aggregates(database_url, None, None)
    before = answers(connection, midnight(31), midnight(-1))
    run_policies(connection, COLUMNSTORE)
    compressed = column(
        connection,
        """
        SELECT DISTINCT coalesce(cagg.view_name, chunk.hypertable_name) FROM timescaledb_information.chunks AS chunk
        LEFT JOIN timescaledb_information.continuous_aggregates AS cagg
            ON cagg.materialization_hypertable_name = chunk.hypertable_name
        WHERE is_compressed
        """,
    )
    assert len(compressed) == len(policy_jobs(connection, COLUMNSTORE)) == 6
    assert answers(connection, midnight(31), midnight(-1)) == before

    again = await store(database_url, *readings)
    assert (again.inserted, again.duplicates, again.conflicts) == (0, len(readings), 0)
    run_policies(connection, REFRESH)
    refresh_aggregates(database_url, None, None)
    assert answers(connection, midnight(31), midnight(-1)) == before


@on_timescale
async def test_a_new_reading_of_a_compressed_chunk_is_stored_and_counted(
    connection: psycopg.Connection, database_url: str
) -> None:
    at = midnight(20) + timedelta(hours=1)
    await store(database_url, *both_at(at))
    refresh_aggregates(database_url, None, None)
    run_policies(connection, COLUMNSTORE)
    # The first value wins there too.
    receipt = await store(database_url, meter_reading(at, 0.5), meter_reading(at + timedelta(seconds=5), 0.25))
    assert (receipt.inserted, receipt.duplicates, receipt.conflicts, receipt.late) == (1, 1, 1, 1)
    refresh_aggregates(database_url, None, None)
    assert column(connection, "SELECT ac_milliwh FROM meter_minute('2000-01-01', now())") == [370_000]
    assert column(connection, "SELECT ac_milliwh FROM meter_day('2000-01-01', now())") == [370_000]
