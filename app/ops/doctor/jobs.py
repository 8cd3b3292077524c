"""The checks of TimescaleDB's jobs: where several jobs suffer from one cause, they are one finding."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta

from app.ops.doctor.facts import Facts, Finding, Job, Scheduler, Server
from app.policies.words import interval_words

LAG = timedelta(minutes=10)
# A job that is late by more of its periods than these will not come by itself.
LATE_PERIODS = 2
# One is for the scheduler, the other for a job.
LEAST_WORKERS = 2
# Each range of server_version_num excludes its end (timescale/timescaledb pull 11015).
JOBS_BREAK = ((160016, 170000), (170012, 180000), (180007, 190000))


def check_jobs(facts: Facts) -> Iterator[Finding]:
    """Yields a finding for each cause for which jobs do not do their work, and for what was not done."""
    scheduler = facts.scheduler
    if scheduler is None:
        return
    stopped = list(_scheduler(scheduler))
    yield from stopped
    troubled = {job for job in facts.jobs if job.paused or not job.owner_may_login or job.last_status == "failed"}
    yield from _owners(facts.jobs)
    yield from _failed(facts)
    if not stopped:
        crashed = [job for job in facts.jobs if _crashed(job, facts)]
        late = [job for job in facts.jobs if late_seconds(job, facts) > LATE_PERIODS * job.schedule.total_seconds()]
        troubled.update(crashed, late)
        yield from _crashes(crashed)
        yield from _late(late, scheduler)
    yield from _lag(facts, troubled)
    yield from _uncompressed(facts, troubled)


def late_seconds(job: Job, facts: Facts) -> float:
    """Returns for how long the job should have been running; 0 if it runs, is paused, or is not due yet."""
    if facts.now is None or job.due_at is None:
        return 0.0
    return max(0.0, (facts.now - job.due_at).total_seconds())


def _scheduler(scheduler: Scheduler) -> Iterator[Finding]:
    """Yields the causes for which no job runs at all."""
    if scheduler.licence != "timescale":
        yield Finding(
            "licence",
            f"TimescaleDB runs with the licence '{scheduler.licence}', which has no continuous aggregates, columnstore "
            "or policies: set timescaledb.license = 'timescale' in postgresql.conf, and reload the server.",
        )
    if scheduler.restoring:
        yield Finding(
            "restoring",
            "TimescaleDB believes that a restore is under way and runs no job: SELECT timescaledb_post_restore();",
        )
    if scheduler.workers < LEAST_WORKERS:
        yield Finding(
            "too_few_workers",
            f"The server has {max(scheduler.workers, 0)} background workers for TimescaleDB, so no job runs: set "
            "timescaledb.max_background_workers = 16 and max_worker_processes = 21, and restart the server.",
        )
    elif scheduler.running is False and not scheduler.restoring:
        if scheduler.all_in_use:
            yield Finding("too_few_workers", f"No job runs. {_in_use(scheduler)}")
        else:
            yield Finding(
                "no_scheduler",
                "The scheduler of TimescaleDB does not run in this database, so no job does: as a superuser, "
                "SELECT _timescaledb_functions.start_background_workers();",
            )


def _in_use(scheduler: Scheduler) -> str:
    databases = ", ".join(f"{name} ({count})" for name, count in scheduler.workers_in_use.items())
    return (
        f"All {scheduler.workers} background workers of the server are in use, by these databases: {databases}. Raise "
        f"{scheduler.workers_setting} in postgresql.conf, and restart the server."
    )


def _owners(jobs: list[Job]) -> Iterator[Finding]:
    for owner in sorted({job.owner for job in jobs if not job.owner_may_login}):
        count = sum(job.owner == owner for job in jobs)
        yield Finding(
            "owner_no_login",
            f"The role {owner} owns {count} jobs and may not log in, so that none of them runs: as a superuser, or as "
            f"a role that administers {owner}, ALTER ROLE {owner} LOGIN;",
            owner,
        )


def _failed(facts: Facts) -> Iterator[Finding]:
    failed = defaultdict(list)
    for job in facts.jobs:
        if job.last_status == "failed" and job.owner_may_login:
            failed[job.last_error or "see the log of the server"].append(job)
    for error, jobs in failed.items():
        yield Finding(
            "failed_jobs",
            f"Failed at the last run of {_names(jobs)}: {error}. Mend the cause; a job is tried again by itself, "
            f"or at once: as {jobs[0].owner}, CALL run_job({jobs[0].job_id}); {_breaking(facts.server)}",
            error,
        )


def _breaking(server: Server | None) -> str:
    if server is None or not any(first <= server.postgresql_number < end for first, end in JOBS_BREAK):
        return ""
    return (
        f"Every job of many TimescaleDB releases fails on PostgreSQL {server.postgresql}: the README names the others."
    )


def _crashed(job: Job, facts: Facts) -> bool:
    """Whether the job's last run has ended with its process, and its aggregate was not refreshed since."""
    refreshed = {each.name: each.as_of for each in facts.aggregates}.get(job.target) if job.work == "refresh" else None
    return job.last_status == "crashed" and not (refreshed and job.last_start and refreshed > job.last_start)


def _crashes(jobs: list[Job]) -> Iterator[Finding]:
    if jobs:
        yield Finding(
            "crashed_jobs",
            f"The last run of {_names(jobs)} ended with its process, and TimescaleDB waits for five minutes before it "
            "runs a job again. `wattline serve` runs refreshes meanwhile; by hand, as "
            f"{jobs[0].owner}, CALL run_job({jobs[0].job_id}); The log of the server says what ended the process.",
        )


def _late(jobs: list[Job], scheduler: Scheduler) -> Iterator[Finding]:
    if not jobs:
        return
    late = f"Late by more than {LATE_PERIODS} periods: {_names(jobs)}."
    if scheduler.all_in_use:
        yield Finding("too_few_workers", f"{late} {_in_use(scheduler)}")
    else:
        yield Finding("late_jobs", f"{late} The log of the server says why TimescaleDB does not run them.")


def _names(jobs: list[Job]) -> str:
    return ", ".join(job.name for job in jobs)


def _lag(facts: Facts, troubled: set[Job]) -> Iterator[Finding]:
    """Yields nothing if the server or the database is new, nothing was ever stored, or a finding names the cause."""
    if not (facts.server and facts.now and facts.installed_at and facts.devices and facts.devices.expected):
        return
    new = facts.now - max(facts.server.started_at, facts.installed_at) < LAG
    if new or any(job.work == "refresh" for job in troubled):
        return
    behind = [
        aggregate.name for aggregate in facts.aggregates if aggregate.as_of is None or facts.now - aggregate.as_of > LAG
    ]
    if behind:
        yield Finding(
            "not_refreshed",
            f"Not refreshed for more than {interval_words(LAG)}: {', '.join(behind)}. Late readings are missing there. "
            "See that the jobs run; `wattline refresh` brings the aggregates up to date meanwhile.",
        )


def _uncompressed(facts: Facts, troubled: set[Job]) -> Iterator[Finding]:
    named = {job.target for job in troubled if job.work == "compress"}
    for name, chunks, job_id in facts.uncompressed:
        if name not in named:
            yield Finding(
                "not_compressed",
                f"Chunks of {name} that should be compressed and are not: {chunks}. As the owner of {name}, "
                f"CALL run_job({job_id}); its error, or the log of the server, says why they are not.",
                name,
            )
