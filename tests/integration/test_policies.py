"""Policies: the database does what timescale/policies.toml says, whoever has changed it meanwhile."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import msgspec
import psycopg
import pytest

from app.database import command_connection
from app.errors import SetupError
from app.migrate import migrate
from app.policies.desired import POLICIES_FILE, Policies, Table
from app.policies.invariants import read_policies
from app.policies.plan import plan_policies
from app.policies.words import words
from app.telemetry.instant import MAX_AGE
from app.webhooks.queue import GIVE_UP_DAYS
from tests.fixtures.engines import on_plain, on_timescale
from tests.fixtures.policies import apply_policies
from tests.fixtures.readings import Rows

JOBS = """
    SELECT job_id, proc_name, coalesce(hypertable_name, config ->> 'aggregate' || '_cagg'), schedule_interval, config
    FROM timescaledb_information.jobs
    WHERE job_id >= 1000
    ORDER BY job_id
"""
REFRESH, COLUMNSTORE, RETENTION = "cagg_refresh", "policy_compression", "policy_retention"


def fetched(connection: psycopg.Connection, query: str, *parameters: Any) -> Rows:
    return connection.execute(query.encode(), parameters).fetchall()


def interval(connection: psycopg.Connection, value: str) -> Any:
    ((parsed,),) = fetched(connection, "SELECT %s::interval", value)
    return parsed


def relation(name: str) -> str:
    return name if name.endswith("_reading") else f"{name}_cagg"


def job_id(connection: psycopg.Connection, procedure: str, name: str) -> int:
    ((found,),) = fetched(
        connection,
        """SELECT job_id FROM timescaledb_information.jobs
           WHERE proc_name = %s AND coalesce(hypertable_name, config ->> 'aggregate' || '_cagg') = %s""",
        procedure,
        relation(name),
    )
    return int(found)


def live_ages(connection: psycopg.Connection, procedure: str, key: str) -> dict[str, Any]:
    return {
        name: interval(connection, config[key])
        for _, job, name, _, config in fetched(connection, JOBS)
        if job == procedure
    }


def wanted_ages(connection: psycopg.Connection, ages: Mapping[Any, str]) -> dict[str, Any]:
    return {relation(name): interval(connection, age) for name, age in ages.items()}


@on_timescale
def test_the_refresh_jobs_are_those_of_the_file(connection: psycopg.Connection) -> None:
    live = {
        name: (
            interval(connection, config["start_offset"]),
            interval(connection, config["end_offset"]),
            schedule,
            config["buckets_per_batch"],
        )
        for _, job, name, schedule, config in fetched(connection, JOBS)
        if job == REFRESH
    }
    assert live == {
        relation(name): (
            interval(connection, wanted.start_offset),
            interval(connection, wanted.end_offset),
            interval(connection, wanted.schedule_interval),
            wanted.buckets_per_batch,
        )
        for name, wanted in read_policies().refresh.items()
    }
    caggs = fetched(connection, "SELECT view_name FROM timescaledb_information.continuous_aggregates")
    assert set(live) == {name for (name,) in caggs}


@on_timescale
def test_the_columnstore_and_retention_jobs_and_the_chunks_are_those_of_the_file(
    connection: psycopg.Connection,
) -> None:
    policies = read_policies()
    assert live_ages(connection, COLUMNSTORE, "compress_after") == wanted_ages(connection, policies.columnstore_after)
    retention = {name: age for name, age in policies.retention.items() if name not in get_args(Table)}
    assert live_ages(connection, RETENTION, "drop_after") == wanted_ages(connection, retention)
    chunks = fetched(connection, "SELECT hypertable_name, time_interval FROM timescaledb_information.dimensions")
    wanted = wanted_ages(connection, policies.chunk_interval)
    assert {name: width for name, width in chunks if name in wanted} == wanted


@on_timescale
def test_each_refresh_starts_a_minute_s_work_after_the_level_below(connection: psycopg.Connection) -> None:
    rows = fetched(
        connection,
        "SELECT config ->> 'aggregate' || '_cagg', extract(second FROM initial_start) FROM timescaledb_information.jobs"
        " WHERE proc_name = %s",
        REFRESH,
    )
    second: dict[str, int] = dict(rows)
    for stream in ("meter", "vehicle"):
        minute, hour, day = (second[f"{stream}_{width}_cagg"] for width in ("minute", "hour", "day"))
        assert minute < hour < day
        assert minute < second[f"fleet_{stream}_minute_cagg"]


@on_timescale
def test_what_was_changed_removed_or_added_by_others_is_brought_back(
    connection: psycopg.Connection, database_url: str
) -> None:
    before = {row[0]: row[1:] for row in fetched(connection, JOBS)}
    changed = job_id(connection, REFRESH, "meter_hour")
    shortened = job_id(connection, RETENTION, "meter_reading")
    removed = job_id(connection, COLUMNSTORE, "vehicle_minute")
    config = (
        "SELECT alter_job(%s, config => jsonb_set(config, %s, %s)) FROM timescaledb_information.jobs WHERE job_id=%s"
    )
    connection.execute("SELECT alter_job(%s, schedule_interval => INTERVAL '1 day')", [changed])
    connection.execute(config.encode(), [shortened, ["drop_after"], '"9 days"', shortened])
    connection.execute("CALL remove_columnstore_policy('vehicle_minute_cagg')")
    connection.execute("SELECT add_retention_policy('meter_day_cagg', INTERVAL '1 year')")
    connection.execute("SELECT set_chunk_time_interval('meter_reading', INTERVAL '7 days')")

    changed_lines = migrate(database_url)
    assert changed_lines.pop() == left("keep meter_day for good (was 365 days)")
    assert sorted(changed_lines) == [
        "compress vehicle_minute after 10 days",
        "cut meter_reading into chunks of 1 day (was 7 days)",
        "keep meter_reading for 30 days (was 9 days)",
        "refresh meter_hour each 1 minute, over the last 9 days, up to 1 hour ago, 168 buckets at a time"
        " (was each 1 day, over the last 9 days, up to 1 hour ago, 168 buckets at a time)",
    ]
    assert apply(database_url, read_policies()) == ["keep meter_day for good (was 365 days)"]
    after = {row[0]: row[1:] for row in fetched(connection, JOBS)}
    assert sorted(map(repr, after.values())) == sorted(map(repr, before.values()))
    # Policies that still agreed were not touched.
    assert before.keys() - after.keys() == {changed, shortened, removed}
    widths = fetched(
        connection,
        "SELECT time_interval FROM timescaledb_information.dimensions WHERE hypertable_name = 'meter_reading'",
    )
    assert widths == [(interval(connection, "1 day"),)]
    assert migrate(database_url) == []


@on_timescale
def test_policies_of_others_in_the_same_database_are_left_alone(
    connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute("CREATE TABLE other (ts timestamptz NOT NULL, value int)")
    connection.execute("SELECT create_hypertable('other', by_range('ts'))")
    connection.execute("SELECT add_retention_policy('other', INTERVAL '1 day')")
    connection.execute(
        "CREATE MATERIALIZED VIEW other_hour WITH (timescaledb.continuous) AS"
        " SELECT time_bucket(INTERVAL '1 hour', ts) AS bucket, sum(value) FROM other GROUP BY 1 WITH NO DATA"
    )
    connection.execute("SELECT add_continuous_aggregate_policy('other_hour', NULL, NULL, INTERVAL '1 hour')")
    before = fetched(connection, JOBS)
    assert migrate(database_url) == []
    assert fetched(connection, JOBS) == before


@on_timescale
def test_a_refresh_that_the_file_no_longer_names_ends(connection: psycopg.Connection, database_url: str) -> None:
    policies = read_policies()
    fewer = {name: refresh for name, refresh in policies.refresh.items() if name != "meter_day"}
    assert apply(database_url, msgspec.structs.replace(policies, refresh=fewer)) == [
        "refresh meter_day no more (was each 1 minute, over the last 11 days, up to 1 day ago, all buckets at a time)"
    ]
    names = [name for _, job, name, _, _ in fetched(connection, JOBS) if job == REFRESH]
    assert sorted(names) == sorted(map(relation, fewer))


def left(changes: str) -> str:
    """The line of `wattline migrate` about changes that it does not make."""
    return f"Left for `wattline policy apply`: {changes}."


def apply(url: str, policies: Policies) -> list[str]:
    with command_connection(url) as connection, connection.begin():
        return apply_policies(connection, policies)


@on_timescale
def test_of_two_refreshes_of_one_aggregate_the_wanted_one_stays(
    connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute(
        "SELECT add_continuous_aggregate_policy('meter_minute_cagg', INTERVAL '20 days', INTERVAL '10 days',"
        " INTERVAL '1 hour')"
    )
    assert migrate(database_url) == [
        "refresh meter_minute each 1 minute, over the last 8 days, up to 1 minute ago, 1440 buckets at a time"
        " (was each 1 minute, over the last 8 days, up to 1 minute ago, 1440 buckets at a time"
        " and another rule)"
    ]
    assert (
        len([job for _, job, name, _, _ in fetched(connection, JOBS) if (job, name) == (REFRESH, "meter_minute_cagg")])
        == 1
    )
    assert migrate(database_url) == []


@on_timescale
def test_rules_that_the_file_cannot_say_are_replaced(connection: psycopg.Connection, database_url: str) -> None:
    connection.execute("SELECT delete_job(%s)", [job_id(connection, REFRESH, "meter_day")])
    connection.execute("SELECT add_continuous_aggregate_policy('meter_day_cagg', NULL, NULL, INTERVAL '1 minute')")
    connection.execute("SELECT remove_retention_policy('meter_reading')")
    connection.execute("SELECT add_retention_policy('meter_reading', drop_created_before => INTERVAL '1 day')")
    # Whether 30 days keep less than the other rule, nobody knows.
    other = "keep meter_reading for 30 days (was another rule)"
    assert migrate(database_url) == [
        "refresh meter_day each 1 minute, over the last 11 days, up to 1 day ago, all buckets at a time"
        " (was another rule)",
        left(other),
    ]
    assert apply(database_url, read_policies()) == [other]
    assert migrate(database_url) == []


def test_a_plan_reads_only_and_says_what_apply_will_say(
    connection: psycopg.Connection, database_url: str, engine: str
) -> None:
    policies = read_policies()
    longer = msgspec.structs.replace(policies, retention=policies.retention | {"meter_hour": "400 days"})
    with command_connection(database_url) as reading:
        reading.execution_options(postgresql_readonly=True)
        plan = plan_policies(reading, longer)
        assert [change.words for change in plan.changes] == ["keep meter_hour for 400 days (was 1095 days)"]
    assert bool(plan.notes) == (engine == "plain")
    assert apply(database_url, longer) == ["keep meter_hour for 400 days (was 1095 days)"]
    assert apply(database_url, longer) == []


def test_the_longest_interval_that_the_file_can_say_is_applied(database_url: str) -> None:
    policies = read_policies()
    for_ages = msgspec.structs.replace(policies, retention=policies.retention | {"meter_hour": "999999 days"})
    assert apply(database_url, msgspec.convert(msgspec.to_builtins(for_ages), Policies)) == [
        "keep meter_hour for 999999 days (was 1095 days)"
    ]


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        (timedelta(days=1095), "1095 days"),
        (timedelta(days=1), "1 day"),
        (timedelta(hours=36), "36 hours"),
        (timedelta(minutes=1), "1 minute"),
        (timedelta(seconds=90), "90 seconds"),
        (timedelta(0), "0 seconds"),
        (None, "another rule"),
    ],
)
def test_an_interval_is_said_in_its_largest_whole_unit(interval: timedelta | None, said: str) -> None:
    assert words(interval) == said


def test_the_retention_table_is_that_of_the_file_without_what_is_computed_or_a_job_s(
    connection: psycopg.Connection, engine: str
) -> None:
    in_table = get_args(Table) if engine == "timescale" else {*read_policies().retention} - {*COMPUTED}
    wanted = {name: interval(connection, age) for name, age in read_policies().retention.items() if name in in_table}
    assert dict(fetched(connection, "SELECT name, drop_after FROM retention")) == wanted


COMPUTED = "meter_minute", "vehicle_minute"


def test_rows_of_the_retention_of_tables_are_brought_back(connection: psycopg.Connection, database_url: str) -> None:
    query = "SELECT name, drop_after FROM retention ORDER BY name"
    before = fetched(connection, query)
    connection.execute("UPDATE retention SET drop_after = '1 day' WHERE name = 'import_journal'")
    connection.execute("DELETE FROM retention WHERE name = 'alert'")
    added = "keep alert for 1095 days"
    assert migrate(database_url) == ["keep import_journal for 30 days (was 1 day)", left(added)]
    assert apply(database_url, read_policies()) == [added]
    assert fetched(connection, query) == before
    assert migrate(database_url) == []


@on_plain
def test_rows_of_the_retention_table_are_brought_back(connection: psycopg.Connection, database_url: str) -> None:
    query = "SELECT name, drop_after, ctid::text FROM retention ORDER BY name"
    before = fetched(connection, query)
    connection.execute("UPDATE retention SET drop_after = '1 day' WHERE name = 'meter_reading'")
    connection.execute("DELETE FROM retention WHERE name = 'vehicle_hour'")
    connection.execute("INSERT INTO retention VALUES ('meter_day', '1 year')")

    added, removed = "keep vehicle_hour for 1095 days", "keep meter_day for good (was 365 days)"
    assert migrate(database_url) == ["keep meter_reading for 30 days (was 1 day)", left(f"{added}; {removed}")]
    assert apply(database_url, read_policies()) == [added, removed]
    after = fetched(connection, query)
    assert [row[:2] for row in after] == [row[:2] for row in before]
    assert {name for name, _, _ in set(before) - set(after)} == {"meter_reading", "vehicle_hour"}
    assert migrate(database_url) == []


@on_timescale
def test_each_property_that_was_changed_by_hand_is_seen_and_brought_back(
    connection: psycopg.Connection, database_url: str
) -> None:
    before = fetched(connection, PROPERTIES)
    connection.execute("DROP ROLE IF EXISTS somebody")
    connection.execute("CREATE ROLE somebody SUPERUSER LOGIN")
    try:
        for (statement, procedure, name), said in BY_HAND.items():
            connection.execute(statement.encode(), [job_id(connection, procedure, name)] if procedure else [])
            with command_connection(database_url) as reading:
                assert [change.words for change in plan_policies(reading, read_policies()).changes] == [said]
            assert apply(database_url, read_policies()) == [said]
            assert fetched(connection, PROPERTIES) == before
    finally:
        connection.execute("SELECT delete_job(job_id) FROM timescaledb_information.jobs WHERE owner::text = 'somebody'")
        connection.execute("DROP ROLE somebody")


@on_timescale
def test_a_plan_is_made_of_odd_intervals_too(connection: psycopg.Connection, database_url: str) -> None:
    connection.execute(
        "SELECT alter_job(%s, schedule_interval => '1.5 seconds')", [job_id(connection, REFRESH, "meter_day")]
    )
    for age in ("0", "-1 month", "0.25 seconds", "1 year 2 months 3 days 04:05:06.789"):
        connection.execute("SELECT remove_retention_policy('meter_reading')")
        connection.execute("SELECT add_retention_policy('meter_reading', %s::interval)", [age])
        with command_connection(database_url) as reading:
            plan = plan_policies(reading, read_policies())
        assert [change.name for change in plan.changes] == ["meter_day", "meter_reading"]
        assert any("schedule_interval" in clause for clause in plan.broken)


@on_timescale
def test_every_aggregate_may_be_compressed(database_url: str) -> None:
    policies = read_policies()
    ages = dict.fromkeys([*policies.columnstore_after, *policies.refresh], "20 days")
    applied = apply(database_url, msgspec.structs.replace(policies, columnstore_after=ages))
    assert "compress fleet_meter_hour after 20 days" in applied
    assert "compress meter_day after 20 days" in applied
    assert apply(database_url, msgspec.structs.replace(policies, columnstore_after=ages)) == []


# Everything about the jobs but their numbers and times, and all that else is a policy's.
PROPERTIES = """
    SELECT (to_jsonb(job) - 'job_id' - 'next_start' - 'initial_start' - 'application_name')::text
    FROM timescaledb_information.jobs AS job WHERE job_id >= 1000
    UNION ALL
    SELECT view_name || materialized_only FROM timescaledb_information.continuous_aggregates
    UNION ALL
    SELECT concat(segmentby, orderby) FROM timescaledb_information.hypertable_columnstore_settings
    ORDER BY 1
