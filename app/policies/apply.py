"""Brings the database's policies to the desired state; what already fits is left alone, with its history."""

from typing import get_args

from sqlalchemy import Connection, text

from app.policies.desired import Aggregate, Policies, Readings, Refresh


def apply_policies(connection: Connection, policies: Policies) -> list[str]:
    """Applies the policies in the connection's transaction; returns a line for each change."""
    engine = connection.scalar(text("SELECT engine FROM installation"))
    return _apply_timescale(connection, policies) if engine == "timescale" else _apply_plain(connection, policies)


def _apply_plain(connection: Connection, policies: Policies) -> list[str]:
    # A device's minutes are computed from its readings and go with them.
    kept = {name: after for name, after in policies.retention.items() if name not in ("meter_minute", "vehicle_minute")}
    changed = connection.execute(
        text("""
            INSERT INTO retention (name, drop_after)
            SELECT name, drop_after::interval
            FROM unnest(CAST(:names AS text[]), CAST(:after AS text[])) AS wanted (name, drop_after)
            ON CONFLICT (name) DO UPDATE SET drop_after = excluded.drop_after
            WHERE retention.drop_after IS DISTINCT FROM excluded.drop_after
            RETURNING name, drop_after::text
        """),
        {"names": list(kept), "after": list(kept.values())},
    ).all()
    gone = connection.scalars(
        text("DELETE FROM retention WHERE name != ALL (:names) RETURNING name"), {"names": list(kept)}
    ).all()
    return [f"retention of {name}: {after}" for name, after in changed] + [
        f"retention of {name}: none" for name in gone
    ]


def _apply_timescale(connection: Connection, policies: Policies) -> list[str]:
    changes = [
        change
        for table, interval in policies.chunk_interval.items()
        if (change := _set_chunk_interval(connection, table, interval))
    ]
    # Five seconds apart, lower levels first: each refresh finds the level below it done, and no two start together.
    for position, (name, refresh) in enumerate(policies.refresh.items()):
        if change := _set_refresh(connection, f"{name}_cagg", refresh, starts_at_second=5 * position):
            changes.append(change)
    changes += _end_refreshes(connection, keep=[f"{name}_cagg" for name in policies.refresh])
    for job, wanted in (("policy_compression", policies.columnstore_after), ("policy_retention", policies.retention)):
        changes += _set_ages(connection, job, {_relation(key): after for key, after in wanted.items()})
    return changes


def _relation(name: str) -> str:
    return name if name.endswith("_reading") else f"{name}_cagg"


# The database may hold hypertables of others, whose policies are theirs.
_OURS = [_relation(name) for name in (*get_args(Readings), *get_args(Aggregate))]


def _set_chunk_interval(connection: Connection, table: str, interval: str) -> str | None:
    same = connection.scalar(
        text("""
            SELECT time_interval = CAST(:interval AS interval) FROM timescaledb_information.dimensions
            WHERE hypertable_name = :table AND dimension_number = 1
        """),
        {"table": table, "interval": interval},
    )
    if same:
        return None
    connection.execute(
        text("SELECT set_chunk_time_interval(CAST(:table AS regclass), CAST(:interval AS interval))"),
        {"table": table, "interval": interval},
    )
    return f"chunks of {table}: {interval}"


def _set_refresh(connection: Connection, aggregate: str, refresh: Refresh, *, starts_at_second: int) -> str | None:
    parameters = {
        "aggregate": aggregate,
        "second": starts_at_second,
        **{f: getattr(refresh, f) for f in refresh.__struct_fields__},
    }
    same = connection.scalar(
        text("""
            SELECT schedule_interval = CAST(:schedule_interval AS interval)
                AND (config ->> 'start_offset')::interval = CAST(:start_offset AS interval)
                AND (config ->> 'end_offset')::interval = CAST(:end_offset AS interval)
                AND (config ->> 'buckets_per_batch')::integer = :buckets_per_batch
            FROM timescaledb_information.jobs
            WHERE proc_name = 'policy_refresh_continuous_aggregate' AND hypertable_name = :aggregate
        """),
        parameters,
    )
    if same:
        return None
    connection.execute(
        text("SELECT remove_continuous_aggregate_policy(CAST(:aggregate AS regclass), if_exists => true)"), parameters
    )
    connection.execute(
        text("""
            SELECT add_continuous_aggregate_policy(
                CAST(:aggregate AS regclass),
                start_offset => CAST(:start_offset AS interval),
                end_offset => CAST(:end_offset AS interval),
                schedule_interval => CAST(:schedule_interval AS interval),
                buckets_per_batch => :buckets_per_batch,
                initial_start => date_trunc('minute', now()) + make_interval(mins => 1, secs => :second))
        """),
        parameters,
    )
    return (
        f"refresh of {aggregate}: {refresh.start_offset} to {refresh.end_offset} ago, each {refresh.schedule_interval}"
    )


def _end_refreshes(connection: Connection, *, keep: list[str]) -> list[str]:
    gone = connection.scalars(
        text("""
            SELECT hypertable_name, remove_continuous_aggregate_policy(CAST(hypertable_name AS regclass))
            FROM timescaledb_information.jobs
            WHERE proc_name = 'policy_refresh_continuous_aggregate'
                AND hypertable_name = ANY (:ours) AND hypertable_name != ALL (:keep)
        """),
        {"ours": _OURS, "keep": keep},
    ).all()
    return [f"refresh of {aggregate}: none" for aggregate in gone]


# The columnstore policy's jobs still bear the name of its predecessor.
_AGE_STATEMENTS = {
    "policy_compression": (
        "compress_after",
        "CALL remove_columnstore_policy(CAST(:relation AS regclass), if_exists => true)",
        "CALL add_columnstore_policy(CAST(:relation AS regclass), after => CAST(:after AS interval))",
    ),
    "policy_retention": (
        "drop_after",
        "SELECT remove_retention_policy(CAST(:relation AS regclass), if_exists => true)",
        "SELECT add_retention_policy(CAST(:relation AS regclass), drop_after => CAST(:after AS interval))",
    ),
}


def _set_ages(connection: Connection, job: str, wanted: dict[str, str]) -> list[str]:
    key, remove, add = _AGE_STATEMENTS[job]
    live = connection.execute(
        text("""
            SELECT hypertable_name, (config ->> CAST(:key AS text))::interval FROM timescaledb_information.jobs
            WHERE proc_name = :job AND hypertable_name = ANY (:ours)
        """),
        {"key": key, "job": job, "ours": _OURS},
    ).all()
    changes = []
    for relation in sorted({name for name, _ in live} - set(wanted)):
        connection.execute(text(remove), {"relation": relation})
        changes.append(f"{key} of {relation}: none")
    current: dict[str, object] = {name: after for name, after in live}  # noqa: C416 - rows are no pairs to mypy
    for relation, after in wanted.items():
        if connection.scalar(text("SELECT CAST(:a AS interval) = :b"), {"a": after, "b": current.get(relation)}):
            continue
        connection.execute(text(remove), {"relation": relation})
        connection.execute(text(add), {"relation": relation, "after": after})
        changes.append(f"{key} of {relation}: {after}")
    return changes
