"""`wattline import` as an operator meets it, on both engines."""

import fcntl
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import psycopg
import pytest

from app.errors import SetupError
from app.ingest.history.file import MAX_LINE_BYTES
from app.ingest.history.importer import QUARANTINED_ROWS, Importer
from app.ingest.names import SYNONYMS
from app.ingest.store import statements
from tests.fixtures.commands import command
from tests.fixtures.engines import on_plain, on_timescale, run_policies
from tests.fixtures.files import as_csv, as_ndjson, expected, history, peak_bytes, stored, write_csv
from tests.fixtures.readings import midnight
from tests.fixtures.sending import Reading, meter, stamp, vehicle
from tests.fixtures.waiting import DEADLINE_S, eventually

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MEMORY_LIMIT_BYTES = 200_000_000


def start(url: str, *arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli", "import", *arguments],
        env=os.environ | {"DATABASE_URL": url},
        stdin=options.get("stdin", subprocess.DEVNULL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(url: str, *arguments: str | Path, given: bytes | None = None) -> tuple[int, str, str]:
    """Returns the exit status, the output and the errors."""
    if given is None:
        done = command("import", *map(str, arguments), DATABASE_URL=url)
        return done.returncode, done.stdout, done.stderr
    process = start(url, *map(str, arguments), stdin=subprocess.PIPE)
    out, errors = process.communicate(given, timeout=110)
    return process.returncode, out.decode(), errors.decode()


def summary(printed: str) -> tuple[int, int, int, int]:
    """Returns read, inserted, duplicates and rejected, and checks that they add up."""
    found = re.search(r"read ([\d,]+) = inserted ([\d,]+) \+ duplicates ([\d,]+).* \+ rejected ([\d,]+)", printed)
    assert found, printed
    read, inserted, duplicates, rejected = (int(number.replace(",", "")) for number in found.groups())
    assert read == inserted + duplicates + rejected
    return read, inserted, duplicates, rejected


def assert_aggregates_are_those_of_the_readings(connection: psycopg.Connection) -> None:
    for stream, energy in (("meter", "ac_milliwh"), ("vehicle", "dc_milliwh")):
        for width in ("minute", "hour", "day"):
            bins = f"date_bin('1 {width}', ts, '2000-01-01 00:00Z')"
            bounds = "(now() - INTERVAL '40 days', now() + INTERVAL '1 day')"
            device = f"""
                SELECT {stream}_id, bucket, sum({energy}), sum(readings) FROM {stream}_{width}{bounds} GROUP BY 1, 2
                EXCEPT
                SELECT {stream}_id, {bins}, sum({energy}), count(*) FROM {stream}_reading GROUP BY 1, 2"""  # noqa: S608
            fleet = f"""
                SELECT bucket, {energy}::numeric, {stream}_readings FROM fleet_{width}{bounds}
                WHERE {stream}_readings IS NOT NULL
                EXCEPT
                SELECT {bins}, sum({energy}), count(*) FROM {stream}_reading GROUP BY 1"""  # noqa: S608
            for both in device, fleet:
                left, right = both.split("EXCEPT")
                for one, other in ((left, right), (right, left)):
                    assert connection.execute(f"{one} EXCEPT {other} LIMIT 3".encode()).fetchall() == [], (
                        stream,
                        width,
                    )


@pytest.mark.parametrize(("form", "pack"), [(as_csv, gzip.compress), (as_ndjson, zstd.compress)], ids=["csv", "ndjson"])
def test_every_reading_is_stored_and_summed_once(
    form: Callable[[list[Reading]], bytes],
    pack: Callable[[bytes], bytes],
    database_url: str,
    connection: psycopg.Connection,
    tmp_path: Path,
) -> None:
    readings = list(history(600, midnight(20) + timedelta(hours=3)))
    (tmp_path / "history").write_bytes(pack(form(readings)))
    status, printed, errors = run(database_url, tmp_path / "history")
    assert (status, summary(printed)) == (0, (600, 600, 0, 0)), errors
    assert stored(connection) == expected(readings)
    assert_aggregates_are_those_of_the_readings(connection)
    hours = connection.execute("SELECT DISTINCT stream, hour FROM touched_hour ORDER BY 1, 2").fetchall()
    assert hours == [(stream, midnight(20) + timedelta(hours=3)) for stream in ("meter", "vehicle")]

    # Unpacked and under another name, the file is known by its content, and nothing changes.
    before = connection.execute("SELECT xmin::text, * FROM import_journal").fetchall()
    (tmp_path / "again").write_bytes(form(readings))
    status, printed, _ = run(database_url, tmp_path / "again")
    assert (status, summary(printed)) == (0, (600, 600, 0, 0))
    assert "again: was imported before; nothing is new." in printed
    assert connection.execute("SELECT xmin::text, * FROM import_journal").fetchall() == before


@on_plain
def test_standard_input_is_a_file_too(database_url: str, connection: psycopg.Connection) -> None:
    readings = list(history(20, midnight(20)))
    status, printed, errors = run(database_url, "-", given=gzip.compress(as_csv(readings)))
    assert (status, summary(printed)) == (0, (20, 20, 0, 0)), errors
    assert stored(connection) == expected(readings)


@on_plain
async def test_without_its_decoder_an_import_ends_with_one_line_and_goes_on_later(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    count = 160_000
    write_csv(tmp_path / "h.csv", history(count, midnight(20)))

    def kill_decoder(*_: object) -> None:
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            if b"history.decoder" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGKILL)

    importer = Importer(database_url, on_progress=kill_decoder, on_pause=lambda _: None, on_rejected=None)
    with pytest.raises(SetupError, match="decoding process has ended"):
        await importer.run(str(tmp_path / "h.csv"), {})
    await importer.close()
    ((before,),) = connection.execute("SELECT read FROM import_journal").fetchall()
    assert 0 < before < count
    status, printed, _ = run(database_url, tmp_path / "h.csv")
    assert (status, summary(printed)) == (0, (count, count, 0, 0))


@on_plain
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_import_that_waits_for_standard_input_is_ended_with_its_decoder(number: int, database_url: str) -> None:
    process = start(database_url, "-", stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(as_csv(list(history(20, midnight(3)))))
    process.stdin.flush()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    stdin = process.stdin
    eventually(lambda: not unread_bytes(stdin))
    decoders = children.read_text().split()
    process.send_signal(number)
    assert process.wait(DEADLINE_S) != 0
    assert decoders
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in decoders))
    process.communicate()


def unread_bytes(pipe: IO[bytes]) -> int:
    """Returns the number of bytes written to a pipe that its reader has not taken yet."""
    count = bytearray(4)
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return int.from_bytes(count, sys.byteorder)


@on_plain
def test_nothing_in_the_folder_of_the_command_is_imported(
    database_url: str, connection: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for foreign in ("csv.py", "app.py"):
        (tmp_path / foreign).write_text("raise SystemExit('foreign code')")
    (tmp_path / "h.csv").write_bytes(as_csv(list(history(20, midnight(3)))))
    monkeypatch.chdir(tmp_path)
    assert summary(run(database_url, "h.csv")[1]) == (20, 20, 0, 0)


@on_plain
def test_a_database_that_refuses_new_devices_is_told_in_one_line(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    connection.execute("ALTER TABLE meter ADD CONSTRAINT none CHECK (external_id <> 'M1')")
    (tmp_path / "h.csv").write_bytes(as_csv(list(history(20, midnight(3)))))
    status, _, errors = run(database_url, tmp_path / "h.csv")
    assert status == 1
    (line,) = errors.splitlines()
    assert "the database refuses what follows line 0: " in line


@on_plain
def test_a_file_that_has_grown_goes_on_and_one_that_differs_is_read_anew(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    readings = list(history(4_000, midnight(3)))
    file = tmp_path / "h.ndjson"
    for part, told in ((2_000, (2_000, 2_000, 0, 0)), (4_000, (4_000, 4_000, 0, 0)), (4_000, (4_000, 4_000, 0, 0))):
        file.write_bytes(as_ndjson(readings[:part]))
        assert summary(run(database_url, file)[1]) == told
    file.write_bytes(as_ndjson([*readings[:-1], readings[-1] | {"soc": 0.5}]))
    status, printed, _ = run(database_url, file)
    assert (status, summary(printed)) == (0, (4_000, 0, 4_000, 0))
    assert "(1 with other values: see quarantine)" in printed
    assert stored(connection) == expected(readings)


@on_plain
def test_of_two_readings_with_one_key_the_first_in_the_file_counts(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    more, less = vehicle(midnight(3), meterId="M1", soc=9), vehicle(midnight(3), meterId="M1")
    later = [reading | {"vehicleId": "V2"} for reading in (less, more)]
    (tmp_path / "h.csv").write_bytes(as_csv([more, less, *later]))
    status, printed, _ = run(database_url, tmp_path / "h.csv")
    assert (status, summary(printed)) == (0, (4, 2, 2, 0))
    assert stored(connection) == expected([more, later[0]])


@on_plain
def test_columns_are_known_by_synonyms_and_by_map(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    readings = list(history(20, midnight(3)))
    for number in range(max(map(len, SYNONYMS.values())) + 1):
        names = {field: ([field, *others] * 6)[number] for field, others in SYNONYMS.items()}
        names |= {"timestamp": re.sub("([A-Z])", r"_\1", names["timestamp"]).upper()}
        file = tmp_path / f"{number}.csv"
        file.write_bytes(as_csv(readings, names))
        status, printed, errors = run(database_url, file)
        assert (status, summary(printed)[0], summary(printed)[3]) == (0, 20, 0), errors
    assert stored(connection) == expected(readings)

    file.write_bytes(
        as_csv([readings[0] | {"voltage": 99}], {"kwhConsumedAc": "Zähler", "meterId": "a", "soc": "site"})
    )
    assert "no column for kwhConsumedAc" not in run(database_url, file)[2]
    status, printed, errors = run(database_url, file, "--map", "Zähler=kwhConsumedAc", "--map", "a=meterId")
    assert (status, summary(printed)) == (0, (1, 0, 1, 0)), errors
    assert "ignored columns that are not fields of a reading: 'site'" in printed
    assert "(1 with other values: see quarantine)" in printed

    status, printed, errors = run(database_url, file, "--map", "Zaehler=kwhConsumedAc", "--map", "a=meterId")
    (line,) = errors.splitlines()
    assert (status, printed) == (1, "")
    assert line.startswith(f"wattline: {file} has no column 'Zaehler', which --map Zaehler=kwhConsumedAc names; ")


@on_plain
def test_a_bad_file_is_one_line(database_url: str, connection: psycopg.Connection, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"PK\x03\x04 and so on")
    status, printed, errors = run(database_url, tmp_path / "bad")
    (line,) = errors.splitlines()
    assert (status, printed) == (1, "")
    assert line.startswith(f"wattline: {tmp_path / 'bad'} is a zip archive or a spreadsheet; ")


@on_plain
def test_a_header_alone_is_an_import_of_nothing(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_bytes(b"\xef\xbb\xbftimestamp,meterId,kwhConsumedAc\n")
    status, printed, _ = run(database_url, tmp_path / "h.csv")
    assert (status, summary(printed)) == (0, (0, 0, 0, 0))


@on_plain
@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress], ids=["gzip", "zstd"])
def test_a_truncated_file_says_so_and_goes_on_when_it_is_whole(
    pack: Callable[[bytes], bytes],
    database_url: str,
    connection: psycopg.Connection,
    tmp_path: Path,
) -> None:
    count = 100_000  # more than a block in the first two thirds
    content, file = pack(as_ndjson(list(history(count, midnight(20), devices=100)))), tmp_path / "h"
    file.write_bytes(content[: len(content) * 2 // 3])
    status, _, errors = run(database_url, file)
    assert status == 1
    assert "is truncated" in errors
    (((position, inserted),)) = connection.execute("SELECT position, inserted FROM import_journal").fetchall()
    assert position > 0
    file.write_bytes(content)
    status, printed, _ = run(database_url, file)
    assert (status, summary(printed)) == (0, (count, count, 0, 0))
    assert 0 < inserted < count


def mixed_bag() -> bytes:
    """Returns a byte order mark, Windows line ends, blanks, quotes, an endless line, and rows that are wrong."""
    at = stamp(midnight(10))
    rows = [
        f'{at},"M1", 0.5',
        "",
        f"{at},M1,0.5,surplus",
        f"{at},M2,.25 ",
        f"{midnight(9).timestamp():.0f},M3,1",
        f"{at},no id,1",
        f"{at},M4,many",
        at[:-1] + ",M4,1",
        f"{at},M4," + "9" * 5_000_000,
        f'{at},M4,"0.5',
        f"{stamp(midnight(400))},M4,0.5",
        f"{at},M5,0.5",
    ]
    return b"\xef\xbb\xbf" + ("\r\n".join(["Time,METER_ID,kWh-AC", *rows]) + "\r\n").encode()


REJECTED = [
    (4, "malformed"), (7, "invalid_id"), (8, "malformed"), (9, "timestamp_without_zone"), (10, "malformed"),
    (11, "malformed"), (12, "too_old"),
]  # fmt: skip


def test_rejected_rows_go_to_quarantine_and_do_not_stop_their_neighbours(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    (tmp_path / "h.csv").write_bytes(mixed_bag())
    status, printed, errors = run(database_url, tmp_path / "h.csv")
    assert (status, summary(printed)) == (3, (11, 4, 0, 7)), errors
    assert "7 rows were rejected" in errors
    assert [row[0] for row in stored(connection)] == ["M1", "M2", "M3", "M5"]
    kept = connection.execute("SELECT source, code, times, payload FROM quarantine ORDER BY id").fetchall()
    assert {source for source, *_ in kept} == {"import"}
    assert sorted(code for _, code, times, _ in kept for _ in range(times)) == sorted(code for _, code in REJECTED)
    assert json.loads(next(payload for _, code, _, payload in kept if code == "invalid_id"))["meterId"] == "no id"
    assert_aggregates_are_those_of_the_readings(connection)


@on_plain
def test_rejected_rows_go_to_a_file_with_their_lines(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    (tmp_path / "h.csv").write_bytes(mixed_bag())
    status, _, errors = run(database_url, tmp_path / "h.csv", "--rejects", tmp_path / "r.ndjson")
    assert status == 3, errors
    rejects = [json.loads(line) for line in (tmp_path / "r.ndjson").read_bytes().splitlines()]
    assert [(one["line"], one["code"]) for one in rejects] == REJECTED
    assert rejects[1]["row"] == f"{stamp(midnight(10))},no id,1"
    assert rejects[-1]["message"].startswith("The timestamp lies before ")
    assert max(len(one["row"]) for one in rejects) <= MAX_LINE_BYTES
    assert connection.execute("SELECT count(*) FROM quarantine").fetchone() == (0,)


@on_plain
def test_a_bad_file_does_not_drive_others_out_of_quarantine(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    (tmp_path / "h.ndjson").write_bytes(b"".join(b'{"n": %d}\n' % n for n in range(QUARANTINED_ROWS + 5)))
    status, printed, _ = run(database_url, tmp_path / "h.ndjson")
    assert (status, summary(printed)[3]) == (3, QUARANTINED_ROWS + 5)
    assert connection.execute("SELECT count(*) FROM quarantine").fetchone() == (QUARANTINED_ROWS,)


def test_what_is_kept_whole_is_importable_and_what_is_older_is_not(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    ((oldest,),) = connection.execute("SELECT importable_from()").fetchall()
    assert midnight(30) < oldest < midnight(27)
    readings = [meter(oldest + timedelta(minutes=n), meter_id=f"M{n}") for n in (-1, 1)]
    (tmp_path / "h.csv").write_bytes(as_csv(readings))
    assert summary(run(database_url, tmp_path / "h.csv")[1]) == (2, 1, 0, 1)
    assert stored(connection) == expected(readings[1:])
    assert_aggregates_are_those_of_the_readings(connection)


@on_timescale
def test_days_in_the_columnstore_take_readings_and_know_theirs(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """This holds however few rows TimescaleDB may take out of the columnstore in one transaction."""
    first, second = list(history(4_000, midnight(24))), list(history(4_000, midnight(24), timedelta(seconds=30)))
    (tmp_path / "first.csv").write_bytes(as_csv(first))
    assert run(database_url, tmp_path / "first.csv")[0] == 0
    run_policies(connection, "policy_compression")
    in_columnstore = "SELECT hypertable_name FROM timescaledb_information.chunks WHERE is_compressed"
    assert len(connection.execute(in_columnstore).fetchall()) == 6
    limit = (
        f"ALTER DATABASE {connection.info.dbname} SET timescaledb.max_tuples_decompressed_per_dml_transaction = 1000"
    )
    connection.execute(limit.encode())
    (tmp_path / "both.csv").write_bytes(as_csv([*second, first[0] | {"voltage": 99}]))
    status, printed, errors = run(database_url, tmp_path / "both.csv")
    keys = {(reading.get("vehicleId", reading["meterId"]), reading["timestamp"]) for reading in first}
    known = sum((reading.get("vehicleId", reading["meterId"]), reading["timestamp"]) in keys for reading in second)
    assert (status, summary(printed)) == (0, (4_001, 4_000 - known, known + 1, 0)), errors
    assert known > 1_000
    assert_aggregates_are_those_of_the_readings(connection)


@on_timescale
def test_days_whose_chunks_were_dropped_are_not_importable(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    (tmp_path / "h.csv").write_bytes(as_csv(list(history(40, midnight(12))) + list(history(40, midnight(5)))))
    assert run(database_url, tmp_path / "h.csv")[0] == 0
    connection.execute("SELECT drop_chunks('meter_reading', INTERVAL '8 days')")
    assert connection.execute("SELECT importable_from()").fetchone() == (midnight(11),)


@on_plain
def test_days_whose_partitions_were_dropped_are_not_importable(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    (tmp_path / "h.csv").write_bytes(as_csv(list(history(40, midnight(12))) + list(history(40, midnight(5)))))
    assert run(database_url, tmp_path / "h.csv")[0] == 0
    connection.execute(f"DROP TABLE meter_reading_{midnight(12):%Y%m%d}".encode())
    assert connection.execute("SELECT importable_from()").fetchone() == (midnight(11),)


async def test_an_import_waits_for_whoever_holds_the_table(
    database_url: str, connection: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = list(history(200, midnight(15)))
    (tmp_path / "h.csv").write_bytes(as_csv(readings))
    monkeypatch.setattr(statements, "TRANSACTION_SECONDS", 1)
    pauses: list[int] = []
    with psycopg.connect(database_url) as holding:
        holding.execute("LOCK TABLE vehicle_reading")

        def pause(seconds: int) -> None:
            pauses.append(seconds)
            holding.rollback()

        importer = Importer(database_url, on_progress=lambda *_: None, on_pause=pause, on_rejected=None)
        done = (await importer.run(str(tmp_path / "h.csv"), {})).after
        await importer.close()
    assert (done.read, done.inserted, pauses) == (200, 200, [1])
    assert stored(connection) == expected(readings)


def await_journal(connection: psycopg.Connection, process: "subprocess.Popen[bytes]", condition: str) -> None:
    def is_so() -> bool:
        assert process.poll() is None
        return connection.execute(f"SELECT FROM import_journal WHERE {condition}".encode()).fetchone() is not None

    eventually(is_so)


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_killed_import_goes_on_and_counts_each_reading_once(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Every third day has readings, so a block is stored in several transactions; the last one is held up."""
    days = [midnight(ago) for ago in range(26, 2, -3)]
    readings = [reading for day in days for reading in history(500, day)]
    (tmp_path / "h.csv").write_bytes(as_csv([*readings, *readings[:100]]))
    earlier = [meter(days[-1] + timedelta(hours=9), meter_id="M0")]
    (tmp_path / "e").write_bytes(as_ndjson(earlier))
    assert run(database_url, tmp_path / "e")[0] == 0
    with psycopg.connect(database_url) as holding:
        holding.execute("INSERT INTO meter_reading (ts, meter_id, ac_milliwh) SELECT %s, id, 1 FROM meter", [days[-1]])
        process = start(database_url, str(tmp_path / "h.csv"))
        await_journal(connection, process, "ahead > 2000 AND position = 0")
        kill(process)
        holding.rollback()
    status, printed, errors = run(database_url, tmp_path / "h.csv")
    assert (status, summary(printed)) == (0, (len(readings) + 100, len(readings), 100, 0)), errors
    assert stored(connection) == expected([*readings, *earlier])
    assert_aggregates_are_those_of_the_readings(connection)
    hours = connection.execute("SELECT count(*) FROM touched_hour").fetchone()
    assert (
        hours
        == connection.execute(
            """
        SELECT (SELECT count(DISTINCT (meter_id, date_bin('1 hour', ts, '2000-01-01 00:00Z'))) FROM meter_reading)
            + (SELECT count(DISTINCT (vehicle_id, date_bin('1 hour', ts, '2000-01-01 00:00Z'))) FROM vehicle_reading)
        """
        ).fetchone()
    )
    assert connection.execute("SELECT FROM import_journal WHERE NOT isempty(touched)").fetchall() == []


@pytest.mark.soak
def test_a_million_readings_killed_half_way(database_url: str, connection: psycopg.Connection, tmp_path: Path) -> None:
    """tests/benchmarks/bench_import.py measures its speed."""
    count = 1_000_000
    file = tmp_path / "h.csv"
    write_csv(file, history(count, midnight(20), devices=1_000))
    process = start(database_url, str(file))
    await_journal(connection, process, f"read > {count // 2 - 100_000}")
    peak = peak_bytes(process)
    kill(process)
    ((before,),) = connection.execute("SELECT read FROM import_journal").fetchall()
    assert before < count

    process = start(database_url, str(file))
    while process.poll() is None:
        peak = max(peak, peak_bytes(process))
        time.sleep(0.05)
    printed = process.communicate()[0].decode()
    assert (process.returncode, summary(printed)) == (0, (count, count, 0, 0))
    assert 0 < peak < MEMORY_LIMIT_BYTES
    assert_aggregates_are_those_of_the_readings(connection)
    assert connection.execute("SELECT sum(readings) FROM meter_day(now() - INTERVAL '40 days', now())").fetchone() == (
        count // 2,
    )
