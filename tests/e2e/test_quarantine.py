"""An operator's work with the quarantine: listing, showing, driving again, purging."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import msgspec
import psycopg
import pytest

from app.database import connect
from app.ingest.batch import REJECTIONS, RejectedReading, Source
from app.ingest.quarantine.keep import keep_rejected
from app.ingest.quarantine.redrive import PAGE_ROWS, Redriven, redrive
from app.ingest.quarantine.rows import Filter
from app.ingest.store.statements import prepare_connection
from app.ingest.topics import Topics
from app.settings import Settings
from app.telemetry.reading import Stream
from tests.e2e.test_cli import refusal
from tests.fixtures.commands import command
from tests.fixtures.database import await_nobody
from tests.fixtures.files import stored
from tests.fixtures.readings import batch_of, counted, midnight, random_readings, rejected, store, writing
from tests.fixtures.sending import meter, minutes_ago, stamp, vehicle
from tests.fixtures.waiting import eventually

Connection = psycopg.Connection[tuple[Any, ...]]
TOPICS = Topics(Settings())


def codes(connection: Connection) -> list[str]:
    return [code for (code,) in connection.execute("SELECT code FROM quarantine ORDER BY id").fetchall()]


async def keep(url: str, source: Source, *rejected: RejectedReading) -> None:
    async with await connect(url) as connection:
        prepare_connection(connection)
        for one in rejected:
            await keep_rejected(connection, source, [one])


async def drive(url: str) -> Redriven:
    async with await connect(url) as connection:
        oldest = datetime.now(UTC) - timedelta(days=29)
        *_, done = [
            done async for done in redrive(connection, url, Filter(), oldest=oldest, topics=TOPICS, refresh_day=print)
        ]
    return done


async def reject_all(url: str, *readings: Any) -> None:
    """Sends readings of new devices to a writer that registers none."""
    async with writing(url, new_devices_per_hour=0) as writer:
        receipt = await writer.store(batch_of(*readings), Source.HTTP)
    assert len(receipt.rejected) == receipt.received == len(readings)


async def test_what_was_rejected_for_its_new_device_is_stored_as_if_it_had_not_been(
    database_url: str, connection: Connection
) -> None:
    readings = list(random_readings(7, datetime.now(UTC) - timedelta(days=2), 1.5, PAGE_ROWS + 50))
    await reject_all(database_url, *readings)
    assert stored(connection) == []
    done = await drive(database_url)
    assert (done.rows, done.stored, done.duplicates, done.rejected) == (len(readings), len(readings), 0, {})
    assert codes(connection) == []
    driven = stored(connection)
    connection.execute("TRUNCATE meter_reading; TRUNCATE vehicle_reading; TRUNCATE meter_state, vehicle_state")
    await store(database_url, *readings)
    assert stored(connection) == driven


async def test_each_is_judged_by_todays_rules_and_leaves_or_stays(database_url: str, connection: Connection) -> None:
    at = minutes_ago(3)
    gone = "energy_out_of_range"
    in_msgpack = msgspec.msgpack.encode(vehicle(at, vehicle_id="V2", soc=40))
    await keep(
        database_url,
        Source.HTTP,
        rejected(meter(at), gone, stream=Stream.METER),
        rejected(in_msgpack, gone, stream=Stream.VEHICLE),
        rejected(vehicle(at, -1), "malformed", stream=Stream.VEHICLE),
        rejected([meter(at, meter_id="nested")]),
        rejected(b'{"meterId": "half'),
    )
    whole_batch = [meter(at, meter_id="M2"), vehicle(at), meter(at)]
    await keep(
        database_url,
        Source.MQTT,
        rejected(whole_batch),
        rejected([meter(at, meter_id="M3"), {}]),
        rejected(b""),
    )
    done = await drive(database_url)
    assert (done.rows, done.stored, done.duplicates) == (8, 4, 1)
    assert done.rejected == {"malformed": 3, "energy_out_of_range": 1, "missing_field": 1}
    assert codes(connection) == ["energy_out_of_range", "malformed", "malformed", "missing_field", "malformed"]
    assert connection.execute("SELECT DISTINCT times, first_at = last_at FROM quarantine").fetchall() == [(1, True)]
    again = await drive(database_url)
    assert (again.rows, again.stored, again.duplicates, again.rejected) == (5, 0, 0, done.rejected)


async def test_a_new_reason_that_is_kept_already_is_not_kept_twice(database_url: str, connection: Connection) -> None:
    payload = vehicle(minutes_ago(1), -1)
    for code in ("malformed", "energy_out_of_range", "invalid_id"):
        await keep(database_url, Source.HTTP, rejected(payload, code, stream=Stream.VEHICLE))
    await drive(database_url)
    assert codes(connection) == ["energy_out_of_range"]


def arrived(connection: Connection, days_ago: float) -> None:
    connection.execute(
        "UPDATE quarantine SET first_at = now() - make_interval(hours => %s), last_at = now()", [round(days_ago * 24)]
    )


async def test_a_reading_is_as_old_as_it_was_when_it_arrived(database_url: str, connection: Connection) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    await store(database_url, *random_readings(3, now - timedelta(days=20), 19, 50))
    connection.execute("CALL refresh_aggregates()")
    young, day = now - timedelta(days=12), timedelta(days=1)
    await keep(
        database_url,
        Source.HTTP,
        rejected(meter(young, meter_id="late"), "too_many_new_devices"),
        rejected(meter(now - timedelta(days=6) + timedelta(minutes=6)), "in_the_future"),
        rejected(meter(now - timedelta(days=6 + 8)), "too_old"),
    )
    arrived(connection, 6)
    start = young.replace(hour=0, minute=0, second=0)
    before = {
        name: counted(connection, name, start, start + day) for name in ("meter_minute", "meter_day", "fleet_hour")
    }
    done = command("quarantine", "redrive", DATABASE_URL=database_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("3 redriven: 1 reading stored, 0 duplicates, 2 still rejected.\n")
    assert codes(connection) == ["in_the_future", "too_old"]
    # The refresh policies look back 8 days: the command has refreshed that day.
    for name, count in before.items():
        assert counted(connection, name, start, start + day) == count + 1


async def test_what_has_left_is_in_the_sums_although_a_later_page_fails(
    database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.ingest.quarantine.redrive.PAGE_ROWS", 1)
    days, day = [midnight(20), midnight(19)], timedelta(days=1)
    await store(database_url, *random_readings(3, midnight(21), 20, 50))
    connection.execute("CALL refresh_aggregates()")
    before = [counted(connection, "meter_day", start, start + day) for start in days]
    await keep(database_url, Source.IMPORT, *(rejected(meter(start), stream=Stream.METER) for start in days))
    connection.execute("""
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END';
        CREATE TRIGGER fail BEFORE DELETE ON quarantine FOR EACH ROW WHEN (OLD.id = 2) EXECUTE FUNCTION fail();
    """)
    assert command("quarantine", "redrive", DATABASE_URL=database_url).returncode == 1
    assert codes(connection) == ["malformed"]
    assert counted(connection, "meter_day", days[0], days[0] + day) == before[0] + 1
    connection.execute("DROP TRIGGER fail ON quarantine")
    done = command("quarantine", "redrive", DATABASE_URL=database_url)
    assert done.stdout == "1 redriven: 0 readings stored, 1 duplicate, 0 still rejected.\n"
    assert counted(connection, "meter_day", days[1], days[1] + day) == before[1] + 1


async def test_history_and_what_a_broker_kept_may_be_as_old_as_an_import_takes_it(
    database_url: str, connection: Connection
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    for source, days in ((Source.IMPORT, 20), (Source.MQTT, 18), (Source.IMPORT, 29), (Source.HTTP, 19)):
        await keep(database_url, source, rejected(meter(now - timedelta(days=days)), "too_old", stream=Stream.METER))
    connection.execute("UPDATE quarantine SET field = 'timestamp', message = 'as it was'")
    done = command("quarantine", "redrive", DATABASE_URL=database_url)
    assert done.stdout.startswith("4 redriven: 2 readings stored, 0 duplicates, 2 still rejected.\n"), done.stderr
    assert [ts for _, ts, *_ in stored(connection)] == [now - timedelta(days=days) for days in (20, 18)]
    assert connection.execute("SELECT message FROM quarantine").fetchall() == [("as it was",)] * 2
    day = (now - timedelta(days=20)).replace(hour=0, minute=0, second=0)
    assert counted(connection, "meter_day", day, day + timedelta(days=1)) == 1


async def test_what_would_be_dropped_at_once_is_too_old(database_url: str, connection: Connection) -> None:
    old = datetime.now(UTC) - timedelta(days=29, hours=1)
    await keep(database_url, Source.HTTP, rejected(meter(old), "too_many_new_devices", stream=Stream.METER))
    arrived(connection, 28)
    assert (await drive(database_url)).rejected == {"too_old": 1}
    assert codes(connection) == ["too_old"]
    assert stored(connection) == []


def start_redrive(url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli", "quarantine", "redrive"],
        env=os.environ | {"DATABASE_URL": url},
        stdout=subprocess.DEVNULL,
    )


async def test_killed_between_commit_and_deletion_it_stores_once(database_url: str, connection: Connection) -> None:
    at = minutes_ago(5)
    await keep(
        database_url,
        Source.HTTP,
        *(rejected(meter(at, meter_id=f"M{n}"), "too_many_new_devices") for n in range(9)),
    )
    connection.execute("CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); END'")
    connection.execute("CREATE TRIGGER hang BEFORE DELETE ON quarantine EXECUTE FUNCTION hang()")
    killed = start_redrive(database_url)
    hangs = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    hanging = eventually(lambda: connection.execute(hangs).fetchall())
    killed.kill()
    killed.wait()
    connection.execute("SELECT pg_terminate_backend(%s)", hanging[0])
    connection.execute("DROP TRIGGER hang ON quarantine")
    assert len(stored(connection)) == len(codes(connection)) == 9
    done = await drive(database_url)
    assert (done.stored, done.duplicates) == (0, 9)
    assert len(stored(connection)) == 9
    assert codes(connection) == []


async def test_killed_at_random_moments_it_stores_each_reading_once(database_url: str, connection: Connection) -> None:
    seed = time.time_ns() % 1_000_000
    print("seed", seed)  # noqa: T201 - shown when the test fails
    random = Random(seed)
    readings = list(random_readings(seed, datetime.now(UTC) - timedelta(days=2), 1.5, 8 * PAGE_ROWS, hours=40))
    await reject_all(database_url, *readings)
    for _ in range(2):
        left = len(codes(connection))
        process = start_redrive(database_url)
        eventually(lambda: process.poll() is not None or len(codes(connection)) < left)  # noqa: B023
        await asyncio.sleep(random.uniform(0, 0.05))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        await_nobody(connection)
    assert codes(connection)
    await drive(database_url)
    assert codes(connection) == []
    assert len(stored(connection)) == len(readings)


async def test_list_shows_the_newest_and_says_how_many_more_there_are(
    database_url: str, connection: Connection
) -> None:
    await keep(
        database_url,
        Source.HTTP,
        rejected(meter(minutes_ago(1), -1, meter_id="M1"), "energy_out_of_range", stream=Stream.METER, device="M1"),
        rejected(b'{"meterId": "M2", "x": "\x1b[31m"}', device="M2"),
    )
    await keep(database_url, Source.MQTT, rejected(b"\x00\xff\x80 no text"))
    connection.execute("UPDATE quarantine SET last_at = now() - make_interval(hours => 9 - id::int), times = id")
    connection.execute("UPDATE installation SET quarantine_dropped = 12")
    listed = command("quarantine", "list", "--limit", "2", DATABASE_URL=database_url)
    assert (listed.returncode, listed.stderr) == (0, "")
    head, first, second, more, dropped = listed.stdout.splitlines()
    assert head.split() == ["id", "last", "arrival", "times", "source", "stream", "code", "field", "device", "payload"]
    assert first.split()[:1] + first.split()[3:] == [
        "3",
        "3",
        "mqtt",
        "-",
        "malformed",
        "-",
        "-",
        "00ff80206e6f2074657874",
    ]
    assert second.endswith("  M2      " + b'{"meterId": "M2", "x": "\x1b[31m"}'[:30].hex())
    assert more == "2 shown, 1 more."
    assert dropped == "The bounds of the quarantine have dropped 12 so far."

    def ids(*filters: str) -> list[int]:
        lines = command("quarantine", "list", *filters, DATABASE_URL=database_url).stdout.splitlines()
        return [int(line.split()[0]) for line in lines[1:-2]]

    assert ids() == [3, 2, 1]
    assert ids("--reason", "malformed") == [3, 2]
    assert ids("--reason", "malformed", "--source", "http") == [2]
    assert ids("--device", "M1") == ids("1") == [1]
    assert ids("3", "1", "99") == [3, 1]
    middle = stamp((datetime.now(UTC) - timedelta(hours=6, minutes=30)).replace(microsecond=0))
    assert (ids("--since", middle), ids("--until", middle)) == ([3], [2, 1])
    assert command("quarantine", "list", "--device", "M9'; --", DATABASE_URL=database_url).stdout.splitlines()[0] == (
        "Nothing in quarantine matches."
    )
    assert command("quarantine", "purge", "--all", "--yes", DATABASE_URL=database_url).returncode == 0
    assert command("quarantine", "list", DATABASE_URL=database_url).stdout.startswith("Nothing is in quarantine.\n")


async def test_show_has_everything_and_a_dump_of_what_is_no_text(database_url: str) -> None:
    bad = meter(minutes_ago(1), -1)
    await keep(database_url, Source.HTTP, rejected(bad, "energy_out_of_range", stream=Stream.METER, device="M1"))
    await keep(database_url, Source.MQTT, rejected(b"\x1b]0;x\x07" + bytes(70_000)), rejected(b""))
    text = command("quarantine", "show", "1", DATABASE_URL=database_url).stdout
    assert text.endswith(f"payload        {len(msgspec.json.encode(bad))} bytes\n{msgspec.json.encode(bad).decode()}\n")
    assert f"message        {REJECTIONS['energy_out_of_range']}\n" in text
    binary = command("quarantine", "show", "2", DATABASE_URL=database_url).stdout
    assert "\x1b" not in binary
    assert "payload        65536 bytes, cut\n0000  1b 5d 30 3b 78 07 00 00" in binary
    assert command("quarantine", "show", "3", DATABASE_URL=database_url).stdout.endswith("payload        0 bytes\n\n")
    await keep(database_url, Source.HTTP, rejected(b'{\r\n\t"x": 1}\rcode           fine'))
    lines = command("quarantine", "show", "4", DATABASE_URL=database_url).stdout
    assert lines.endswith('bytes\n{·\n\t"x": 1}·code           fine\n')
    assert refusal(command("quarantine", "show", "5", DATABASE_URL=database_url)) == "There is no 5 in quarantine."


async def test_purge_wants_to_be_told_what_and_to_be_sure(database_url: str, connection: Connection) -> None:
    await keep(database_url, Source.HTTP, *(rejected(b"%d" % n, device=f"M{n}") for n in range(4)))

    def purge(*arguments: str) -> subprocess.CompletedProcess[str]:
        return command("quarantine", "purge", *arguments, DATABASE_URL=database_url)

    for arguments in [], ["--yes"], ["--all", "--device", "M1", "--yes"]:
        assert "--all" in refusal(purge(*arguments))
    assert refusal(purge("--device", "M1")) == "1 would be deleted for good; confirm with --yes."
    assert len(codes(connection)) == 4
    assert purge("--device", "M1", "--yes").stdout == "1 deleted.\n"
    assert purge("--all", "--yes").stdout == "3 deleted.\n"
    assert purge("--all").stdout == "0 deleted.\n"


def test_without_a_migrated_database_each_is_one_line(empty_database_url: str) -> None:
    for arguments in (["list"], ["show", "1"], ["redrive"], ["purge", "--all", "--yes"]):
        assert "wattline migrate" in refusal(command("quarantine", *arguments, DATABASE_URL=empty_database_url))


def test_wrong_arguments_are_status_2() -> None:
    for arguments in (
        ["show", "x"],
        ["show", "0"],
        ["list", "--limit", "0"],
        ["list", "--source", "x"],
        ["list", "--since", "1"],
    ):
        assert command("quarantine", *arguments).returncode == 2