"""
HOUR_REFRESH = "refresh meter_hour each 1 minute, over the last 9 days, up to 1 hour ago, 168 buckets at a time"
BY_HAND = {
    ("SELECT alter_job(%s, schedule_interval => '2 hours')", RETENTION, "meter_reading"): (
        "keep meter_reading for 30 days, with a run each 1 day (was 30 days, with a run each 2 hours)"
    ),
    ("SELECT alter_job(%s, max_runtime => '1 minute')", COLUMNSTORE, "meter_minute"): (
        "compress meter_minute after 10 days, without a limit of time (was 10 days, of 1 minute at most)"
    ),
    (
        """SELECT alter_job(job_id, config => config || '{"maxchunks_to_compress": 1}')
           FROM timescaledb_information.jobs WHERE job_id = %s""",
        COLUMNSTORE,
        "meter_minute",
    ): ('compress meter_minute after 10 days, with no other entries (was 10 days, with {"maxchunks_to_compress": 1})'),
    ("SELECT alter_job(%s, scheduled => false)", REFRESH, "meter_hour"): (
        f"{HOUR_REFRESH}, not paused (was {HOUR_REFRESH.removeprefix('refresh meter_hour ')}, paused)"
    ),
    ("SELECT alter_job(%s, next_start => 'infinity')", RETENTION, "vehicle_hour"): (
        "keep vehicle_hour for 1095 days, not paused (was 1095 days, paused)"
    ),
    ("ALTER TABLE meter_reading SET (timescaledb.segmentby = '', timescaledb.orderby = 'meter_id, ts')", "", ""): (
        "compress meter_reading after 10 days, in segments of meter_id by ts DESC"
        " (was 10 days, in one segment by meter_id,ts)"
    ),
    ("ALTER MATERIALIZED VIEW meter_hour_cagg SET (timescaledb.materialized_only)", "", ""): (
        f"{HOUR_REFRESH}, in real time (was {HOUR_REFRESH.removeprefix('refresh meter_hour ')}, materialised only)"
    ),
    (
        """
        WITH gone AS (SELECT job.*, delete_job(job_id) FROM timescaledb_information.jobs AS job WHERE job_id = %s)
        SELECT set_config('role', 'somebody', true),
               add_job('cagg_refresh', schedule_interval, config => config) FROM gone
        """,
        REFRESH,
        "meter_hour",
    ): (
        f"{HOUR_REFRESH}, as the table's owner"
        f" (was {HOUR_REFRESH.removeprefix('refresh meter_hour ')}, as the role somebody)"
    ),
}


def start_offsets(connection: psycopg.Connection) -> dict[str, Any]:
    offsets = {name: refresh.start_offset for name, refresh in read_policies().refresh.items()}
    return wanted_ages(connection, offsets)


def test_start_offsets_lie_beyond_the_live_window_and_grow_upward(connection: psycopg.Connection) -> None:
    start = start_offsets(connection)
    assert min(start.values()) > MAX_AGE
    assert POLICIES_FILE.read_text().count(f"the {MAX_AGE.days} days in which readings may arrive") == 2
    for stream in ("meter", "vehicle"):
        minute, hour, day = (start[f"{stream}_{width}_cagg"] for width in ("minute", "hour", "day"))
        assert minute < hour < day


def test_nothing_is_dropped_or_compressed_that_a_refresh_could_still_read_or_rewrite(
    connection: psycopg.Connection,
) -> None:
    start, policies = start_offsets(connection), read_policies()
    for name, age in wanted_ages(connection, policies.columnstore_after).items():
        assert age > start.get(name, MAX_AGE)
    kept, chunk = wanted_ages(connection, policies.retention), interval(connection, "10 days")
    for stream in ("meter", "vehicle"):
        for level, above in LEVELS.items():
            assert kept[relation(f"{stream}_{level}")] > start[f"{stream}_{above}_cagg"] + chunk


def test_what_must_outlive_something_does(connection: psycopg.Connection) -> None:
    retention: dict[str, timedelta] = {
        name: interval(connection, age) for name, age in read_policies().retention.items()
    }
    assert retention["import_journal"] >= max(retention["meter_reading"], retention["vehicle_reading"])
    minutes = max(retention[name] for name in COMPUTED)
    assert min(retention["efficiency_hour"], retention["alert"]) > minutes
    assert retention["alert_transition"] > timedelta(days=GIVE_UP_DAYS)


LEVELS = {"reading": "minute", "minute": "hour", "hour": "day"}
"""Each level that is dropped at some age, and the level that is made of it."""

BREAKS: dict[str, tuple[Callable[[str], str], str]] = {
    "no TOML": (lambda text: text + "[refresh", "TOML"),
    "an unknown table": (lambda text: text + "\n[compression]\nmeter_reading = '1 day'\n", "compression"),
    "an unknown key": (lambda text: text + "\nstart = '1 day'\n", ".start is unknown"),
    "an unknown aggregate": (lambda text: text.replace("[refresh.meter_day]", "[refresh.meter_month]"), "meter_month"),
    "an unknown name": (lambda text: text.replace('vehicle_hour = "1095', 'vehicle_hours = "1095'), "vehicle_hours"),
    "a wrong type": (lambda text: text.replace("buckets_per_batch = 168", 'buckets_per_batch = "168"', 1), "`int`"),
    "no interval": (lambda text: text.replace('"180 days"', '"180 dayz"', 1), 'like "8 days"'),
    "an interval of nothing": (lambda text: text.replace('"180 days"', '"0 days"', 1), 'like "8 days"'),
    "an interval beyond all dates": (lambda text: text.replace('"180 days"', '"9999999999 days"', 1), 'like "8 days"'),
    "an interval of two lines": (lambda text: text.replace('"180 days"', '"180 days\\n"', 1), 'like "8 days"'),
    "a missing key": (lambda text: text.replace('end_offset = "1 hour"\n', "", 1), "lacks end_offset"),
    "a missing table": (lambda text: text[text.index("[columnstore_after]") :], "`chunk_interval`"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_file_is_one_line_that_names_it(what: str, tmp_path: Path) -> None:
    break_it, named = BREAKS[what]
    broken = tmp_path / "policies.toml"
    broken.write_text(break_it(POLICIES_FILE.read_text()))
    with pytest.raises(SetupError) as refused:
        read_policies(broken)
    message = str(refused.value)
    assert message.startswith("policies.toml: ")
    assert named in message
    assert "\n" not in message


def test_a_missing_file_is_one_line_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"^elsewhere\.toml: "):
        read_policies(tmp_path / "elsewhere.toml")
