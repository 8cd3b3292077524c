"""The tables and links of the documents under docs/ agree with the code."""

import json
import re
from pathlib import Path
from typing import Any, Literal, get_args

import httpx
import pytest
from click import Context, Group
from msgspec.structs import replace

from app.analytics.alerts.silence import LONGEST_GAP_MINUTES, RHYTHM_DAYS
from app.analytics.buckets import MAX_POINTS
from app.analytics.efficiency.evidence import MAX_SHARED_MINUTES
from app.analytics.efficiency.verdict import ENOUGH_AC_MILLIWH, POSSIBLE_RATIO, Status
from app.analytics.export import MAX_EXPORT_DAYS
from app.analytics.series import EFFICIENCY_REACH
from app.analytics.site_series import MAX_SITE_BUCKETS
from app.analytics.window import MAX_HOURS
from app.broker import RECEIVE_MAXIMUM
from app.cli import cli
from app.database import ANSWER_SECONDS, TRANSACTION_SECONDS, most_connections
from app.errors import ServiceError
from app.fleet.states import REPORTING_MINUTES
from app.ingest.batch import PAYLOAD_LIMIT_BYTES, REJECTIONS, WARNINGS
from app.ingest.decode import MAX_READINGS, MediaType
from app.ingest.http.body import DRAIN_BYTES, DRAIN_SECONDS, MAX_BODY_BYTES, MAX_COMPRESSED_BYTES, MAX_FRAMES
from app.ingest.http.memory import LARGE_BYTES, MEMORY_BYTES
from app.ingest.members import MAX_READING_BYTES
from app.ingest.names import SYNONYMS
from app.ingest.store.conflicts import MOST_KEPT
from app.ingest.store.session import STAGED_SECONDS
from app.ingest.store.writer import GROUP_READINGS
from app.main import create_app
from app.ops.connections import BODY_BYTES_PER_SECOND, BODY_SECONDS
from app.ops.maintenance import QUARANTINE_ROWS
from app.policies.desired import Table
from app.policies.invariants import (
    AGGREGATE_CHUNK,
    LONGEST_CHUNK,
    READINGS_COLUMNSTORE,
    SHORTEST_CHUNK,
    SHORTEST_SCHEDULE,
    read_policies,
    violations,
)
from app.settings import Settings
from app.telemetry.instant import LATE_US, MAX_AGE, MAX_AHEAD
from app.webhooks.deliver import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, TIMEOUT_SECONDS
from app.webhooks.queue import GIVE_UP_DAYS

ROOT = Path(__file__).parents[2]
NAMES = (
    "alerts.md",
    "api.md",
    "architecture.md",
    "efficiency.md",
    "gateways.md",
    "import.md",
    "operations.md",
    "report.md",
    "sessions.md",
    "webhooks.md",
)
TEXT = {name: (ROOT / "docs" / name).read_text() for name in NAMES}
TEXT["README.md"] = (ROOT / "README.md").read_text()
POLICIES = read_policies()
RETENTION = POLICIES.retention
WEBHOOKS = Settings(webhook_url="https://host/path", webhook_secret="whsec_" + 32 * "A")
MIB = 1024 * 1024
MINUTE_US = 60_000_000
# Any call may be answered with these; api.md does not repeat them at each.
OF_ANY_CALL = {"not_found", "method_not_allowed", "misdirected_request", "internal_error"}


def section(name: str, heading: str) -> str:
    """Returns the text below a heading, up to the next heading of its level."""
    level = heading.partition(" ")[0]
    found = re.search(rf"^{re.escape(heading)}$(.*?)(?=^{level} |\Z)", TEXT[name], flags=re.DOTALL | re.MULTILINE)
    assert found, f"{name} has no {heading}"
    return found[1]


def table(name: str, heading: str) -> list[list[str]]:
    """Returns the rows of the first table below a heading, without its head; a cell that is one code has no marks."""
    rows = [
        [re.sub(r"^`([^`]*)`$", r"\1", cell.strip()) for cell in line.strip("|").split("|")]
        for line in section(name, heading).splitlines()
        if line.startswith("|")
    ]
    ends = [position for position, row in enumerate(rows) if set("".join(row)) <= {"-", " "}]
    return rows[ends[0] + 1 : ends[1] - 1 if len(ends) > 1 else None]


def prose(name: str) -> str:
    """Returns a document's text, without its line breaks."""
    return " ".join(TEXT[name].split())


