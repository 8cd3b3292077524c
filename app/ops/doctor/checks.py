"""The checks. Each yields sentences that say what is wrong and what to do about it, and none when all is well."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, timedelta

from app.database import STORE_FAULTS, most_connections
from app.fleet.states import REPORTING_MINUTES
from app.migrate import OTHER_SQL
from app.ops.doctor.facts import Facts, Server
from app.policies.plan import loses_nothing
from app.policies.words import interval_words

LAG = timedelta(minutes=10)
CLOCK_SECONDS = 5
# With less free than either of these, the server may stop at any moment: it panics when it cannot write its log.
DISK_FREE_BYTES = 1 << 30
DISK_FREE_SHARE = 0.05
# A transaction of fewer readings costs more than its readings do; 20 is Mosquitto's default.
LEAST_IN_FLIGHT = 1_000
# One is for the scheduler, the other for a job.
LEAST_WORKERS = 2
# Each range of server_version_num excludes its end (timescale/timescaledb pull 11015).
JOBS_BREAK = ((160016, 170000), (170012, 180000), (180007, 190000))


def wrong(facts: Facts) -> list[str]:
    """Returns the sentences of all checks, and those about what could not be read."""
    return [sentence for check in _CHECKS for sentence in check(facts)] + facts.unread


def _away(facts: Facts) -> Iterator[str]:
    if facts.away:
        advice = "See that its server runs, that DATABASE_URL names it, and that the database exists (`createdb`)."
        yield f"{facts.away} {advice if facts.settings.database_url else ''}"


def _versions(facts: Facts) -> Iterator[str]:
    if facts.server and not 160000 <= facts.server.postgresql_number < 190000:
        yield f"This is PostgreSQL {facts.server.postgresql}; Wattline needs 16, 17 or 18."


def _migration(facts: Facts) -> Iterator[str]:
    if facts.by_other_sql:
        yield OTHER_SQL
    elif facts.revision in (None, facts.needed_revision):
        return
    elif not facts.revision:
        yield "The database is not migrated: run `wattline migrate`."
    elif facts.revision > facts.needed_revision:
        yield (
            f"The database is at revision {facts.revision}, made by a newer Wattline than this one, which knows "
            f"{facts.needed_revision}: update Wattline."
        )
    else:
        yield (
            f"The database is at revision {facts.revision}, this version needs {facts.needed_revision}: run "
            "`wattline migrate`."
        )


def _engine(facts: Facts) -> Iterator[str]:
    if facts.engine and facts.settings.engine not in ("auto", facts.engine):
        yield (
            f"WATTLINE_ENGINE asks for '{facts.settings.engine}', but the database was migrated for '{facts.engine}', "
            f"which stays: unset it, or set it to '{facts.engine}'."
        )


def _writable(facts: Facts) -> Iterator[str]:
    yield from map(STORE_FAULTS.__getitem__, facts.store_faults)


def _durability(facts: Facts) -> Iterator[str]:
    for setting in facts.server.unsafe_settings if facts.server else ():
        yield (
            f"{setting} is off: what was acknowledged may be lost when the machine fails. Set {setting} = on in "
            "postgresql.conf, for the role and for the database, and reload the server."
        )


def _connections(facts: Facts) -> Iterator[str]:
    needed = most_connections(facts.settings)
    if facts.server and needed > facts.server.connections_allowed:
        yield (
            f"The service may open {needed} connections, the server allows {facts.server.connections_allowed}: raise "
            "max_connections, or lower WATTLINE_POOL_MAX_SIZE."
        )


def _clock(facts: Facts) -> Iterator[str]:
    ahead = facts.clock_ahead_seconds
    if abs(ahead) > CLOCK_SECONDS:
        yield (
            f"The clock of the database is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's. "
            "Readings are judged by one and stamped by the other: set both by NTP."
        )


def _disk(facts: Facts) -> Iterator[str]:
    if facts.disk:
        free, total = facts.disk
        if free < max(DISK_FREE_BYTES, total * DISK_FREE_SHARE):
            yield (
                f"The disk under the data directory has {free / 2**30:.1f} GB free of {total / 2**30:.0f} GB: make "
                "room, or shorten retention in timescale/policies.toml and run `wattline policy apply`."
            )


def _policies(facts: Facts) -> Iterator[str]:
    if facts.plan and (changes := facts.plan.changes):
        command = "migrate" if all(map(loses_nothing, changes)) else "policy plan`, then `wattline policy apply"
        yield (
            f"The policies differ from timescale/policies.toml in what is listed above ({len(changes)} to come): run "
            f"`wattline {command}` to apply the file."
        )


def _scheduler(facts: Facts) -> Iterator[str]:
    scheduler = facts.scheduler
    if scheduler is None:
        return
    if scheduler.licence != "timescale":
        yield (
            f"TimescaleDB runs with the licence '{scheduler.licence}', which has no continuous aggregates, columnstore "
            "or policies: set timescaledb.license = 'timescale' in postgresql.conf, and reload the server."
        )
    if scheduler.restoring:
        yield "TimescaleDB believes that a restore is under way and runs no job: SELECT timescaledb_post_restore();"
    if scheduler.workers < LEAST_WORKERS:
        yield (
            f"The server has {max(scheduler.workers, 0)} background workers for TimescaleDB, so no job runs: set "
            "timescaledb.max_background_workers = 16 and max_worker_processes = 21, and restart the server."
        )
    elif scheduler.running is False and not scheduler.restoring:
        yield (
            "The scheduler of TimescaleDB does not run in this database, so no job does: "
            "SELECT _timescaledb_functions.start_background_workers();"
        )


def _jobs(facts: Facts) -> Iterator[str]:
    failed = defaultdict(list)
    for job in facts.jobs:
        name = f"{job.job_id} ({job.work} {job.target})"
        if job.paused:
            yield f"The job {name} is paused: SELECT alter_job({job.job_id}, scheduled => true, next_start => now());"
        if job.last_status == "failed":
            failed[job.last_error or "see the log of the server"].append(name)
    for error, names in failed.items():
        yield (
            f"Failed at the last run of {', '.join(names)}: {error}. Mend the cause; a job is tried again by itself, "
            f"or at once: CALL run_job({names[0].partition(' ')[0]}); {_breaking(facts.server)}"
        )


def _breaking(server: Server | None) -> str:
    if server is None or not any(first <= server.postgresql_number < end for first, end in JOBS_BREAK):
        return ""
    return (
        f"Every job of many TimescaleDB releases fails on PostgreSQL {server.postgresql}: the README names the others."
    )


def _lag(facts: Facts) -> Iterator[str]:
    """Yields nothing if the server or the database is new, or if nothing was ever stored."""
    if not (facts.server and facts.now and facts.installed_at and facts.devices and facts.devices.expected):
        return
    if facts.now - max(facts.server.started_at, facts.installed_at) < LAG:
        return
    behind = [
        aggregate.name for aggregate in facts.aggregates if aggregate.as_of is None or facts.now - aggregate.as_of > LAG
    ]
    if behind:
        yield (
            f"Not refreshed for more than {interval_words(LAG)}: {', '.join(behind)}. Late readings are missing there. "
            "See that the jobs run; `wattline refresh` brings the aggregates up to date meanwhile."
        )


def _partitions(facts: Facts) -> Iterator[str]:
    if facts.prepared_until and facts.now and facts.devices and facts.devices.reporting:
        midnight = facts.now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if facts.prepared_until < midnight + timedelta(days=2):
            yield (
                "Readings arrive, but tomorrow's partitions are missing: no service runs the maintenance loop, which "
                "also drops what is too old. Restart `wattline serve`, and look for maintenance_failed in its log."
            )


def _broker(facts: Facts) -> Iterator[str]:
    if facts.broker_away:
        yield f"{facts.broker_away} See that it runs, and that the WATTLINE_MQTT_ settings are right."
    grants = facts.grants
    if grants is None:
        return
    if grants.qos < 1:
        yield "The broker takes no QoS 1: what is sent while no consumer is connected is lost. Use another broker."
    if grants.receive_maximum < LEAST_IN_FLIGHT:
        yield (
            f"The broker has at most {grants.receive_maximum} messages in flight, so that no large transactions come "
            "about: in mosquitto.conf, set max_inflight_messages 0."
        )
    if facts.settings.mqtt_share_group and not grants.shares:
        yield "The broker has no shared subscriptions: unset WATTLINE_MQTT_SHARE_GROUP, or use another broker."


def _silence(facts: Facts) -> Iterator[str]:
    if facts.devices and facts.devices.reported_today and not facts.devices.reporting:
        yield (
            f"No device has reported for {REPORTING_MINUTES} minutes, {facts.devices.reported_today} have within a "
            "day: see that the service runs (GET /health/ready) and that the gateways reach it."
        )


def _registry(facts: Facts) -> Iterator[str]:
    if rejected := dict(facts.rejected_today).get("too_many_new_devices"):
        yield (
            f"{rejected} readings of new devices were rejected within a day, since too many devices were new within an "
            "hour: `wattline quarantine list --reason too_many_new_devices` shows the readings. If their devices are "
            "neither typos nor strangers, `redrive` lets them in, and WATTLINE_NEW_DEVICES_PER_HOUR sets the limit."
        )


_CHECKS = (
    _away,
    _versions,
    _migration,
    _engine,
    _writable,
    _durability,
    _connections,
    _clock,
    _disk,
    _policies,
    _scheduler,
    _jobs,
    _lag,
    _partitions,
    _broker,
    _silence,
    _registry,
)
