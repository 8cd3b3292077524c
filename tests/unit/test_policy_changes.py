"""Which changes of policies `wattline migrate` makes, and which are left for `wattline policy apply`."""

from datetime import timedelta

import pytest

from app.policies.live import Kind, RefreshRule, Rule
from app.policies.plan import compare, drops, loses_nothing


def days(count: int) -> timedelta:
    return timedelta(days=count)


def refresh(start: timedelta | None, every_seconds: int = 60) -> RefreshRule:
    return RefreshRule(timedelta(seconds=every_seconds), start, timedelta(minutes=1), 0)


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
    "a columnstore policy is added": ("columnstore", [], [days(10)], True, False),
    "a columnstore policy ends": ("columnstore", [days(10)], [], False, False),
    "chunks are compressed later": ("columnstore", [days(10)], [days(11)], True, False),
    "chunks are compressed earlier": ("columnstore", [days(10)], [days(9)], False, False),
    "a foreign columnstore policy is replaced": ("columnstore", [None], [days(10)], False, False),
    "a retention is added": ("retention", [], [days(30)], False, True),
    "a retention ends": ("retention", [days(30)], [], False, False),
    "a retention is lengthened": ("retention", [days(30)], [days(31)], True, False),
    "a retention is shortened": ("retention", [days(30)], [days(29)], False, True),
    "the shorter of two retentions is lengthened": ("retention", [days(9), days(31)], [days(30)], True, False),
    "a foreign retention is replaced": ("retention", [None], [days(30)], False, True),
    "chunks become wider": ("chunk_interval", [days(1)], [days(7)], True, False),
}


@pytest.mark.parametrize("what", CHANGES)
def test_migrate_makes_what_loses_nothing(what: str) -> None:
    kind, live, desired, migrates, may_drop = CHANGES[what]
    key = (kind, "meter_minute")
    (change,) = compare({key: desired} if desired else {}, {key: live} if live else {}, "timescale")
    assert (loses_nothing(change), drops(change)) == (migrates, may_drop)
