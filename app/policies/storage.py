"""All that is stored, with its size and its policies, and which parts of it a policy drops or compresses when."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import get_args

import msgspec
from sqlalchemy import Connection, text

from app.policies.desired import Aggregate, Policies, Readings, Table
from app.policies.live import Kind, State, desired_state, live_state
from app.policies.plan import Change, age_of, is_paused, notes_on
from app.policies.words import words_in_full


class StoragePart(msgspec.Struct, frozen=True, rename="camel"):
    """A row of storage_parts(): a chunk or a day; what has no parts is one part without a range."""

    name: str
    part: str | None
    range_start: datetime | None
    range_end: datetime | None
    compressed: bool
    rows_estimated: int | None
    bytes: int | None
    bytes_before: int | None


class Due(msgspec.Struct, frozen=True, rename="camel"):
    """A part, and the instant from which on the next run of a policy drops or compresses it."""

    part: StoragePart
    at: datetime


class Policy(msgspec.Struct, frozen=True, rename="camel"):
    """A policy in words, as the file and as the database have it, with the last and the next run of its job."""

    kind: Kind
    desired: str | None
    live: str | None
    last_run: datetime | None = None
    last_status: str | None = None
    next_run: datetime | None = None
    last_error: str | None = None


class Stored(msgspec.Struct, frozen=True, rename="camel"):
    """A table or an aggregate: its size, its policies, and what is dropped next.

    `compressed_share` is that of its parts, and `compression_ratio` the size of these before by that after. `oldest`
    and `newest` are the bounds of its parts.
    """

    name: str
    rows_estimated: int
    bytes: int
    parts: int
    compressed_parts: int
    compressed_share: float | None
    compression_ratio: float | None
    oldest: datetime | None
    newest: datetime | None
    policies: list[Policy]
    dropped_next: Due | None


class Storage(msgspec.Struct, frozen=True, rename="camel"):
    """All that is stored, at the instant `at` of the database's clock; the notes say what its engine lacks."""

    engine: str
    at: datetime
    bytes: int
    tables: list[Stored]
    notes: list[str]


def fetch_storage(connection: Connection, policies: Policies) -> Storage:
    """Reads what is stored and compares its policies with those of the file. It changes nothing."""
    engine, at, size = connection.execute(_DATABASE).one()
    desired, live = desired_state(policies, engine), live_state(connection, engine)
    jobs = {(_KINDS[job.work], job.target): job for job in connection.execute(_JOBS)}
    of_table: dict[str, list[Policy]] = defaultdict(list)
    for key in sorted(desired.keys() | live.keys(), key=lambda key: _KIND_ORDER.index(key[0])):
        job = jobs.get(key)
        run = (job.last_start, job.last_status, job.next_start, job.last_error) if job else ()
        of_table[key[1]].append(Policy(key[0], _said(desired, key), _said(live, key), *run))
    parts: dict[str, list[StoragePart]] = defaultdict(list)
    for part in fetch_parts(connection):
        parts[part.name].append(part)
    tables = [_stored(name, parts[name], of_table[name], live) for name in sorted(parts, key=_ORDER.index)]
    return Storage(engine, at, size, tables, notes_on(engine))


def fetch_parts(connection: Connection) -> list[StoragePart]:
    """Reads all parts, the oldest of each table first."""
    return [StoragePart(*row) for row in connection.execute(_PARTS)]


def due(change: Change, parts: Iterable[StoragePart]) -> list[Due]:
    """Returns the parts that the changed policy drops or compresses, each with its instant, the first one first."""
    age = age_of(change.desired[0]) if change.desired else None
    if age is None or change.kind not in ("retention", "columnstore"):
        return []
    own = [part for part in parts if part.name == change.name]
    return _due(own, age, compress=change.kind == "columnstore")


def _due(parts: list[StoragePart], age: timedelta, *, compress: bool) -> list[Due]:
    """A part counts from its end: it is dropped or compressed as a whole, once its newest row is old enough."""
    found = [Due(part, part.range_end + age) for part in parts if part.range_end and not (compress and part.compressed)]
    return sorted(found, key=lambda each: each.at)


def _said(state: State, key: tuple[Kind, str]) -> str | None:
    return " and ".join(map(words_in_full, state[key])) if key in state else None


def _stored(name: str, parts: list[StoragePart], policies: list[Policy], live: State) -> Stored:
    ranges = [part for part in parts if part.range_start]
    compressed = [part for part in parts if part.compressed]
    before, after = (sum(getattr(part, size) or 0 for part in compressed) for size in ("bytes_before", "bytes"))
    retention = [rule for rule in live.get(("retention", name), []) if not is_paused(rule)]
    age = next(iter(map(age_of, retention)), None)
    return Stored(
        name,
        sum(part.rows_estimated or 0 for part in parts),
        sum(part.bytes or 0 for part in parts),
        len(ranges),
        len(compressed),
        len(compressed) / len(ranges) if ranges else None,
        before / after if before and after else None,
        min((part.range_start for part in ranges if part.range_start), default=None),
        max((part.range_end for part in ranges if part.range_end), default=None),
        policies,
        next(iter(_due(ranges, age, compress=False)), None) if age else None,
    )


_ORDER = (*get_args(Readings), *get_args(Aggregate), *get_args(Table))
_KIND_ORDER = get_args(Kind)
_KINDS: dict[str, Kind] = {"refresh": "refresh", "compress": "columnstore", "drop old": "retention"}
_DATABASE = text("SELECT engine, clock_timestamp(), pg_database_size(current_database()) FROM installation")
_PARTS = text("""
    SELECT name, part, range_start, range_end, compressed, rows_estimated, bytes, bytes_before
    FROM storage_parts()
    ORDER BY name, range_start
""")
_JOBS = text("""
    SELECT work, target, last_start, last_status, CASE WHEN NOT paused THEN next_start END AS next_start, last_error
    FROM background_jobs()
""")