def statuses() -> dict[str, int]:
    return {error.code: error.status for error in ServiceError.__subclasses__()}


def errors_of(heading: str) -> set[str]:
    """Returns the codes that api.md says a call may answer; none where it says nothing."""
    sentence = re.search(r"^Errors: (.*?)\n\n", section("api.md", heading), flags=re.DOTALL | re.MULTILINE)
    return set(re.findall(r"`(\w+)`", sentence[1])) if sentence else set()


def test_rejections_are_those_of_the_code() -> None:
    assert {code: message for code, message, _ in table("gateways.md", "## Rejected readings")} == REJECTIONS
    assert {code: message for code, message, _ in table("gateways.md", "## Dropped members")} == WARNINGS


def test_names_of_columns_are_those_of_the_code() -> None:
    rows = table("gateways.md", "## Other spellings")
    assert {field: tuple(re.findall(r"\w+", others)) for field, others in rows} == SYNONYMS


def test_errors_are_those_of_the_code() -> None:
    assert {code: int(status) for code, status, *_ in table("api.md", "## Errors")} == statuses()


def test_what_to_do_is_said_of_every_error_that_a_sender_may_get() -> None:
    rows = table("gateways.md", "## Retries")
    codes = OF_ANY_CALL | errors_of("### `POST /v1/ingestion`")
    assert {code: int(status) for status, code, *_ in rows if code} == {code: statuses()[code] for code in codes}
    assert [what for _, code, _, what in rows if code and "again, after" in what] == [
        what for status, _, _, what in rows if status.startswith("5")
    ]


async def test_the_errors_of_each_call_are_those_of_the_schema() -> None:
    """Headings that follow each other share the sentence below the last one."""
    paths = {shape(path): methods for path, methods in (await schema())["paths"].items()}
    for headings in re.findall(r"((?:^### .*\n\n)+)", TEXT["api.md"], flags=re.MULTILINE):
        calls = re.findall(r"`(\w+) (\S+)`", headings)
        if codes := errors_of(headings.strip().splitlines()[-1]):
            answered = {
                int(status) for method, path in calls for status in paths[shape(path)][method.lower()]["responses"]
            }
            assert {statuses()[code] for code in codes} == answered - {200}, headings


def test_limits_are_those_of_the_code() -> None:
    settings = Settings()
    limits = {limit: value for limit, value, _ in table("gateways.md", "## Limits")}
    ranges = {
        field: f"{limits.pop(name)}".replace(" to ", " and ")
        for name, field in (
            ("energy of a reading", "energy"),
            ("register", "register"),
            ("voltage", "voltage"),
            ("soc", "soc"),
            ("batteryTemp", "battery_temp"),
        )
    }
    for field, words in ranges.items():
        assert words in (REJECTIONS | WARNINGS)[f"{field}_out_of_range"]
    assert limits == {
        "body, decoded": f"{MAX_BODY_BYTES // MIB} MiB",
        "body, as sent compressed": f"{MAX_COMPRESSED_BYTES / MIB:g} MiB",
        "gzip members or zstd frames of a body": f"{MAX_FRAMES:,}",
        "readings of a batch": f"{MAX_READINGS:,}",
        "reading with other names": f"{MAX_READING_BYTES // 1024} KiB",
        "time for a body": f"{BODY_SECONDS:g} s, more while {BODY_BYTES_PER_SECOND // 1024} KiB come each second; "
        f"never {BODY_SECONDS:g} s without a byte",
        "bodies and batches in memory, all together": f"{MEMORY_BYTES // MIB} MiB; {MEMORY_BYTES * 3 // 4 // MIB} MiB "
        f"for those above {LARGE_BYTES // MIB} MiB",
        "connections": f"{settings.max_connections:,}",
        "idle connection": f"{settings.keep_alive_seconds} s",
        "characters of an id": "64",
        "timestamp ahead": f"{MAX_AHEAD.seconds // 60} minutes",
        "timestamp back": f"{MAX_AGE.days} days",
        "age from which a reading is late": f"{LATE_US // MINUTE_US} minutes",
        "new devices within an hour": f"{settings.new_devices_per_hour:,}",
        "readings that wait for the writer": f"{settings.queue_max_readings:,}",
        "one store transaction": f"{TRANSACTION_SECONDS} s",
        "bytes read of a request after its error is known": f"{DRAIN_BYTES // MIB} MiB or {DRAIN_SECONDS:g} s",
        "conflicts of a batch that go to quarantine": f"{MOST_KEPT:,}",
        "readings in quarantine": f"{QUARANTINE_ROWS:,}, for {RETENTION['quarantine']}",
        "bytes of a rejected reading in quarantine": f"{PAYLOAD_LIMIT_BYTES // 1024} KiB",
    }
    assert "64" in REJECTIONS["invalid_id"]


