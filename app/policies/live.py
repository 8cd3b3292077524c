"""The live state: the policies that the database has. Nothing here changes them."""

from collections import defaultdict
from datetime import timedelta
from typing import Literal, cast, get_args

import msgspec
from sqlalchemy import Connection, text

from app.policies.desired import Aggregate, Policies, Readings, span


class RefreshRule(msgspec.Struct, frozen=True):
    """The schedule of a continuous aggregate's refresh, and its range of buckets. A bound that is None is open."""

    every: timedelta
    start: timedelta | None
    end: timedelta | None
    buckets_per_batch: int | None


Kind = Literal["chunk_interval", "columnstore", "retention", "refresh"]
Rule = timedelta | RefreshRule | None
"""The content of a policy; None when it counts from something other than a reading's time."""

State = dict[tuple[Kind, str], list[Rule]]
"""Every policy, by its kind and the name of the table or aggregate. TimescaleDB allows several of a kind."""


def desired_state(policies: Policies, engine: str) -> State:
    """Returns the desired state in the terms of the live one, without what the engine does not have."""
    if engine == "plain":
        # A device's minutes are computed from its readings and go with them.
        computed = ("meter_minute", "vehicle_minute")
        return {("retention", name): [span(age)] for name, age in policies.retention.items() if name not in computed}
    state: State = {("chunk_interval", name): [span(width)] for name, width in policies.chunk_interval.items()}
    for name, refresh in policies.refresh.items():
        bounds = span(refresh.start_offset), span(refresh.end_offset)
        state["refresh", name] = [RefreshRule(span(refresh.schedule_interval), *bounds, refresh.buckets_per_batch)]
    state |= {("columnstore", name): [span(age)] for name, age in policies.columnstore_after.items()}
    return state | {("retention", name): [span(age)] for name, age in policies.retention.items()}


def live_state(connection: Connection, engine: str) -> State:
    """Returns the policies that the database has."""
    of_jobs = {} if engine == "plain" else _state_of_jobs(connection)
    rows = connection.execute(text("SELECT name, drop_after FROM retention"))
    return of_jobs | {("retention", name): [drop_after] for name, drop_after in rows}


def relation_of(name: str) -> str:
    """Returns the hypertable or continuous aggregate of that name."""
    return name if name.endswith("_reading") else f"{name}_cagg"


def _state_of_jobs(connection: Connection) -> State:
    state: State = defaultdict(list)
    for kind, relation, interval, start, end, batch in connection.execute(_POLICIES, {"ours": list(_NAMES)}):
        if kind == "other refresh":
            state["refresh", _NAMES[relation]].append(None)
        else:
            rule = RefreshRule(interval, start, end, batch) if kind == "refresh" else interval
            state[cast("Kind", kind), _NAMES[relation]].append(rule)
    return dict(state)


# The database may hold other people's hypertables, whose policies are not ours.
_NAMES = {relation_of(name): name for name in (*get_args(Readings), *get_args(Aggregate))}

# Width of chunks, and the jobs: the columnstore policy's still bear the name of its predecessor. A refresh policy of
# TimescaleDB's own is not ours, and would erase what was dropped: beside our job, it counts as another rule.
_POLICIES = text("""
    SELECT 'chunk_interval', hypertable_name, time_interval, NULL::interval, NULL::interval, NULL::integer
    FROM timescaledb_information.dimensions
    WHERE dimension_number = 1 AND hypertable_name IN ('meter_reading', 'vehicle_reading')
    UNION ALL
    SELECT CASE proc_name
               WHEN 'policy_compression' THEN 'columnstore' WHEN 'policy_retention' THEN 'retention'
               WHEN 'cagg_refresh' THEN 'refresh' ELSE 'other refresh'
           END,
           coalesce(hypertable_name, config ->> 'aggregate' || '_cagg'),
           CASE proc_name
               WHEN 'policy_compression' THEN (config ->> 'compress_after')::interval
               WHEN 'policy_retention' THEN (config ->> 'drop_after')::interval
               ELSE schedule_interval
           END,
           (config ->> 'start_offset')::interval,
           (config ->> 'end_offset')::interval,
           (config ->> 'buckets_per_batch')::integer
    FROM timescaledb_information.jobs
    WHERE proc_name = 'cagg_refresh'
        OR (proc_name IN ('policy_compression', 'policy_retention', 'policy_refresh_continuous_aggregate')
            AND hypertable_name = ANY (:ours))
""")
