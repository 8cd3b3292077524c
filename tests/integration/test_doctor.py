"""The doctor: its complaints, and that it keeps secrets and changes nothing."""

import asyncio
import re
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import msgspec
import psycopg
import pytest
from alembic import command

from app.database import connected, most_connections
from app.errors import SetupError
from app.migrate import OTHER_SQL, migrate, newest_revision
from app.ops.doctor.ask import disk_bytes, find_out
from app.ops.doctor.checks import wrong
from app.ops.doctor.facts import Facts
from app.ops.doctor.report import examine
from app.ops.maintenance import QUARANTINE_ROWS, maintain
from app.ops.refresh import refresh_aggregates
from app.policies.desired import Policies
from app.postgres.embedded import running
from app.settings import Settings, variable_of
from tests.fixtures.database import available_engines
from tests.fixtures.engines import needs_timescale, on_plain, on_timescale
from tests.fixtures.readings import meter_reading, store, vehicle_reading
from tests.fixtures.service import free_port, service
from tests.fixtures.waiting import eventually
from tests.integration.test_migrations import OBJECTS, alembic, rows

# The tests' servers need not keep readings, and run no jobs.
FSYNC = "fsync is off: what was acknowledged may be lost when the machine fails."
WORKERS = "The server has 0 background workers for TimescaleDB"
REFRESH = "Not refreshed"
HOUR = timedelta(hours=1)


def examined(url: str, **environ: str) -> tuple[str, bool]:
    environ = {"DATABASE_URL": url, **environ}
    return examine(nullcontext(url), Settings.from_environ(environ), environ)


def facts(url: str) -> Facts:
    environ = {"DATABASE_URL": url}
    return find_out(nullcontext(url), Settings.from_environ(environ), environ)


def listed(report: str, title: str) -> list[str]:
    """Returns the numbered sentences under a title."""
    _, _, after = report.partition(f"\n{title}\n")
    sentences = re.split(r"^ +\d+\. ", after.partition("\n\n")[0], flags=re.MULTILINE)[1:]
    return [" ".join(sentence.split()) for sentence in sentences]


def complaints(url: str, **environ: str) -> list[str]:
    """Returns the complaints, without those that hold for the tests' servers always, or after a while."""
    report, healthy = examined(url, **environ)
    found = listed(report, "What is wrong")
    assert healthy == (not found)
    return [sentence for sentence in found if not sentence.startswith((FSYNC, WORKERS, REFRESH))]


def sentences(found: Facts) -> list[str]:
    return [finding.sentence for finding in wrong(found)]


def lines(report: str, title: str) -> list[str]:
    _, _, after = report.partition(f"\n{title}\n")
    return [line.strip() for line in after.partition("\n\n")[0].splitlines()]


def test_an_empty_database_has_only_the_faults_of_its_server(database_url: str, engine: str) -> None:
    report, healthy = examined(database_url)
    assert not healthy
    expected = [FSYNC, WORKERS] if engine == "timescale" else [FSYNC]
    for sentence, start in zip(listed(report, "What is wrong"), expected, strict=True):
        assert sentence.startswith(start)


def test_each_section_says_what_the_database_is(database_url: str, engine: str) -> None:
    report, _ = examined(database_url)
    assert f"engine       {engine}" in lines(report, "Database")
    assert f"revision     {newest_revision()}, {newest_revision()} needed" in lines(report, "Database")
    assert lines(report, "Policies")[0] == "In force as timescale/policies.toml says."
    assert any(line.startswith("meter_day ") for line in lines(report, "Freshness"))
    assert lines(report, "Devices") == ["reporting  0 of 0, in the last 10 minutes"]
    assert any(line.startswith("vehicle_reading ") for line in lines(report, "Sizes"))
    if engine == "timescale":
        assert any(re.fullmatch(r"refresh +meter_minute +1 min +none.*", line) for line in lines(report, "Jobs"))
    else:
        assert "no columnstore" in lines(report, "Policies")[1]


