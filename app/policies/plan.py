"""The plan: the differences between the desired and the live state in words, and the statements that remove them."""

from datetime import timedelta
from typing import Any, get_args

import msgspec
from sqlalchemy import Connection, text

from app.policies.desired import Aggregate, Policies, Table
from app.policies.live import Kind, RefreshRule, Rule, State, desired_state, live_state, relation_of


class Change(msgspec.Struct, frozen=True):
    """One policy that is to change: a sentence for the operator, and the statements with their parameters.

    `desired` and `live` are its rules afterwards and before; without one, the database has no such policy.
    """

    kind: Kind
    name: str
    desired: list[Rule]
    live: list[Rule]
    words: str
    statements: tuple[str, ...]
    parameters: dict[str, Any]


class Plan(msgspec.Struct, frozen=True):
    """The changes, none when the database agrees with the file, and notes on policies that its engine lacks."""

    changes: list[Change]
    notes: list[str]


def plan_policies(connection: Connection, policies: Policies) -> Plan:
    """Compares the policies with the database, which it only reads, so that no job is disturbed."""
    engine = connection.scalars(text("SELECT engine FROM installation")).one()
    changes = compare(desired_state(policies, engine), live_state(connection, engine), engine)
    return Plan(changes, _PLAIN_NOTES if engine == "plain" else [])


def compare(desired: State, live: State, engine: str) -> list[Change]:
    """Returns a change for each policy that differs; one that does not is left alone, with its history."""
    # Refreshes are 5 s apart, lower levels first: each finds the level below it done, and no two start together.
    start_second = {name: 5 * position for position, name in enumerate(get_args(Aggregate))}
    changed = [key for key in desired if live.get(key, []) != desired[key]]
    ended = [key for key in live if key not in desired and key[0] != "chunk_interval"]
    return [
        Change(
            *key,
            desired.get(key, []),
            live.get(key, []),
            _sentence(*key, desired.get(key, []), live.get(key, [])),
            _statements(engine, *key, ends=key in ended),
            _parameters(key[1], desired.get(key, [])) | {"start_second": start_second.get(key[1])},
        )
        for key in changed + ended
    ]


def loses_nothing(change: Change) -> bool:
    """Whether `wattline migrate` may make the change: no row is dropped or compressed earlier, and no policy ends.

    Nor is anything refreshed further back. A retention that counts from something else than a reading's time cannot be
    compared, and neither can such a columnstore policy: each is left to who reads the plan.
    """
    if not change.desired:
        return False
    match change.kind:
        case "chunk_interval":
            return True
        case "refresh":
            wanted, rules = change.desired[0], [rule for rule in change.live if isinstance(rule, RefreshRule)]
            return not rules or any(_reaches_back(rule, wanted) for rule in rules)
        case "columnstore" if not change.live:
            return True
    ages = [rule for rule in change.live if isinstance(rule, timedelta)]
    return bool(ages) and isinstance(change.desired[0], timedelta) and change.desired[0] >= min(ages)


def drops(change: Change) -> bool:
    """Whether rows may be dropped for the change that would have been kept without it."""
    return change.kind == "retention" and bool(change.desired) and not loses_nothing(change)


def _reaches_back(rule: RefreshRule, wanted: Rule) -> bool:
    """Whether the rule covers the start of the wanted one."""
    start = wanted.start if isinstance(wanted, RefreshRule) else None
    return rule.start is None or (start is not None and start <= rule.start)


def _parameters(name: str, rules: list[Rule]) -> dict[str, Any]:
    values = {"name": name, "relation": relation_of(name)}
    match rules:
        case [RefreshRule() as rule]:
            return values | msgspec.structs.asdict(rule)
        case [interval]:
            return values | {"interval": interval}
        case _:
            return values


def _statements(engine: str, kind: Kind, name: str, *, ends: bool) -> tuple[str, ...]:
    in_table = engine == "plain" or name in get_args(Table)
    remove, put = _RETENTION_STATEMENTS if in_table else _TIMESCALE_STATEMENTS[kind]
    return tuple(filter(None, (remove, "" if ends else put)))


def _sentence(kind: Kind, name: str, desired: list[Rule], live: list[Rule]) -> str:
    """Returns a sentence such as `keep meter_hour for 1095 days (was 30 days)`."""
    said, never = _SENTENCES[kind]
    was = " and ".join(map(words, live))
    return (said.format(name, words(desired[0])) if desired else never.format(name)) + (f" (was {was})" if was else "")


def words(rule: Rule) -> str:
    """Returns the interval in its largest whole unit, such as `8 days`; a refresh in full."""
    match rule:
        case None:
            return "another rule"
        case RefreshRule(every, start, end, buckets):
            first = "over all there is" if start is None else f"over the last {words(start)}"
            last = "up to the newest reading" if end is None else f"up to {words(end)} ago"
            # TimescaleDB's own default is 10, and it takes 0 for all.
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

# The statement that removes a policy, and the one that sets another; chunks always have a policy.
_RETENTION_STATEMENTS = (
    "DELETE FROM retention WHERE name = :name",
    "INSERT INTO retention (name, drop_after) VALUES (:name, :interval)",
)
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
    # A job of our own, and none of TimescaleDB's: cagg_refresh() leaves out what was dropped. A job that failed is
    # otherwise tried again after 5 minutes.
    "refresh": (
        """
        SELECT delete_job(job_id)
        FROM timescaledb_information.jobs
        WHERE (proc_name = 'cagg_refresh' AND config ->> 'aggregate' = :name)
            OR (proc_name = 'policy_refresh_continuous_aggregate' AND hypertable_name = :relation)
        """,
        """
        SELECT alter_job(
            job_id, retry_period => CAST(:every AS interval), job_name => 'Refresh ' || CAST(:name AS text))
        FROM add_job(
            'cagg_refresh',
            CAST(:every AS interval),
            config => jsonb_build_object(
                'aggregate', CAST(:name AS text), 'start_offset', CAST(:start AS interval),
                'end_offset', CAST(:end AS interval), 'buckets_per_batch', CAST(:buckets_per_batch AS integer)),
            initial_start => date_trunc('minute', now()) + make_interval(mins => 1, secs => :start_second)) AS job_id
        """,
    ),
}