def test_formats_are_those_of_the_code() -> None:
    shown = [row[0] for row in table("gateways.md", "## Formats and compression")]
    assert [re.sub(r"`([^`]*)`.*", r"\1", cell) for cell in shown] == [str(media_type) for media_type in MediaType]


def test_statuses_are_those_of_the_code_in_its_order() -> None:
    rows = {status: when for status, when, _ in table("efficiency.md", "## Status")}
    assert list(rows) == [str(status) for status in Status]
    assert f"less than {ENOUGH_AC_MILLIWH / 1_000_000:g} kWh AC" in rows["insufficient_data"]
    assert f"above {POSSIBLE_RATIO:g}" in rows["impossible"]
    assert f"below {Settings().low_efficiency:g} " in rows["low_efficiency"]


def test_numbers_in_sentences_are_those_of_the_code() -> None:
    gap, hours, live = Settings().pairing_gap_minutes, f"{MAX_HOURS} hours", f"{MAX_AGE.days} days"
    for name, sentence in (
        ("efficiency.md", f"at most {gap} minutes long (`WATTLINE_PAIRING_GAP_MINUTES`)"),
        ("efficiency.md", f"up to {hours} ({MAX_HOURS // 24} days)"),
        ("efficiency.md", f"A window ends {MAX_AHEAD.seconds // 60} minutes from now"),
        ("efficiency.md", f"less {TRANSACTION_SECONDS} seconds"),
        ("api.md", f"a window of at most {hours}"),
        ("api.md", f"it ends {MAX_AHEAD.seconds // 60} minutes from now"),
        ("api.md", f"more than {MAX_POINTS:,} buckets"),
        ("api.md", f"more than {EFFICIENCY_REACH.days} days before the end"),
        ("api.md", f"times the minutes of the window, may be {MAX_SHARED_MINUTES:,} at most"),
        ("api.md", f"{MAX_SHARED_MINUTES // (MAX_HOURS * 60)} over {MAX_HOURS // 24} days"),
        ("api.md", f"a reading of the last {REPORTING_MINUTES} minutes"),
        ("gateways.md", f"up to {GROUP_READINGS:,} readings"),
        ("gateways.md", "at most about 1,000 readings at a time"),
        ("gateways.md", "BATCH_READINGS = 1_000"),
        ("api.md", f"a window of at most {MAX_EXPORT_DAYS} days"),
        ("architecture.md", f"after {RECEIVE_MAXIMUM:,} messages"),
        ("webhooks.md", f"2xx within {TIMEOUT_SECONDS} seconds"),
        ("webhooks.md", f"after {TIMEOUT_SECONDS} seconds without one"),
        ("webhooks.md", f"first after {FIRST_PAUSE_SECONDS} seconds"),
        ("webhooks.md", f"up to {LONGEST_PAUSE_SECONDS // 3600} hours"),
        ("webhooks.md", f"more than {GIVE_UP_DAYS} days old is given up"),
        ("architecture.md", f"No store transaction takes longer than {TRANSACTION_SECONDS} seconds"),
        ("architecture.md", f"with the temporary table for {STAGED_SECONDS} seconds"),
        ("architecture.md", f"{EFFICIENCY_REACH.days} days of a series, {MAX_HOURS // 24} of performance"),
        ("architecture.md", f"{MAX_SHARED_MINUTES:,} minutes of vehicles that share"),
        ("api.md", f"times that of the buckets, may be {MAX_SITE_BUCKETS:,} at most"),
        ("api.md", f"such as {MAX_SITE_BUCKETS // (24 * 60)} devices over 24 hours by minute"),
        ("api.md", f"{MAX_SITE_BUCKETS // (24 * 31):,} over a month by hour"),
        ("architecture.md", f"rests on the {TRANSACTION_SECONDS} seconds that bound a store transaction"),
        ("architecture.md", f"none of them takes longer than {ANSWER_SECONDS} s"),
        ("api.md", f"too slow: {ANSWER_SECONDS} s for an answer, {TRANSACTION_SECONDS} s for storing"),
        ("architecture.md", f"start of the last successful refresh, less {TRANSACTION_SECONDS} s"),
        ("architecture.md", f"columnstore, after {POLICIES.columnstore_after['meter_reading']}"),
        ("architecture.md", f"({POLICIES.refresh['meter_minute'].start_offset} and more) than readings may ({live})"),
        ("gateways.md", f"{MAX_AHEAD.seconds // 60} minutes ahead** of the service's clock and **{live} back**"),
        ("gateways.md", f"refreshed over {POLICIES.refresh['meter_minute'].start_offset}"),
        ("import.md", f"older than the {live} of the service"),
        ("import.md", f"less two days, which is {days('meter_reading') - 2} days"),
        ("import.md", f"is forgotten after {RETENTION['import_journal']}"),
        ("api.md", f"Readings are kept for {RETENTION['meter_reading']} unless"),
        ("alerts.md", f"closed alerts are deleted after {days('alert'):,} days, transitions after"),
        ("alerts.md", f"transitions after {days('alert_transition')}, unless"),
        ("alerts.md", f"after three usual gaps, and after {REPORTING_MINUTES} minutes at least"),
        ("alerts.md", f"If the usual gap is {LONGEST_GAP_MINUTES} minutes or less"),
        ("alerts.md", f"as of the {RHYTHM_DAYS} days before the hour of its newest reading"),
        ("alerts.md", f"came in time, at most {LATE_US // MINUTE_US} minutes after it was measured"),
        ("alerts.md", f"not in the first {REPORTING_MINUTES} minutes after the service"),
        (
            "operations.md",
            f"opens {most_connections(Settings())} connections at most, {most_connections(WEBHOOKS)} with",
        ),
        ("operations.md", f"`WATTLINE_POOL_MAX_SIZE` sets {Settings().pool_max_size} of them"),
        ("operations.md", f"{SHORTEST_CHUNK.seconds // 3600} hour to {LONGEST_CHUNK.days} days"),
        ("operations.md", f"{READINGS_COLUMNSTORE.days} days at least, since batches write to the last {MAX_AGE.days}"),
        ("operations.md", f"the {live} in which readings may arrive"),
        ("operations.md", f"{SHORTEST_SCHEDULE.seconds} seconds at least"),
        ("operations.md", f"Aggregates have chunks of {AGGREGATE_CHUNK.days} days"),
        ("README.md", f"{live} back and {MAX_AHEAD.seconds // 60} minutes ahead"),
        ("README.md", f"counts inserted readings more than {LATE_US // MINUTE_US} minutes old"),
        ("README.md", f"kept for {RETENTION['meter_reading']}, minutes for {days('meter_minute')}"),
        ("README.md", f"The quarantine keeps {QUARANTINE_ROWS:,} readings for {RETENTION['quarantine']}"),
    ):
        assert sentence in prose(name), (name, sentence)