def test_every_setting_is_said_with_where_it_comes_from(database_url: str) -> None:
    report, _ = examined(database_url, WATTLINE_AUTH="off")
    said = {line.split()[0]: line.split()[1:] for line in lines(report, "Settings") if line[0].isupper()}
    assert set(said) == {variable_of(field) for field in Settings.__struct_fields__}
    assert said["WATTLINE_AUTH"] == ["set", "off"]
    assert said["WATTLINE_POOL_MAX_SIZE"] == ["default", "8"]


def test_times_are_utc_wherever_the_server_stands(database_url: str, connection: psycopg.Connection) -> None:
    connection.execute("SELECT prepare_days(now(), now())")
    connection.execute("CALL refresh_aggregates()")
    here = examined(database_url)[0]
    name = database_url.partition("@/")[2].partition("?")[0]
    connection.execute(f"ALTER DATABASE {name} SET timezone = 'Pacific/Kiritimati'".encode())
    there = examined(database_url)[0]
    assert lines(there, "Sizes")[:3] == lines(here, "Sizes")[:3]
    assert [re.findall(r"\d\d\d\d-\d\d-\d\d \d\d:", line) for line in lines(there, "Freshness")] == [
        re.findall(r"\d\d\d\d-\d\d-\d\d \d\d:", line) for line in lines(here, "Freshness")
    ]


FORMS = ("IntervalStyle = 'iso_8601'", "DateStyle = 'SQL, DMY'", "TimeZone = 'America/St_Johns'")


async def test_forms_of_times_that_a_role_has_reach_no_answer(
    database_url: str, connection: psycopg.Connection
) -> None:
    for form in FORMS:
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET {form}".encode())
    await store(database_url, meter_reading(datetime.now(UTC)))
    refresh_aggregates(database_url, None, None)
    assert migrate(database_url) == []
    assert not facts(database_url).unread
    async with connected(database_url) as maintaining:
        assert await maintain(maintaining)
    async with service(Settings(database_url=database_url)) as client:
        for path in "meters/states", "freshness":
            answer = await client.get(f"/v1/analytics/{path}")
            assert answer.status_code == httpx.codes.OK
            assert re.search(r"\d\dT[0-9:.]+Z\"", answer.text)
            assert not re.search(r"[+-]\d\d:\d\d\"", answer.text)


def test_no_line_is_wider_than_a_terminal(database_url: str, connection: psycopg.Connection, engine: str) -> None:
    break_policies(connection, engine)
    report, _ = examined(database_url)
    assert max(map(len, report.splitlines())) <= 80


# A server as Wattline runs it


@pytest.fixture(params=list(available_engines()))
def own_server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def started(directory: Path, engine: str, **settings: str) -> AbstractContextManager[str]:
    return running(directory, pg_bin=available_engines()[engine].bin, settings=settings)


async def test_nothing_is_wrong_with_wattline_s_own_server(tmp_path: Path, own_server: str) -> None:
    with started(tmp_path, own_server) as url:
        migrate(url, engine=own_server)  # type: ignore[arg-type]
        await store(url, meter_reading(datetime.now(UTC)))
        with psycopg.connect(url) as connection:
            connection.execute("SELECT prepare_days(now(), now() + INTERVAL '2 days')")
        settings = Settings(data_dir=tmp_path)
        report, healthy = examine(running(tmp_path, start=False), settings, {})
        assert report.endswith("\n\nNothing is wrong.")
        assert healthy
        assert "reporting  1 of 1, in the last 10 minutes" in report
    report, healthy = examine(running(tmp_path, start=False), settings, {})
    assert listed(report, "What is wrong") == [
        f"No database runs under {tmp_path}: start it with `wattline serve`. A service that runs says why it has none."
    ]
    assert not healthy
    assert any(re.fullmatch(r"disk +\S+ \w+ free of \S+ \w+", line) for line in lines(report, "Database"))


