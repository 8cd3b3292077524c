"""The live state: the policies that the database has. Nothing here changes them."""

from collections import defaultdict
from datetime import timedelta
from typing import Any, Literal, get_args

import msgspec
from sqlalchemy import Connection, text

from app.policies.desired import Aggregate, Policies, Readings, span


class Job(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The properties that each background job has.

    `owner` is None when the table's owner owns the job; `config` holds the entries that Wattline never sets, as JSON.
    """

    every: timedelta
    max_runtime: timedelta = timedelta()
    paused: bool = False
    owner: str | None = None
    config: str | None = None


class Retention(Job, frozen=True, kw_only=True, tag=True):
    """Chunks are dropped when their end is older than `age`."""

    age: timedelta


class Columnstore(Job, frozen=True, kw_only=True, tag=True):
    """Chunks are compressed when their end is older than `age`, in segments of equal `segmentby`."""

    age: timedelta
    segmentby: str | None
    orderby: str | None


class Refresh(Job, frozen=True, kw_only=True, tag=True):
    """The refresh of a continuous aggregate, and its range of buckets. A bound that is None is open.

    An aggregate that is materialised only does not answer what is newer than its last refresh.
    """

    start: timedelta | None
    end: timedelta | None
    buckets_per_batch: int | None
    materialized_only: bool


Kind = Literal["chunk_interval", "refresh", "columnstore", "retention"]
Rule = timedelta | Retention | Columnstore | Refresh | None
"""The content of a policy: an age or a width where no job has it; None for a rule that the file cannot express."""

State = dict[tuple[Kind, str], list[Rule]]
"""Every policy, by its kind and the name of the table or aggregate. TimescaleDB allows several of a kind."""


def desired_state(policies: Policies, engine: str) -> State:
    """Returns the desired state in the terms of the live one, without what the engine does not have."""
    retention = {str(name): span(age) for name, age in policies.retention.items()}
    if engine == "plain":
        # A device's minutes are computed from its readings and go with them.
        return {("retention", name): [age] for name, age in retention.items() if name not in COMPUTED_ON_PLAIN}
    state: State = {("chunk_interval", name): [span(width)] for name, width in policies.chunk_interval.items()}
    for aggregate, refresh in policies.refresh.items():
        state["refresh", aggregate] = [
            Refresh(
                every=span(refresh.schedule_interval),
                start=span(refresh.start_offset),
                end=span(refresh.end_offset),
                buckets_per_batch=refresh.buckets_per_batch,
                # fleet_minute() and fleet_hour() add what is newer themselves.
                materialized_only=aggregate.startswith("fleet_"),
            )
        ]
    for stored, after in policies.columnstore_after.items():
        segmentby, orderby = _layout(stored)
        rule = Columnstore(every=_COLUMNSTORE_EVERY, age=span(after), segmentby=segmentby, orderby=orderby)
        state["columnstore", stored] = [rule]
    for kept, age in retention.items():
        job = Retention(every=_RETENTION_EVERY, max_runtime=_RETENTION_RUNTIME, age=age)
        state["retention", kept] = [job if kept in _NAMES.values() else age]
    return state


def _layout(name: str) -> tuple[str | None, str]:
    """Returns segmentby and orderby.

    Together they are the unique key of the readings, so that TimescaleDB finds one that was sent again in its batch
    without decompressing others. Old buckets are read as the series of one device.
    """
    order = "ts DESC" if name in get_args(Readings) else "bucket,meter_id" if name == "vehicle_minute" else "bucket"
    return None if name.startswith("fleet_") else f"{name.partition('_')[0]}_id", order


COMPUTED_ON_PLAIN = "meter_minute", "vehicle_minute"
# The columnstore and retention jobs have TimescaleDB's defaults.
_COLUMNSTORE_EVERY, _RETENTION_EVERY, _RETENTION_RUNTIME = timedelta(hours=12), timedelta(days=1), timedelta(minutes=5)


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
    for name, width in connection.execute(_CHUNKS):
        state["chunk_interval", name].append(width)
    for row in connection.execute(_JOBS, {"ours": list(_NAMES)}).mappings():
        kind, rule = _rule_of_job(row)
        state[kind, _NAMES[row["relation"]]].append(rule)
    return dict(state)


def _rule_of_job(row: Any) -> tuple[Kind, Rule]:
    job = {key: row[key] for key in Job.__struct_fields__}
    match row["proc_name"]:
        case "cagg_refresh":
            bounds = {key: row[key] for key in ("start", "end", "buckets_per_batch", "materialized_only")}
            return "refresh", Refresh(**job, **bounds)
        case "policy_retention":
            return "retention", None if row["age"] is None else Retention(**job, age=row["age"])
        case "policy_compression":
            layout = {key: row[key] for key in ("age", "segmentby", "orderby")}
            return "columnstore", None if row["age"] is None else Columnstore(**job, **layout)
        case _:
            # A refresh policy of TimescaleDB's own.
            return "refresh", None


# The database may hold other people's hypertables, whose policies are not ours.
_NAMES = {relation_of(name): str(name) for name in (*get_args(Readings), *get_args(Aggregate))}

_CHUNKS = text("""
    SELECT hypertable_name, time_interval
    FROM timescaledb_information.dimensions
    WHERE dimension_number = 1 AND hypertable_name IN ('meter_reading', 'vehicle_reading')
""")

# The columnstore policy's job still bears the name of its predecessor.
_JOBS = text("""
    SELECT proc_name,
           relation,
           job.schedule_interval AS every,
           job.max_runtime,
           NOT job.scheduled OR coalesce(job.next_start = 'infinity', false) AS paused,
           CASE WHEN job.owner != pg_class.relowner THEN job.owner::text END AS owner,
           nullif(job.config - ARRAY['hypertable_id', 'aggregate', 'drop_after', 'compress_after', 'start_offset',
                                     'end_offset', 'buckets_per_batch'], '{}')::text AS config,
           coalesce(job.config ->> 'drop_after', job.config ->> 'compress_after')::interval AS age,
           (job.config ->> 'start_offset')::interval AS start,
           (job.config ->> 'end_offset')::interval AS "end",
           (job.config ->> 'buckets_per_batch')::integer AS buckets_per_batch,
           cagg.materialized_only,
           nullif(layout.segmentby, '') AS segmentby,
           layout.orderby
    FROM timescaledb_information.jobs AS job
    CROSS JOIN LATERAL (SELECT coalesce(job.hypertable_name, job.config ->> 'aggregate' || '_cagg')) AS of (relation)
    JOIN pg_class ON pg_class.oid = to_regclass(relation)
    LEFT JOIN timescaledb_information.continuous_aggregates AS cagg ON cagg.view_name = relation
    LEFT JOIN timescaledb_information.hypertable_columnstore_settings AS layout
        ON layout.hypertable IN (
            pg_class.oid,
            to_regclass(quote_ident(materialization_hypertable_schema) || '.'
                        || quote_ident(materialization_hypertable_name)))
    WHERE proc_name IN ('cagg_refresh', 'policy_compression', 'policy_retention', 'policy_refresh_continuous_aggregate')
        AND relation = ANY (:ours)
    ORDER BY job.job_id
""")