def days(name: Literal["meter_reading", "meter_minute", "meter_hour", "alert", "alert_transition"]) -> int:
    """Returns for how many days the file keeps it."""
    return int(RETENTION[name].removesuffix(" days"))


def sizes(cell: str) -> list[float]:
    """Returns the numbers of a cell such as `1.5 GB → 190 MB`, in bytes where it has units."""
    found = re.findall(r"([\d.,]+)(?: (MB|GB))?", cell)
    return [float(number.replace(",", "")) * {"": 1, "MB": 1e6, "GB": 1e9}[unit] for number, unit in found]


def test_the_sizes_of_a_fleet_follow_from_those_of_a_row() -> None:
    text = section("operations.md", "## Size")
    of_rows, of_fleets = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    head, _, *rows = (line.strip("| \n").split(" | ") for line in of_rows.splitlines())
    row = {(name, cadence): sizes(cell) for name, *cells in rows for cadence, cell in zip(head[1:], cells, strict=True)}
    ((of_meter, of_vehicle),) = re.findall(r"An hour takes (.*) bytes for a meter and (.*) for a", text)
    hours = sizes(of_meter), sizes(of_vehicle)
    (a_day,) = map(sizes, re.findall(r"and a day ([\d]+ and [\d]+)", text))
    after = {name: int(POLICIES.columnstore_after[name].split()[0]) for name in ("meter_reading", "meter_minute")}
    raw, aggregate = after["meter_reading"] + 1, after["meter_minute"] + AGGREGATE_CHUNK.days
    for line in of_fleets.splitlines()[2:]:
        devices, cadence, readings, *cells = line.strip("| \n").split(" | ")
        each = int(devices.replace(",", "")) / 2
        daily = {"10 seconds": 8640, "minute": 1440, "15 minutes": 96}[cadence]
        assert int(readings.replace(",", "")) == 2 * each * daily

        def of(kind: str, rows_a_day: int, cadence: str = cadence, each: float = each) -> list[float]:
            pairs = zip(row[f"meter {kind}", f"each {cadence}"], row[f"vehicle {kind}", f"each {cadence}"], strict=True)
            return [each * rows_a_day * sum(pair) for pair in pairs]

        reading, minute = of("reading", daily), of("minute", min(daily, 1440))
        hour = [each * 24 * sum(pair) for pair in zip(*hours, strict=True)]
        whole = raw * reading[0] + (days("meter_reading") + 1 - raw) * reading[1]
        whole += aggregate * minute[0] + (days("meter_minute") + AGGREGATE_CHUNK.days - aggregate) * minute[1]
        whole += aggregate * hour[0] + (days("meter_hour") + AGGREGATE_CHUNK.days - aggregate) * hour[1]
        whole += days("meter_hour") * each * sum(a_day)
        for cell, expected in zip(cells, (reading, minute, [whole]), strict=True):
            assert sizes(cell) == pytest.approx(expected, rel=0.06)
    log = sum(int(number) for number in re.findall(r"by (\d+) (?:bytes for each|more for)", " ".join(text.split())))
    assert f"{log * 10_000 * 1440 / 1e9:.1f} GB a day for 10,000 devices" in prose("operations.md")