@needs_timescale
def test_a_job_that_fails_is_named_with_its_error(tmp_path: Path) -> None:
    with started(tmp_path, "timescale") as url:
        migrate(url)
        with psycopg.connect(url, autocommit=True) as connection:
            job = job_id(connection, "policy_retention", "meter_hour_cagg")
            # This gets past the function's own check of its arguments.
            connection.execute(
                """
                SELECT alter_job(job_id, config => config || '{"hypertable_id": 4711}', check_config => 0::regproc,
                                 next_start => now())
                FROM timescaledb_information.jobs WHERE job_id = %s
                """,
                [job],
            )
            eventually(lambda: failed(connection, job))
        (sentence,) = [said for said in complaints(url) if said.startswith("Failed")]
        assert sentence.startswith(f"Failed at the last run of {job} (drop old meter_hour): ")
        assert "4711" in sentence
        assert f"CALL run_job({job});" in sentence


def failed(connection: psycopg.Connection, job: int) -> bool:
    query = "SELECT FROM timescaledb_information.job_stats WHERE job_id = %s AND last_run_status = 'Failed'"
    return connection.execute(query, [job]).rowcount == 1


def job_id(connection: psycopg.Connection, procedure: str, relation: str) -> int:
    query = "SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = %s AND hypertable_name = %s"
    ((found,),) = connection.execute(query, [procedure, relation]).fetchall()
    return int(found)


@needs_timescale
def test_a_server_that_is_set_up_badly(tmp_path: Path) -> None:
    with started(tmp_path, "timescale") as url:
        migrate(url)
    settings = {
        "timescaledb.license": "apache",
        "max_worker_processes": "3",
        "max_connections": "11",
        "full_page_writes": "off",
        "synchronous_commit": "off",
        "default_transaction_read_only": "on",
    }
    with started(tmp_path, "timescale", **settings) as url:
        assert [sentence.partition(": ")[0].partition(", ")[0] for sentence in complaints(url)] == [
            "default_transaction_read_only is on",
            "full_page_writes is off",
            "synchronous_commit is off",
            "The service may open 14 connections",
            "TimescaleDB runs with the licence 'apache'",
            "The server has 1 background workers for TimescaleDB",
        ]


