"""Which changes of policies `wattline migrate` makes, and which are left for `wattline policy apply`."""

from datetime import timedelta

import pytest

from app.policies.live import Columnstore, Kind, Refresh, Retention, Rule
from app.policies.plan import compare, drops, loses_nothing


def days(count: int) -> timedelta:
    return timedelta(days=count)


def refresh(start: timedelta | None, every_seconds: int = 60, *, paused: bool = False) -> Refresh:
    every, end = timedelta(seconds=every_seconds), timedelta(minutes=1)
    return Refresh(every=every, start=start, end=end, buckets_per_batch=0, materialized_only=False, paused=paused)


def keep(age: int, *, paused: bool = False) -> Retention:
    return Retention(every=days(1), age=days(age), paused=paused)


def compress(age: int, every: int = 1, segmentby: str = "meter_id") -> Columnstore:
    return Columnstore(every=days(every), age=days(age), segmentby=segmentby, orderby="bucket")


# The kind of the policy, its rules in the database and in the file; whether migrate makes the change, and may rows go.
CHANGES: dict[str, tuple[Kind, list[Rule], list[Rule], bool, bool]] = {
    "a refresh is added": ("refresh", [], [refresh(days(8))], True, False),
    "a refresh ends": ("refresh", [refresh(days(8))], [], False, False),
    "a start_offset is lengthened": ("refresh", [refresh(days(8))], [refresh(days(9))], False, False),
    "a start_offset is shortened": ("refresh", [refresh(days(9))], [refresh(days(8))], True, False),
    "an open start_offset gets an end": ("refresh", [refresh(None)], [refresh(days(8))], True, False),
    "a schedule changes": ("refresh", [refresh(days(8), 30)], [refresh(days(8))], True, False),
    "a foreign refresh is replaced": ("refresh", [None], [refresh(days(8))], True, False),
    "a foreign refresh beside ours ends": ("refresh", [refresh(days(8)), None], [refresh(days(8))], True, False),
    "a paused refresh runs again": ("refresh", [refresh(days(8), paused=True)], [refresh(days(8))], True, False),
    "a columnstore policy is added": ("columnstore", [], [compress(10)], True, False),
    "a columnstore policy ends": ("columnstore", [compress(10)], [], False, False),
    "chunks are compressed later": ("columnstore", [compress(10)], [compress(11)], True, False),
    "chunks are compressed earlier": ("columnstore", [compress(10)], [compress(9)], False, False),
    "chunks are laid out otherwise": ("columnstore", [compress(10, 1, "bucket")], [compress(10)], True, False),
    "a foreign columnstore policy is replaced": ("columnstore", [None], [compress(10)], False, False),
    "a retention is added": ("retention", [], [keep(30)], False, True),
    "a retention ends": ("retention", [keep(30)], [], False, False),
    "a retention is lengthened": ("retention", [keep(30)], [keep(31)], True, False),
    "a retention is shortened": ("retention", [keep(30)], [keep(29)], False, True),
    "a paused retention runs again": ("retention", [keep(30, paused=True)], [keep(30)], False, True),
    "the shorter of two retentions is lengthened": ("retention", [keep(9), keep(31)], [keep(30)], True, False),
    "a foreign retention is replaced": ("retention", [None], [keep(30)], False, True),
    "a table's retention is shortened": ("retention", [days(30)], [days(29)], False, True),
    "chunks become wider": ("chunk_interval", [days(1)], [days(7)], True, False),
}


@pytest.mark.parametrize("what", CHANGES)
def test_migrate_makes_what_loses_nothing(what: str) -> None:
    kind, live, desired, migrates, may_drop = CHANGES[what]
    key = (kind, "meter_minute")
    (change,) = compare({key: desired} if desired else {}, {key: live} if live else {}, "timescale")
    assert (loses_nothing(change), drops(change)) == (migrates, may_drop)