def test_the_commands_of_operations_md_exist() -> None:
    named = set(re.findall(r"`(?:DATABASE_URL=\S+ )?wattline (\w+)(?: (\w+))?", TEXT["operations.md"]))
    assert ("policy", "show") in named
    for name, sub in named:
        found = cli.get_command(Context(cli), name)
        assert found, name
        assert not isinstance(found, Group) or sub in found.commands, (name, sub)


def test_the_servers_settings_are_those_of_the_file() -> None:
    lines = (ROOT / "timescale" / "postgresql.conf").read_text().splitlines()
    there = dict(re.findall(r"^([\w.]+) = (\S+)", "\n".join(lines), flags=re.MULTILINE))
    for names, value, _ in table("operations.md", "## Tuning"):
        for name in re.findall(r"[\w.]+", names):
            assert there[name] == value, name
    workers = ("timescaledb.max_background_workers", "max_parallel_workers")
    assert int(there["max_worker_processes"]) == sum(int(there[name]) for name in workers) + 3


def test_the_shortest_retentions_are_the_shortest_that_are_accepted() -> None:
    rows = section("operations.md", "## When the disk is full").partition("| entry |")[2]
    shortest = {
        name: (int(days), int(columnstore) if columnstore else None)
        for names, days, columnstore in re.findall(
            r"^\| (`retention\..*) \| `(\d+) days`(?:, with .* at `(\d+) days`)? \|$", rows, flags=re.MULTILINE
        )
        for name in re.findall(r"`retention\.(\w+)`", names)
    }
    assert shortest.keys() == RETENTION.keys() - set(get_args(Table))

    def accepted(less: int, *names: str) -> bool:
        retention = {name: f"{shortest[name][0] - less} days" for name in names}
        columnstore = {name: f"{sooner} days" for name in names if (sooner := shortest[name][1])}
        return not [
            *violations(
                replace(
                    POLICIES,
                    retention=POLICIES.retention | retention,
                    columnstore_after=POLICIES.columnstore_after | columnstore,
                )
            )
        ]

    assert accepted(0, *shortest)
    for name in shortest:
        assert accepted(0, name)
        assert not accepted(1, name)


async def test_sentences_of_the_schema_and_the_rejections_hold_the_limits_of_the_code() -> None:
    ahead, back = f"{MAX_AHEAD.seconds // 60} minutes ahead", f"{MAX_AGE.days} days back"
    assert ahead in REJECTIONS["in_the_future"]
    assert back in REJECTIONS["too_old"]
    shown = json.dumps(await schema())
    assert f"at most {back} and {ahead}" in shown
    assert f"End of the window; default: in {MAX_AHEAD.seconds // 60} minutes." in shown