@needs_timescale
def test_jobs_that_a_restore_or_an_operator_has_stopped(tmp_path: Path) -> None:
    with started(tmp_path, "timescale") as url:
        migrate(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SELECT _timescaledb_functions.stop_background_workers()")
            (sentence,) = complaints(url)
            assert "does not run in this database" in sentence
            connection.execute("SELECT timescaledb_pre_restore()")
        (sentence,) = complaints(url)
        assert "timescaledb_post_restore()" in sentence


OPENED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'wattline'"


async def test_as_many_connections_are_counted_as_a_service_at_work_opens(
    database_url: str, connection: psycopg.Connection, healthy_facts: Facts
) -> None:
    settings = Settings(
        database_url=database_url,
        pool_max_size=3,
        webhook_url=f"http://127.0.0.1:{free_port()}",
        webhook_secret="whsec_" + 32 * "A",
    )
    needed = most_connections(settings)
    async with service(settings) as client:
        reading = {"meterId": "M1", "timestamp": datetime.now(UTC).isoformat(), "kwhConsumedAc": 0.1}
        assert (await client.post("/v1/telemetry/meter", json=[reading])).status_code == httpx.codes.OK
        with psycopg.connect(database_url) as locking:
            # Every answer now keeps its connection.
            locking.execute("LOCK meter_state IN ACCESS EXCLUSIVE MODE")
            ask = "/v1/analytics/meters/states"
            answers = [asyncio.create_task(client.get(ask)) for _ in range(settings.pool_max_size)]
            async with asyncio.timeout(20):
                while count(connection, OPENED) < needed:  # noqa: ASYNC110 - no event tells of a connection
                    await asyncio.sleep(0.05)
        await asyncio.gather(*answers)
        assert count(connection, OPENED) == needed

    assert healthy_facts.server
    for allowed, fits in ((needed, True), (needed - 1, False)):
        healthy_facts.settings = settings
        healthy_facts.server = msgspec.structs.replace(healthy_facts.server, connections_allowed=allowed)
        assert (f"The service may open {needed} connections" not in " ".join(sentences(healthy_facts))) == fits


def count(connection: psycopg.Connection, query: str) -> int:
    ((found,),) = connection.execute(query.encode()).fetchall()
    return int(found)


# Not there, or not ours


def test_a_database_that_other_sql_made(connection: psycopg.Connection, database_url: str) -> None:
    connection.execute("UPDATE installation SET sql_checksum = NULL")
    assert complaints(database_url) == [OTHER_SQL]


def test_a_database_that_is_not_migrated(empty_database_url: str) -> None:
    report, healthy = examined(empty_database_url)
    assert "The database is not migrated: run `wattline migrate`." in listed(report, "What is wrong")
    assert any(line.startswith("PostgreSQL ") for line in lines(report, "Database"))
    assert not healthy
    assert complaints(empty_database_url) == ["The database is not migrated: run `wattline migrate`."]


def test_a_database_of_an_older_version_is_told_of_as_far_as_it_goes(database_url: str, engine: str) -> None:
    alembic(database_url, lambda config: command.downgrade(config, "0004"))
    report, _ = examined(database_url)
    (sentence,) = complaints(database_url)
    assert sentence.startswith("The database is at revision 0004, this version needs ")
    assert f"engine       {engine}" in lines(report, "Database")
    assert lines(report, "Freshness")
    assert lines(report, "Policies")[0] == "In force as timescale/policies.toml says."


def test_a_database_of_a_newer_version(database_url: str, connection: psycopg.Connection) -> None:
    connection.execute("UPDATE wattline_version SET version_num = '9999'")
    (sentence,) = complaints(database_url)
    assert sentence.startswith("The database is at revision 9999, made by a newer Wattline")


def test_a_database_of_another_engine_than_the_settings_ask_for(database_url: str, engine: str) -> None:
    other = "plain" if engine == "timescale" else "timescale"
    (sentence,) = complaints(database_url, WATTLINE_ENGINE=other)
    assert sentence.startswith(f"WATTLINE_ENGINE asks for '{other}', but the database was migrated for '{engine}'")


def test_a_server_that_does_not_answer() -> None:
    (sentence,) = complaints(f"postgresql://127.0.0.1:{free_port()}/wattline")
    assert sentence.startswith("The database of DATABASE_URL cannot be reached: ")
    assert "See that its server runs" in sentence


@on_plain
def test_a_database_that_does_not_exist(database_url: str) -> None:
    (sentence,) = complaints(re.sub(r"/test_\d+", "/nowhere", database_url))
    assert '"nowhere" does not exist' in sentence
    assert "createdb" in sentence


def test_what_may_not_be_read_is_said(database_url: str, connection: psycopg.Connection) -> None:
    connection.execute("DROP ROLE IF EXISTS stranger")
    connection.execute("CREATE ROLE stranger LOGIN")
    try:
        found = complaints(database_url.replace("wattline@", "stranger@"))
    finally:
        connection.execute("DROP ROLE stranger")
    assert found
    for sentence in found:
        assert "permission denied" in sentence
        assert sentence.endswith(". Run the doctor as the owner of the database.")


@on_plain
def test_what_is_locked_is_not_waited_for(database_url: str, connection: psycopg.Connection) -> None:
    with connection.transaction():
        connection.execute("LOCK quarantine")
        assert complaints(database_url) == [
            f"The {subject} cannot be read: canceling statement due to statement timeout. "
            "Run the doctor again when nothing is locked."
            for subject in ("sizes", "quarantine")
        ]


# Secrets


def test_the_password_of_a_database_that_answers_is_not_shown(database_url: str) -> None:
    report, _ = examined(f"{database_url}&password=opensesame")
    assert "sesame" not in report
    assert "password=***" in report


# Policies


def break_policies(connection: psycopg.Connection, engine: str) -> None:
    if engine == "plain":
        connection.execute("UPDATE retention SET drop_after = '1 day' WHERE name = 'vehicle_reading'")
        return
    connection.execute(
        "SELECT alter_job(job_id, schedule_interval => INTERVAL '2 hours') FROM timescaledb_information.jobs"
        " WHERE proc_name = 'cagg_refresh' AND config ->> 'aggregate' = 'fleet_vehicle_minute'"
    )


def test_policies_that_differ_are_listed_and_left_alone(
    database_url: str, connection: psycopg.Connection, engine: str
) -> None:
    break_policies(connection, engine)
    before = state(database_url, engine)
    (sentence,) = complaints(database_url)
    assert "for 30 days (was 1 day)" in sentence if engine == "plain" else "(was each 2 hours" in sentence
    assert sentence.endswith(". Run `wattline migrate` to apply the file.")
    assert " ".join(lines(examined(database_url)[0], "Policies")).startswith(
        "to come: keep vehicle_reading for 30 days (was 1 day)"
        if engine == "plain"
        else "to come: refresh fleet_vehicle_minute each 1 minute, over the last 8 days, up to 1 minute ago, "
        "1440 buckets at a time (was each 2 hours, over the last 8 days, "
    )
    assert state(database_url, engine) == before
    migrate(database_url)
    assert complaints(database_url) == []


def state(url: str, engine: str) -> list[object]:
    """Returns all objects and the policies, which are all that a doctor could have changed."""
    policies = (
        "SELECT * FROM retention" if engine == "plain" else "SELECT jobs::text FROM _timescaledb_config.bgw_job AS jobs"
    )
    return [rows(url, OBJECTS), rows(url, policies)]


def test_a_policies_file_that_is_broken(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Policies:
        raise SetupError("policies.toml: Expected `=`")

    monkeypatch.setattr("app.ops.doctor.ask.read_policies", broken)
    assert complaints(database_url) == ["The policies cannot be read: policies.toml: Expected `=`."]


@on_timescale
@pytest.mark.parametrize("pause", ["scheduled => false", "next_start => 'infinity'"])
def test_a_paused_job(database_url: str, connection: psycopg.Connection, pause: str) -> None:
    job = job_id(connection, "policy_compression", "meter_reading")
    connection.execute(f"SELECT alter_job(%s, {pause})".encode(), [job])
    assert complaints(database_url) == [
        "The policies differ from timescale/policies.toml, which says: compress meter_reading after 10 days, not "
        "paused (was 10 days, paused). Run `wattline policy plan`, then `wattline policy apply` to apply the file."
    ]
    (line,) = [line for line in lines(examined(database_url)[0], "Jobs") if line.startswith("compress  meter_reading ")]
    assert line.endswith(" paused")
    connection.execute("SELECT alter_job(%s, scheduled => true, next_start => now())", [job])
    assert complaints(database_url) == []


@on_timescale
def test_policies_set_by_hand_that_break_a_rule_are_told_from_others(
    database_url: str, connection: psycopg.Connection
) -> None:
    connection.execute("SELECT remove_retention_policy('meter_reading')")
    connection.execute("SELECT add_retention_policy('meter_reading', INTERVAL '8 days')")
    (finding,) = [each for each in wrong(facts(database_url)) if "drift" in each.code]
    assert finding.code == "destructive_drift"
    assert "they break the rule that " in finding.sentence
    assert 'retention.meter_reading = "8 days" must be at least "9 days": ' in finding.sentence
    connection.execute("SELECT remove_retention_policy('meter_reading')")
    connection.execute("SELECT add_retention_policy('meter_reading', INTERVAL '20 days')")
    (finding,) = [each for each in wrong(facts(database_url)) if "drift" in each.code]
    assert finding.code == "policy_drift"


@on_timescale
async def test_chunks_that_should_be_compressed(database_url: str, connection: psycopg.Connection) -> None:
    job = job_id(connection, "policy_compression", "meter_reading")
    await store(database_url, meter_reading(datetime.now(UTC) - timedelta(days=20)))
    # The chunk may have been made by a late reading, since its job last ran.
    assert "not_compressed" not in {finding.code for finding in wrong(facts(database_url))}
    connection.execute("SELECT alter_job(%s, schedule_interval => INTERVAL '1 second')", [job])
    (finding,) = eventually(lambda: [each for each in wrong(facts(database_url)) if each.code == "not_compressed"])
    assert finding.about == "meter_reading"
    assert finding.sentence.startswith("Chunks of meter_reading that should be compressed and are not: 1.")
    assert f"CALL run_job({job});" in finding.sentence
    connection.execute("CALL run_job(%s)", [job])
    assert "not_compressed" not in {finding.code for finding in wrong(facts(database_url))}


# Readings


@on_plain
async def test_readings_without_anyone_to_keep_house(database_url: str, connection: psycopg.Connection) -> None:
    await store(database_url, meter_reading(datetime.now(UTC)))
    (sentence,) = complaints(database_url)
    assert "tomorrow's partitions are missing" in sentence
    connection.execute("SELECT prepare_days(now(), now() + INTERVAL '2 days')")
    assert complaints(database_url) == []


async def test_a_retired_device_is_not_expected(database_url: str, connection: psycopg.Connection) -> None:
    now = datetime.now(UTC)
    await store(database_url, *(meter_reading(now, meter_id=f"M{number}") for number in (1, 2, 3)))
    connection.execute("UPDATE meter SET retired_at = now() WHERE external_id <> 'M1'")
    # M2 has since measured something.
    connection.execute(
        "UPDATE meter_state SET ts = retired_at + INTERVAL '1 s' FROM meter WHERE id = meter_id AND external_id = 'M2'"
    )
    assert lines(examined(database_url)[0], "Devices") == ["reporting  2 of 2, in the last 10 minutes"]
    async with service(Settings(database_url=database_url)) as client:
        freshness = (await client.get("/v1/analytics/freshness")).json()
    assert (freshness["devicesReporting"], freshness["devicesExpected"]) == (2, 2)


async def test_devices_that_fell_silent(database_url: str, connection: psycopg.Connection) -> None:
    await store(database_url, meter_reading(datetime.now(UTC) - timedelta(minutes=30)))
    (sentence,) = complaints(database_url)
    assert sentence.startswith("No device has reported for 10 minutes, 1 have within a day")
    connection.execute("UPDATE meter_state SET ts = now() - INTERVAL '2 days'")
    assert complaints(database_url) == []


async def test_ids_that_differ_in_upper_and_lower_case_only(database_url: str, connection: psycopg.Connection) -> None:
    now = datetime.now(UTC)

    def named() -> list[str]:
        said = [sentence.split(". If they are")[0] for sentence in complaints(database_url)]
        return [sentence.split(" only: ")[1] for sentence in said if sentence.startswith("Ids differ")]

    await store(database_url, *(meter_reading(now, meter_id=name) for name in ("M1", "aa:bb:cc", "AA:BB:CC", "M-1")))
    await store(database_url, vehicle_reading(now, vehicle_id="m1", meter_id=None))
    assert named() == ["meters AA:BB:CC and aa:bb:cc"]
    await store(database_url, *(meter_reading(now, meter_id=name) for name in ("b", "B", "C", "c", "dE", "De", "DE")))
    assert named() == ["meters AA:BB:CC and aa:bb:cc; meters B and b; meters C and c; and 1 more such group"]
    connection.execute("UPDATE meter SET retired_at = now() WHERE external_id IN ('aa:bb:cc', 'b', 'c')")
    assert named() == ["meters DE and De and dE"]


def test_devices_whose_energy_is_implausible_are_named_by_what_it_looks_like(
    database_url: str, connection: psycopg.Connection
) -> None:
    connection.execute("INSERT INTO meter (external_id) SELECT 'M' || n FROM generate_series(1, 9) AS n")
    connection.execute("INSERT INTO vehicle (external_id) VALUES ('V1'), ('V2')")
    connection.execute(
        """
        INSERT INTO alert (kind, stream, device_id, opened, closed, evidence)
        SELECT 'implausible_energy', stream, id, '2026-02-10', CASE WHEN external_id = 'V2' THEN now() END,
               jsonb_build_object('looksLike', CASE external_id WHEN 'M9' THEN 'step' WHEN 'V1' THEN 'wh'
                                                                ELSE 'register' END)
        FROM device
        """
    )
    connection.execute(
        "INSERT INTO alert (kind, stream, device_id, opened, evidence) "
        "SELECT 'no_data', 'vehicle', id, '2026-02-10', '{}' FROM vehicle"
    )
    connection.execute("UPDATE meter SET retired_at = now() WHERE external_id = 'M2'")
    said = [sentence for sentence in complaints(database_url) if sentence.startswith("Energy is more than")]
    assert [sentence.split("it looks like ")[1].split(". `wattline alerts")[0] for sentence in said] == [
        "a register, the total of a meter, sent as the energy since the previous reading: meter M1, meter M3, "
        "meter M4, meter M5, meter M6 and 2 more. Send it as kwhRegisterAc, of a vehicle as kwhRegisterDc",
        "a step, which no charge explains: meter M9. See what the device sent. If it can take so much, "
        "`wattline device limit` says so",
        "Wh sent as kWh: vehicle V1. Divide it by 1,000",
    ]


def test_rejected_readings_are_counted_and_nothing_wrong(database_url: str, connection: psycopg.Connection) -> None:
    connection.execute(
        "INSERT INTO quarantine (source, code, message, payload, hash, last_at)"
        " SELECT 'http', code, '', '', code::bytea, now() - age FROM (VALUES"
        " ('too_old', INTERVAL '2 days'), ('energy_out_of_range', INTERVAL '1 hour')) AS rejected (code, age)"
    )
    report, _ = examined(database_url)
    assert complaints(database_url) == []
    assert lines(report, "Quarantine") == [
        "rejected             2 in quarantine: wattline quarantine list",
        "energy_out_of_range  1 in the last day",
    ]


@pytest.mark.parametrize(
    ("is_registered", "whose", "option"),
    [
        (True, "of device M1", "--device 'M1'"),
        (False, "of devices that are not registered, as malformed", "--reason malformed"),
    ],
)
def test_a_full_quarantine_names_who_fills_it(
    database_url: str, connection: psycopg.Connection, is_registered: bool, whose: str, option: str
) -> None:
    if is_registered:
        connection.execute("INSERT INTO meter (external_id) VALUES ('M1')")
    fill = """
        INSERT INTO quarantine (source, device, code, message, payload, hash)
        SELECT 'http', 'M1', 'malformed', '', '', n::text::bytea FROM generate_series(%s::int, %s) AS n
    """
    connection.execute("INSERT INTO quarantine (source, code, message, payload, hash) VALUES ('mqtt', 'x', '', '', '')")
    connection.execute(fill, [2, QUARANTINE_ROWS - 1])
    assert complaints(database_url) == []
    connection.execute(fill, [QUARANTINE_ROWS, QUARANTINE_ROWS])
    (sentence,) = complaints(database_url)
    assert f"{QUARANTINE_ROWS - 1}, came over http and is {whose}: " in sentence
    assert f"`wattline quarantine list --source http {option}`" in sentence


def test_topics_that_name_no_device(database_url: str, connection: psycopg.Connection) -> None:
    connection.execute(
        "INSERT INTO quarantine (source, code, message, payload, hash) "
        "VALUES ('mqtt', 'no_device_in_topic', '', '', '')"
    )
    (sentence,) = complaints(database_url)
    assert sentence.startswith(
        "1 readings over MQTT were rejected within a day, since neither they nor their topics name"
    )
    assert "{id}" in sentence


@on_timescale
async def test_aggregates_that_are_not_refreshed(database_url: str, connection: psycopg.Connection) -> None:
    await store(database_url, meter_reading(datetime.now(UTC)))
    assert not [said for said in sentences(after(timedelta(), facts(database_url))) if said.startswith(REFRESH)]
    found = after(HOUR, facts(database_url))
    (sentence,) = [said for said in sentences(found) if said.startswith(REFRESH)]
    assert "meter_minute, " in sentence
    assert "`wattline refresh`" in sentence
    # A new database on a server that has run for long.
    found.installed_at = datetime.now(UTC)
    assert not [said for said in sentences(found) if said.startswith(REFRESH)]
    connection.execute("CALL refresh_aggregates()")
    assert not [said for said in sentences(after(HOUR, facts(database_url))) if said.startswith(REFRESH)]


def after(run: timedelta, found: Facts) -> Facts:
    """Returns the facts as if the server had run, and the database existed, for so long."""
    assert found.server
    found.installed_at = datetime.now(UTC) - run
    found.server = msgspec.structs.replace(found.server, started_at=found.installed_at)
    return found


# Faults that a test cannot cause on a machine


@pytest.fixture
def healthy_facts(database_url: str) -> Facts:
    return facts(database_url)


@pytest.mark.parametrize(("seconds", "said"), [(6.0, "6 s ahead of"), (-3600.0, "3600 s behind"), (4.9, "")])
def test_a_clock_that_differs(healthy_facts: Facts, seconds: float, said: str) -> None:
    assert abs(healthy_facts.clock_ahead_seconds) < 1
    healthy_facts.clock_ahead_seconds = seconds
    found = [sentence for sentence in sentences(healthy_facts) if sentence.startswith("The clock")]
    assert [said in sentence for sentence in found] == ([True] if said else [])


@pytest.mark.parametrize(("free", "full"), [(40 << 30, False), (4 << 30, True), (500 << 20, True)])
def test_a_disk_that_is_almost_full(healthy_facts: Facts, free: int, full: bool, tmp_path: Path) -> None:
    assert healthy_facts.disk is not None
    assert disk_bytes(tmp_path / "elsewhere") is None
    healthy_facts.disk = (free, 100 << 30)
    assert any(finding.code == "disk_low" for finding in wrong(healthy_facts)) == full


@on_timescale
@pytest.mark.parametrize(
    ("postgresql", "breaks"),
    [(160015, False), (160016, True), (170011, False), (170012, True), (180006, False), (180007, True), (180010, True)],
)
def test_a_release_that_breaks_the_jobs_is_said_with_those_that_failed(
    healthy_facts: Facts, postgresql: int, breaks: bool
) -> None:
    assert healthy_facts.server
    healthy_facts.server = msgspec.structs.replace(healthy_facts.server, postgresql_number=postgresql)
    assert not [said for said in sentences(healthy_facts) if "README" in said]
    healthy_facts.jobs = [
        msgspec.structs.replace(job, last_status="failed", last_error="no such symbol") for job in healthy_facts.jobs
    ]
    (sentence,) = [said for said in sentences(healthy_facts) if "no such symbol" in said]
    assert f"{healthy_facts.jobs[-1].job_id} (" in sentence
    assert ("README" in sentence) == breaks
