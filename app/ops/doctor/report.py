"""The doctor's report: sections of aligned lines, then what is wrong. It is plain text, 80 columns wide."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta

from app import __version__
from app.broker import shown_address
from app.database import shown_url
from app.fleet.states import REPORTING_MINUTES
from app.ops.doctor.ask import find_out
from app.ops.doctor.checks import wrong
from app.ops.doctor.facts import Facts
from app.policies.words import size_words
from app.settings import Settings, variable_of

WIDTH_CHARACTERS = 80
Rows = Iterable[tuple[str, ...]]


def examine(database: AbstractContextManager[str], settings: Settings, environ: Mapping[str, str]) -> tuple[str, bool]:
    """Returns the report on the database whose URL the context yields, and True when nothing is wrong."""
    facts = find_out(database, settings, environ)
    mistakes = [finding.sentence for finding in wrong(facts)]
    sections = [
        _section("Wattline", [("version", __version__)]),
        *(_section(title, rows(facts)) for title, rows in _SECTIONS.items()),
        _sentences("What is wrong", mistakes) or "Nothing is wrong.",
    ]
    return "\n\n".join(filter(None, sections)), not mistakes


def _section(title: str, rows: Rows) -> str:
    table = [row for row in rows if any(row)]
    if not table:
        return ""
    columns = max(map(len, table))
    widths = [max((len(row[place]) for row in table if len(row) > place + 1), default=0) for place in range(columns)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in table)
    return "\n".join([title, *(_wrapped(line.rstrip(), "  ", "      ") for line in lines)])


def _sentences(title: str, sentences: list[str]) -> str:
    if not sentences:
        return ""
    lines = (_wrapped(" ".join(said.split()), f"{number:3}. ", "     ") for number, said in enumerate(sentences, 1))
    return "\n".join([title, *lines])


def _wrapped(line: str, first: str, others: str) -> str:
    """Wraps the line to the report's width, without breaking a statement or a name."""
    return textwrap.fill(
        line,
        WIDTH_CHARACTERS,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _database(facts: Facts) -> Iterator[tuple[str, ...]]:
    if facts.database:
        yield "database", facts.database
    if facts.settings.database_url is None:
        yield "data", f"Wattline's own, under {facts.settings.data_dir.resolve()}"
    if facts.disk:
        yield "disk", f"{size_words(facts.disk[0])} free of {size_words(facts.disk[1])}"
    if facts.server is None:
        return
    unknown = "unknown" if facts.revision is None else "none yet"
    yield "engine", facts.engine or unknown
    yield "revision", f"{facts.revision or unknown}, {facts.needed_revision} needed"
    yield "PostgreSQL", f"{facts.server.postgresql}, running {_span(facts.now, facts.server.started_at)}"
    if facts.server.timescaledb:
        licence = f", licence {facts.scheduler.licence}" if facts.scheduler else ""
        yield "TimescaleDB", f"{facts.server.timescaledb}{licence}"
    yield "connections", f"{facts.server.service_connections} of services, {facts.server.connections_allowed} allowed"


def _settings(facts: Facts) -> Iterator[tuple[str, ...]]:
    for field in facts.settings.__struct_fields__:
        variable, value = variable_of(field), getattr(facts.settings, field)
        if field == "database_url" and value is not None:
            value = shown_url(value) or "not shown"
        if field == "mqtt_url" and value is not None:
            value = shown_address(facts.settings)
        # A receiver's URL is often the only secret that protects it.
        if field in ("mqtt_password", "webhook_url", "webhook_secret") and value is not None:
            value = "not shown"
        yield variable, "set" if facts.variables.get(variable) else "default", "none" if value is None else str(value)


def _policies(facts: Facts) -> Iterator[tuple[str, ...]]:
    if facts.plan is None:
        return
    if not facts.plan.changes:
        yield ("In force as timescale/policies.toml says.",)
    for change in facts.plan.changes:
        yield (f"to come: {change.words}",)
    for clause in facts.plan.broken:
        yield (f"against the rules: {clause}",)
    for note in facts.plan.notes:
        yield (note,)


def _jobs(facts: Facts) -> Iterator[tuple[str, ...]]:
    if facts.jobs:
        yield "", "", "every", "last run", "ago", "next in"
    for job in facts.jobs:
        yield (
            job.work,
            job.target,
            _duration(job.schedule),
            job.last_status or "none",
            _span(facts.now, job.last_start),
            "paused" if job.paused else _span(job.next_start, facts.now),
        )


def _freshness(facts: Facts) -> Iterator[tuple[str, ...]]:
    if facts.aggregates:
        yield "", "through (UTC)", "behind", "asOf (UTC)"
    for aggregate in facts.aggregates:
        through = aggregate.materialized_through
        yield aggregate.name, _moment(through), _span(facts.now, through), _moment(aggregate.as_of)


def _devices(facts: Facts) -> Iterator[tuple[str, ...]]:
    if facts.devices:
        reporting, expected = facts.devices.reporting, facts.devices.expected
        yield "reporting", f"{reporting} of {expected}, in the last {REPORTING_MINUTES} minutes"


def _sizes(facts: Facts) -> Iterator[tuple[str, ...]]:
    if facts.sizes:
        yield "", "rows", "size", "parts", "compr.", "from", "to"
    for size in facts.sizes:
        yield (
            size.name,
            _count(size.rows_estimated or 0),
            size_words(size.bytes or 0),
            str(size.parts),
            str(size.compressed_parts),
            _day(size.oldest),
            _day(size.newest),
        )
    if facts.server:
        yield "database", "", size_words(facts.server.database_bytes)


def _quarantine(facts: Facts) -> Iterator[tuple[str, ...]]:
    if facts.devices:
        hint = ": wattline quarantine list" if facts.quarantined else ""
        yield "rejected", f"{facts.quarantined} in quarantine{hint}"
    for code, count in facts.rejected_today[:5]:
        yield code, f"{count} in the last day"


def _broker(facts: Facts) -> Iterator[tuple[str, ...]]:
    if grants := facts.grants:
        yield "broker", shown_address(facts.settings)
        yield "in flight", f"{grants.receive_maximum} messages at most (receive maximum)"
        yield "message", f"{size_words(grants.packet_bytes)} at most" if grants.packet_bytes else "any size"
        yield "session", "never expires" if grants.session_seconds is None else f"{grants.session_seconds} s at most"
        yield "shared", "yes" if grants.shares else "no"


_SECTIONS = {
    "Database": _database,
    "Settings": _settings,
    "Policies": _policies,
    "Jobs": _jobs,
    "Freshness": _freshness,
    "Devices": _devices,
    "Sizes": _sizes,
    "Quarantine": _quarantine,
    "Broker": _broker,
}


def _moment(moment: datetime | None) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if moment else "never"


def _day(moment: datetime | None) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d}" if moment else "-"


def _span(later: datetime | None, earlier: datetime | None) -> str:
    return _duration(later - earlier) if later and earlier else "-"


def _duration(span: timedelta) -> str:
    """Returns the two largest units of a span: `2 d 3 h`."""
    seconds = max(0, round(span.total_seconds()))
    counts = (seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s")
    return " ".join([f"{count} {unit}" for count, unit in counts if count][:2]) or "0 s"


def _count(count: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:,}"
