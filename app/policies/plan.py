"""The plan: what differs between the desired and the live state, in words, and the statements that end it."""

from datetime import timedelta
from typing import Any

import msgspec
from sqlalchemy import Connection, text

from app.policies.desired import Policies
from app.policies.live import Kind, RefreshRule, Rule, State, live_state, relation_of, wanted_state


class Change(msgspec.Struct, frozen=True):
    """One policy that is to change: a sentence for the operator, and the statements with their parameters."""

    words: str
    statements: tuple[str, ...]
    parameters: dict[str, Any]


class Plan(msgspec.Struct, frozen=True):
    """The changes, none when the database does what the file says; and what its engine has no policies for."""

    changes: list[Change]
    notes: list[str]


def plan_policies(connection: Connection, policies: Policies) -> Plan:
    """Compares the policies with the database. Reads only, so that no job is disturbed."""
    engine = connection.scalars(text("SELECT engine FROM installation")).one()
    changes = compare(wanted_state(policies, engine), live_state(connection, engine), engine)
    return Plan(changes, _PLAIN_NOTES if engine == "plain" else [])


def compare(wanted: State, live: State, engine: str) -> list[Change]:
    """A change for each policy that is not as wanted; what fits is left alone, with its history."""
    # Five seconds apart, lower levels first: each refresh finds the level below it done, and no two start together.
    refreshed = [name for kind, name in wanted if kind == "refresh"]
    start_second = {name: 5 * position for position, name in enumerate(refreshed)}
    changed = [key for key in wanted if live.get(key, []) != wanted[key]]
    ended = [key for key in live if key not in wanted and key[0] != "chunk_interval"]
    return [
        Change(
            _sentence(*key, wanted.get(key, []), live.get(key, [])),
            _statements(engine, key[0], ends=key in ended),
            _parameters(key[1], wanted.get(key, [])) | {"start_second": start_second.get(key[1])},
        )
        for key in changed + ended
    ]


def _parameters(name: str, rules: list[Rule]) -> dict[str, Any]:
    values = {"name": name, "relation": relation_of(name)}
    match rules:
        case [RefreshRule() as rule]:
            return values | msgspec.structs.asdict(rule)
        case [interval]:
            return values | {"interval": interval}
        case _:
            return values


def _statements(engine: str, kind: Kind, *, ends: bool) -> tuple[str, ...]:
    remove, put = (_PLAIN_STATEMENTS if engine == "plain" else _TIMESCALE_STATEMENTS)[kind]
    return tuple(filter(None, (remove, "" if ends else put)))


def _sentence(kind: Kind, name: str, wanted: list[Rule], live: list[Rule]) -> str:
    """`keep meter_hour for 1095 days (was 30 days)`."""
    said, never = _SENTENCES[kind]
    was = " and ".join(map(words, live))
    return (said.format(name, words(wanted[0])) if wanted else never.format(name)) + (f" (was {was})" if was else "")


def words(rule: Rule) -> str:
    """An interval in its largest whole unit, `8 days`; of a refresh, all that it says."""
    match rule:
        case None:
            return "another rule"
        case RefreshRule(every, start, end, buckets):
            first = "over all there is" if start is None else f"over the last {words(start)}"
            last = "up to the newest reading" if end is None else f"up to {words(end)} ago"
            # What TimescaleDB takes none and 0 for.
            batch = {None: "10", 0: "all"}.get(buckets, buckets)
            return f"each {words(every)}, {first}, {last}, {batch} buckets at a time"
    for unit, name in _UNITS:
        if rule and rule % unit == timedelta():
            return f"{rule // unit} {name}{'' if rule == unit else 's'}"
    return str(rule)


_UNITS = [
    (timedelta(days=1), "day"),
    (timedelta(hours=1), "hour"),
    (timedelta(minutes=1), "minute"),
    (timedelta(seconds=1), "second"),
]

_SENTENCES = {
    "chunk_interval": ("cut {} into chunks of {}", ""),
    "columnstore": ("compress {} after {}", "never compress {}"),
    "retention": ("keep {} for {}", "keep {} for good"),
    "refresh": ("refresh {} {}", "refresh {} no more"),
}

_PLAIN_NOTES = [
    "Nothing is compressed: plain PostgreSQL has no columnstore.",
    "Nothing is refreshed: aggregates are computed from the readings when asked.",
]

# Of each kind, the statement that removes a policy, and the one that puts another in its place; chunks have one always.
_PLAIN_STATEMENTS = {
    "retention": (
        "DELETE FROM retention WHERE name = :name",
        "INSERT INTO retention (name, drop_after) VALUES (:name, :interval)",
    ),
}
_TIMESCALE_STATEMENTS = {
    "chunk_interval": (
        "",
        "SELECT set_chunk_time_interval(CAST(:relation AS regclass), CAST(:interval AS interval))",
    ),
    "columnstore": (
        "CALL remove_columnstore_policy(CAST(:relation AS regclass), if_exists => true)",
        "CALL add_columnstore_policy(CAST(:relation AS regclass), after => CAST(:interval AS interval))",
    ),
    "retention": (
        "SELECT remove_retention_policy(CAST(:relation AS regclass), if_exists => true)",
        "SELECT add_retention_policy(CAST(:relation AS regclass), drop_after => CAST(:interval AS interval))",
    ),
    "refresh": (
        "SELECT remove_continuous_aggregate_policy(CAST(:relation AS regclass), if_exists => true)",
        """
        SELECT add_continuous_aggregate_policy(
            CAST(:relation AS regclass),
            start_offset => CAST(:start AS interval),
            end_offset => CAST(:end AS interval),
            schedule_interval => CAST(:every AS interval),
            buckets_per_batch => :buckets_per_batch,
            initial_start => date_trunc('minute', now()) + make_interval(mins => 1, secs => :start_second))
        """,
    ),
}
