"""`wattline import` as an operator meets it, on both engines."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.ingest.history.columns import SYNONYMS
from app.ingest.history.file import MAX_LINE_BYTES
from app.ingest.history.importer import QUARANTINED_ROWS
from app.ingest.insert import METER, VEHICLE
from tests.fixtures.commands import command
from tests.fixtures.database import Server
from tests.fixtures.engines import on_plain, on_timescale
from tests.fixtures.readings import midnight
from tests.fixtures.sending import meter, stamp, vehicle

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MEMORY_LIMIT_BYTES = 200_000_000
FIELDS = list(SYNONYMS)
Readings = list[dict[str, Any]]


def start(url: str, *arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli", "import", *arguments],
        env=os.environ | {"DATABASE_URL": url},
        stdin=options.get("stdin", subprocess.DEVNULL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(url: str, *arguments: str | Path, given: bytes | None = None) -> tuple[int, str, str]:
    """Exit status, what it printed, and its errors."""
    if given is None:
        done = command("import", *map(str, arguments), DATABASE_URL=url)
        return done.returncode, done.stdout, done.stderr
    process = start(url, *map(str, arguments), stdin=subprocess.PIPE)
    out, errors = process.communicate(given, timeout=110)
    return process.returncode, out.decode(), errors.decode()


def summary(printed: str) -> tuple[int, int, int, int]:
    """read, inserted, duplicates, rejected; checked to add up."""
    found = re.search(r"read ([\d,]+) = inserted ([\d,]+) \+ duplicates ([\d,]+).* \+ rejected ([\d,]+)", printed)
    assert found, printed
    read, inserted, duplicates, rejected = (int(number.replace(",", "")) for number in found.groups())
    assert read == inserted + duplicates + rejected
    return read, inserted, duplicates, rejected


def history(count: int, start: datetime, step: timedelta = timedelta(minutes=1), devices: int = 10) -> Iterator[Any]:
    """Readings of both streams, in order of time."""
    for n in range(count // 2):
        at = start + n // devices * step + timedelta(milliseconds=n % devices)
        device = n % devices
        yield meter(at, 0.1 + n % 97 / 1000, meter_id=f"M{device}", voltage=230.5)
        yield vehicle(
            at, 0.1 + n % 89 / 1000, vehicle_id=f"V{device}", meterId=f"M{device}", soc=n % 100, batteryTemp=21.25
        )


def as_csv(readings: Readings, names: dict[str, str] | None = None) -> bytes:
    lines = [",".join((names or {}).get(field, field) for field in FIELDS)]
    lines += [",".join(str(reading.get(field, "")) for field in FIELDS) for reading in readings]
    return "".join(f"{line}\n" for line in lines).encode()


def as_ndjson(readings: Readings) -> bytes:
    return b"".join(json.dumps(reading).encode() + b"\n" for reading in readings)


def stored(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        """
        SELECT external_id, ts, ac_milliwh, NULL, voltage_centiv, NULL, NULL
        FROM meter_reading JOIN meter ON id = meter_id
        UNION ALL
        SELECT vehicle.external_id, ts, dc_milliwh, meter.external_id, NULL, soc_centipercent, battery_temp_centic
        FROM vehicle_reading JOIN vehicle ON vehicle.id = vehicle_id LEFT JOIN meter ON meter.id = meter_id
        ORDER BY 1, 2
        """
    ).fetchall()


def expected(readings: Readings) -> list[tuple[Any, ...]]:
    def scaled(reading: dict[str, Any], field: str, factor: int) -> int | None:
        return round(reading[field] * factor) if field in reading else None

    return sorted(
        (
            reading.get("vehicleId") or reading["meterId"],
            datetime.fromisoformat(reading["timestamp"]),
            scaled(reading, "kwhDeliveredDc" if "vehicleId" in reading else "kwhConsumedAc", 1_000_000),
            reading["meterId"] if "vehicleId" in reading else None,
            scaled(reading, "voltage", 100),
            scaled(reading, "soc", 100),
            scaled(reading, "batteryTemp", 100),
        )
        for reading in readings
    )


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


@pytest.mark.parametrize("packed", [bytes, gzip.compress, zstd.compress], ids=["plain", "gzip", "zstd"])
@pytest.mark.parametrize("form", [as_csv, as_ndjson])
def test_every_format_and_compression_is_stored_and_summed(
    form: Callable[[Readings], bytes],
    packed: Callable[[bytes], bytes],
    database_url: str,
    connection: psycopg.Connection,
    tmp_path: Path,
) -> None:
    readings = list(history(600, midnight(20) + timedelta(hours=3)))
    content = packed(form(readings))
    (tmp_path / "history").write_bytes(content)
    status, printed, errors = run(database_url, tmp_path / "history")
    assert (status, summary(printed)) == (0, (600, 600, 0, 0)), errors
    assert stored(connection) == expected(readings)
    assert_aggregates_are_those_of_the_readings(connection)
    hours = connection.execute("SELECT DISTINCT stream, hour FROM touched_hour ORDER BY 1, 2").fetchall()
    assert hours == [(stream, midnight(20) + timedelta(hours=3)) for stream in ("meter", "vehicle")]

    # Once more, from standard input: it is known by its content, and nothing changes.
    before = connection.execute("SELECT xmin::text, * FROM import_journal").fetchall()
    status, printed, _ = run(database_url, "-", given=content)
    assert (status, summary(printed)) == (0, (600, 600, 0, 0))
    assert "standard input: imported before, nothing is new." in printed
    assert connection.execute("SELECT xmin::text, * FROM import_journal").fetchall() == before


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
    assert "(1 with other values)" in printed
    assert stored(connection) == expected(readings)


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
    assert "columns that are no field of a reading were ignored: 'site'" in printed
    assert "(1 with other values)" in printed


HEADER = "timestamp,meterId,kwhConsumedAc\n"
NOW = stamp(midnight(1))
BAD = {
    "empty": (b"", "is empty"),
    "wrong columns": (
        b"a,b,c\n1,2,3\n",
        "no column for timestamp (--map COLUMN=FIELD names it); its columns: a, b, c.",
    ),
    "no header": (f"{NOW},M1,0.5\n".encode(), "no column for timestamp"),
    "binary": (bytes(range(256)) * 400, "is binary or not UTF-8"),
    "zip": (b"PK\x03\x04 and so on", "is a zip archive or a spreadsheet"),
    "utf-16": (HEADER.encode("utf-16"), "is UTF-16, not UTF-8"),
    "latin-1": ("timestamp,Zähler,kwhConsumedAc\n".encode("latin-1"), "neither CSV nor NDJSON in UTF-8"),
    "array": (b'[{"meterId": "M1"}]', "is a JSON array"),
    "semicolons": (HEADER.replace(",", ";").encode() + f"{NOW};M1;0,5\n".encode(), "is separated by ';'"),
    "tabs": (HEADER.replace(",", "\t").encode(), "is separated by tabs"),
    "decimal commas": (f'{HEADER}{NOW},M1,"0,48"\n'.encode(), "decimal commas: '0,48' must be 0.48."),
    "duplicate names": (b"ts,meter,kwh_ac,meter\n", "has two columns named 'meter'"),
    "two for a field": (b"ts,time,meter,kwh_ac\n", "two columns for timestamp: 'ts' and 'time'; --map time=timestamp"),
    "two in objects": (b'{"ts": 1, "time": 2}\n', "two columns for timestamp"),
    "endless header": (b"x" * 3_000_000, "has a first line of more than 64 KiB"),
    "bad gzip": (b"\x1f\x8b\x08 no gzip at all", "cannot be read"),
    "bad zstd": (b"\x28\xb5\x2f\xfd no zstd at all", "cannot be read"),
}


@on_plain
@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line(case: str, database_url: str, connection: psycopg.Connection, tmp_path: Path) -> None:
    content, phrase = BAD[case]
    (tmp_path / "bad").write_bytes(content)
    status, printed, errors = run(database_url, tmp_path / "bad")
    (line,) = errors.splitlines()
    assert (status, printed, phrase in line) == (1, "", True), line
    assert str(tmp_path / "bad") in line
    assert stored(connection) == []


@on_plain
def test_a_header_alone_is_an_import_of_nothing(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_bytes(b"\xef\xbb\xbf" + HEADER.encode())
    status, printed, _ = run(database_url, tmp_path / "h.csv")
    assert (status, summary(printed)) == (0, (0, 0, 0, 0))


@on_plain
@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress], ids=["gzip", "zstd"])
def test_a_truncated_file_says_so_and_goes_on_when_it_is_whole(
    pack: Callable[[bytes], bytes], database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    whole = list(history(120_000, midnight(20), devices=100))
    content, file = pack(as_ndjson(whole)), tmp_path / "h"
    file.write_bytes(content[: len(content) * 2 // 3])
    status, _, errors = run(database_url, file)
    assert status == 1
    assert "is truncated" in errors
    (((position, inserted),)) = connection.execute("SELECT position, inserted FROM import_journal").fetchall()
    assert position > 0
    file.write_bytes(content)
    status, printed, _ = run(database_url, file)
    assert (status, summary(printed)) == (0, (120_000, 120_000, 0, 0))
    assert 0 < inserted < 120_000


def mixed_bag() -> bytes:
    """A byte order mark, Windows line ends, blanks, quotes, an endless line, and rows that are wrong."""
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


def test_an_import_waits_for_whoever_holds_the_table(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    readings = list(history(200, midnight(15)))
    (tmp_path / "h.csv").write_bytes(as_csv(readings))
    with connection.transaction():
        connection.execute("LOCK TABLE vehicle_reading")
        process = start(database_url, str(tmp_path / "h.csv"))
        time.sleep(8)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, summary(printed.decode())) == (0, (200, 200, 0, 0))
    assert b"The database is busy or away; again in 1 s." in errors
    assert stored(connection) == expected(readings)


def await_journal(connection: psycopg.Connection, process: "subprocess.Popen[bytes]", condition: str) -> None:
    while connection.execute(f"SELECT FROM import_journal WHERE {condition}".encode()).fetchone() is None:
        assert process.poll() is None
        time.sleep(0.01)


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_killed_import_goes_on_and_counts_each_reading_once(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Every third day has readings, so that a block is stored in several transactions; the last one is held up."""
    days = [midnight(ago) for ago in range(26, 2, -3)]
    readings = [reading for day in days for reading in history(2_500, day)]
    (tmp_path / "h.csv").write_bytes(as_csv([*readings, *readings[:100]]))
    earlier = [meter(days[-1] + timedelta(hours=9), meter_id="M0")]
    assert run(database_url, "-", given=as_ndjson(earlier))[0] == 0
    with psycopg.connect(database_url) as holding:
        holding.execute("INSERT INTO meter_reading (ts, meter_id, ac_milliwh) SELECT %s, id, 1 FROM meter", [days[-1]])
        process = start(database_url, str(tmp_path / "h.csv"))
        await_journal(connection, process, "ahead > 10000 AND position = 0")
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