def example() -> dict[str, dict[int, float]]:
    """Returns the energy, by device and minute, of the readings that efficiency.md sends."""
    energy: dict[str, dict[int, float]] = {}
    loop = r"for minute in (?:\$\(seq (?:-w )?(\d+) (\d+)\)|(\d\d) (\d\d)); do "
    sent = rf"^  (?:{loop})?(meter|vehicle V\d) (\S+):\d\d ([\d.]+)"
    for first, last, one, other, device, minute, kwh in re.findall(sent, TEXT["efficiency.md"], re.M):
        minutes = range(int(first or one), int(last or other) + 1) if "$" in minute else [int(minute)]
        energy.setdefault("M7" if device == "meter" else device[-2:], {}).update(dict.fromkeys(minutes, float(kwh)))
    return energy


def test_the_timeline_shows_the_readings_of_the_example() -> None:
    drawing = next(block for block in re.findall(r"```\n(.*?)```", TEXT["efficiency.md"], re.DOTALL) if "10:" in block)
    head, *lines = drawing.splitlines()
    start = head.index("00")
    rows = {line.split()[0]: line[start:] for line in lines}
    for device, energy in example().items():
        assert {minute for minute, mark in enumerate(rows[device]) if mark == "x"} == energy.keys()
    assert {kind: rows["is"].count(kind) for kind in "PS"} == {"P": 36, "S": 4}


def test_what_simpler_ways_would_say_is_so() -> None:
    energy = example()
    said = {way: ratio for way, ratio, _ in table("efficiency.md", "## An example")}
    both = energy["M7"].keys() & energy["V7"].keys() - energy["V8"].keys()

    def ratio(ac: set[int], dc: set[int]) -> str:
        total_ac = sum(kwh for minute, kwh in energy["M7"].items() if minute in ac)
        return f"{sum(kwh for minute, kwh in energy['V7'].items() if minute in dc) / total_ac:.3f}"

    assert said == {
        "all DC of V7 over all AC of M7": ratio(set(energy["M7"]), set(energy["V7"])),
        "minutes unshared and with a reading of both": ratio(both, both),
        "counters, paired": "0.900",
    }


def shape(path: str) -> str:
    """Returns a path without the names of its parameters."""
    return re.sub(r"{\w+}", "{}", path)


async def schema() -> dict[str, Any]:
    app = create_app(Settings(database_url="postgresql://127.0.0.1:1/nowhere"))
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        document: dict[str, Any] = (await client.get("/schema")).json()
    return document


async def test_every_route_is_documented_and_every_documented_one_exists() -> None:
    paths: dict[str, dict[str, Any]] = (await schema())["paths"]
    routes = {(method.upper(), shape(path)) for path, methods in paths.items() for method in methods}
    headings = re.findall(r"^### `(\w+) (\S+)`$", TEXT["api.md"], flags=re.MULTILINE)
    documented = {(method, shape(path)) for method, path in headings}
    assert documented - {("GET", "/schema")} == routes
    assert len(headings) == len(documented)


async def test_every_query_parameter_is_documented() -> None:
    text = TEXT["api.md"]
    for path, methods in (await schema())["paths"].items():
        for operation in methods.values():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "query":
                    assert re.search(rf"[`?&]{parameter['name']}\b", text), (path, parameter["name"])
                    if parameter["name"] == "maxPoints":
                        assert f"{parameter['schema']['default']:,} if not given" in text


def slug(heading: str) -> str:
    """Returns the anchor of a heading, as Git hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md", *(f"docs/{name}" for name in NAMES)])
def test_links_lead_somewhere(path: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / path).read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (ROOT / path).parent / file if file else ROOT / path
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), flags=re.MULTILINE)
            assert anchor in map(slug, headings), target


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name: str) -> None:
    named = re.findall(r"\b(?:app|timescale|tests|migrations)/[\w/]*(?:\.\w+)?", TEXT[name])
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("path", ["README.md", *(f"docs/{name}" for name in NAMES)])
def test_lines_can_be_read_in_a_terminal(path: str) -> None:
    """The limit is not for tables, whose rows cannot be broken."""
    lines = (ROOT / path).read_text().splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []
