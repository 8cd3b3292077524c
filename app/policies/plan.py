"""The plan: the differences between the desired and the live state in words, and the statements that remove them."""

from datetime import timedelta
from typing import Any, get_args

import msgspec
from sqlalchemy import Connection, text

from app.policies.desired import Aggregate, Policies, Table
from app.policies.desired import Refresh as RefreshInFile
from app.policies.invariants import violations
from app.policies.live import (
    COMPUTED_ON_PLAIN,
    Columnstore,
    Job,
    Kind,
    Refresh,
    Retention,
    Rule,
    State,
    desired_state,
    live_state,
    relation_of,
)
from app.policies.words import details, interval_words, words


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
    """The changes, none when the database agrees with the file, and notes on policies that its engine lacks.

    `kept` says how long each table or aggregate is kept afterwards; one that is not named is kept for good. `broken`
    has a clause for each rule of the invariants that the live policies break, and the file does not.
    """

    changes: list[Change]
    notes: list[str]
    kept: dict[str, str]
    broken: list[str] = []


def plan_policies(connection: Connection, policies: Policies) -> Plan:
    """Compares the policies with the database, which it only reads, so that no job is disturbed."""
    engine = connection.scalars(text("SELECT engine FROM installation")).one()
    desired, live = desired_state(policies, engine), live_state(connection, engine)
    changes = compare(desired, live, engine)
    broken = [] if engine == "plain" else list(violations(_as_file(live)))
    return Plan(changes, notes_on(engine), kept(desired, engine), broken)


def notes_on(engine: str) -> list[str]:
    """Returns a sentence for each policy that the engine lacks."""
    return _PLAIN_NOTES if engine == "plain" else []


def _as_file(state: State) -> Policies:
    """Returns the policies in the form of the file, in whole seconds, without those that it cannot express."""

    def said(length: timedelta) -> str:
        return interval_words(length // _SECOND * _SECOND)

    ages: dict[Kind, dict[Any, str]] = {"chunk_interval": {}, "columnstore": {}, "retention": {}}
    refresh: dict[Any, RefreshInFile] = {}
    for (kind, name), rules in state.items():
        for rule in rules:
            if isinstance(rule, Refresh) and rule.start is not None and rule.end is not None:
                start, end, every = map(said, (rule.start, rule.end, rule.every))
                refresh[name] = RefreshInFile(start, end, every, rule.buckets_per_batch or 0)
            elif (age := age_of(rule)) is not None:
                ages[kind][name] = said(age)
    return Policies(ages["chunk_interval"], ages["columnstore"], ages["retention"], refresh)


def kept(state: State, engine: str) -> dict[str, str]:
    """Returns how long each table or aggregate with a retention is kept, in words."""
    found = {name: words(rules[0]) for (kind, name), rules in state.items() if kind == "retention"}
    return found | (dict.fromkeys(COMPUTED_ON_PLAIN, "as long as its readings") if engine == "plain" else {})


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
    wanted = change.desired[0]
    match change.kind:
        case "chunk_interval":
            return True
        case "refresh":
            rules = [rule for rule in change.live if isinstance(rule, Refresh)]
            return not rules or any(_reaches_back(rule, wanted) for rule in rules)
        case "columnstore" if not change.live:
            return True
    ages = [age for rule in change.live if (age := age_of(rule)) is not None and not is_paused(rule)]
    new_age = age_of(wanted)
    return bool(ages) and new_age is not None and new_age >= min(ages)


def drops(change: Change) -> bool:
    """Whether rows may be dropped for the change that would have been kept without it."""
    return change.kind == "retention" and bool(change.desired) and not loses_nothing(change)


def age_of(rule: Rule) -> timedelta | None:
    """Returns the age at which rows are dropped or compressed; None for another rule."""
    match rule:
        case Retention() | Columnstore():
            return rule.age
        case timedelta():
            return rule
        case _:
            return None


def is_paused(rule: Rule) -> bool:
    """Whether the rule's job is there, but does not run."""
    return isinstance(rule, Job) and rule.paused


def _reaches_back(rule: Refresh, wanted: Rule) -> bool:
    """Whether the rule covers the start of the wanted one."""
    start = wanted.start if isinstance(wanted, Refresh) else None
    return rule.start is None or (start is not None and start <= rule.start)


def _parameters(name: str, rules: list[Rule]) -> dict[str, Any]:
    values: dict[str, Any] = {"name": name, "relation": relation_of(name)}
    match rules:
        case [Job() as rule]:
            return values | msgspec.structs.asdict(rule)
        case [interval]:
            return values | {"age": interval}
        case _:
            return values


def _statements(engine: str, kind: Kind, name: str, *, ends: bool) -> tuple[str, ...]:
    if engine == "plain" or name in get_args(Table):
        remove, *put = _TABLE_STATEMENTS
    else:
        remove, *put = _TIMESCALE_STATEMENTS[kind]
    return tuple(filter(None, [remove] if ends else [remove, *put]))


def _sentence(kind: Kind, name: str, desired: list[Rule], live: list[Rule]) -> str:
    """Returns a sentence such as `keep meter_hour for 1095 days (was 30 days)`."""
    said, never = _SENTENCES[kind]
    of_desired = details(desired[0]) if desired else {}
    differing = [key for key, text in of_desired.items() if any(details(rule).get(key, text) != text for rule in live)]
    was = " and ".join(words(rule, differing) for rule in live)
    now = said.format(name, words(desired[0], differing)) if desired else never.format(name)
    return f"{now} (was {was})" if was else now


_SENTENCES = {
    "chunk_interval": ("cut {} into chunks of {}", ""),
    "columnstore": ("compress {} after {}", "never compress {}"),
    "retention": ("keep {} for {}", "keep {} for good"),
    "refresh": ("refresh {} {}", "refresh {} no more"),
}

_SECOND = timedelta(seconds=1)
_PLAIN_NOTES = [
    "Nothing is compressed: plain PostgreSQL has no columnstore.",
    "Nothing is refreshed: aggregates are computed from the readings when asked.",
]

# The statement that removes a policy, and those that set another; chunks always have a policy.
_TABLE_STATEMENTS = (
    "DELETE FROM retention WHERE name = :name",
    "INSERT INTO retention (name, drop_after) VALUES (:name, :age)",
)
# A policy's job begins with TimescaleDB's defaults; this sets the rest.
_SET_JOB = """
    SELECT alter_job(
        job_id, max_runtime => CAST(:max_runtime AS interval), scheduled => NOT :paused,
        config => config || coalesce(CAST(:config AS jsonb), '{{}}'))
    FROM timescaledb_information.jobs
    WHERE proc_name = '{}' AND coalesce(config ->> 'aggregate', hypertable_name) IN (:name, :relation)
"""
_TIMESCALE_STATEMENTS = {
    "chunk_interval": (
        "",
        "SELECT set_chunk_time_interval(CAST(:relation AS regclass), CAST(:age AS interval))",
    ),
    "columnstore": (
        "CALL remove_columnstore_policy(CAST(:relation AS regclass), if_exists => true)",
        "CALL cagg_set_columnstore(CAST(:relation AS regclass), CAST(:segmentby AS text), CAST(:orderby AS text))",
        """
        CALL add_columnstore_policy(
            CAST(:relation AS regclass), after => CAST(:age AS interval), schedule_interval => CAST(:every AS interval))
        """,
        _SET_JOB.format("policy_compression"),
    ),
    "retention": (
        "SELECT remove_retention_policy(CAST(:relation AS regclass), if_exists => true)",
        """
        SELECT add_retention_policy(
            CAST(:relation AS regclass), drop_after => CAST(:age AS interval),
            schedule_interval => CAST(:every AS interval))
        """,
        _SET_JOB.format("policy_retention"),
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
        "CALL cagg_set_materialized_only(CAST(:relation AS regclass), :materialized_only)",
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
        _SET_JOB.format("cagg_refresh"),
    ),
}