def peak_bytes(process: "subprocess.Popen[bytes]") -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def bare_copy_seconds(stored: psycopg.Connection, empty: psycopg.Connection) -> float:
    """A COPY of the stored readings, 50,000 a transaction, into a database that is empty before and after."""
    empty.execute("SELECT prepare_days(now() - INTERVAL '28 days', now())")
    seconds = 0.0
    for statements, table in ((METER, "meter_reading"), (VEHICLE, "vehicle_reading")):
        columns = re.search(r"\(ts, (.*?)\)", statements.copy)
        assert columns
        since_2000 = "(extract(epoch FROM ts) * 1000000)::bigint - 946684800000000"
        select = f"SELECT {since_2000}, {columns[1]} FROM {table} ORDER BY ts"  # noqa: S608
        rows = iter(stored.execute(select.encode()).fetchall())
        started = time.perf_counter()
        while part := list(islice(rows, 50_000)):
            with empty.transaction(), empty.cursor().copy(statements.copy.encode()) as copy:
                copy.set_types(statements.copy_types)
                for row in part:
                    copy.write_row(row)
        seconds += time.perf_counter() - started
    empty.execute("TRUNCATE meter_reading, vehicle_reading")
    return seconds


@pytest.mark.soak
def test_a_million_readings_killed_half_way(
    database_url: str, connection: psycopg.Connection, server: Server, tmp_path: Path
) -> None:
    count = 1_000_000
    file = tmp_path / "h.csv"
    with file.open("wb") as out:
        readings = history(count, midnight(20), devices=1_000)
        out.write(as_csv([]))
        while part := list(islice(readings, 50_000)):
            out.write(as_csv(part).partition(b"\n")[2])
    process = start(database_url, str(file))
    await_journal(connection, process, f"read > {count // 2 - 100_000}")
    first_peak = peak_bytes(process)
    kill(process)
    ((before,),) = connection.execute("SELECT read FROM import_journal").fetchall()
    assert before < count

    process = start(database_url, str(file))
    peak = first_peak
    while process.poll() is None:
        peak = max(peak, peak_bytes(process))
        time.sleep(0.05)
    printed = process.communicate()[0].decode()
    assert (process.returncode, summary(printed)) == (0, (count, count, 0, 0))
    assert peak < MEMORY_LIMIT_BYTES
    assert_aggregates_are_those_of_the_readings(connection)
    assert connection.execute("SELECT sum(readings) FROM meter_day(now() - INTERVAL '40 days', now())").fetchone() == (
        count // 2,
    )

    # Into a database of its own: where aggregates remember dropped readings, nothing older is taken.
    other_url = server.clone()
    with psycopg.connect(other_url, autocommit=True) as other:
        seconds = bare_copy_seconds(connection, other)
    status, printed, _ = run(other_url, file)
    server.drop(other_url)
    assert (status, summary(printed)) == (0, (count, count, 0, 0))
    rate = re.search(r"([\d,]+) readings/s", printed)
    assert rate
    import_rate, copy_rate = int(rate[1].replace(",", "")), count / seconds
    print(  # noqa: T201
        f"{server.engine}: import {import_rate:,} readings/s, bare COPY {copy_rate:,.0f}, "
        f"ratio {import_rate / copy_rate:.2f}, peak memory {peak / 1e6:.0f} MB, load {os.getloadavg()[0]:.1f}"
    )
