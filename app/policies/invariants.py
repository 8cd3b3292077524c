"""The rules that keep history: which policies may stand beside each other. Pure.

A chunk that is dropped takes its rows from the aggregates above it, if these are refreshed over its range once more. So
what an aggregate reads must outlive the range of its refresh, and each level must have settled before the next. That is
held twice: by these rules, and by cagg_refreshable_from() in the database, whatever is set by hand.
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from app.errors import SetupError
from app.policies.desired import POLICIES_FILE, Policies, Refresh, parse_policies, span
from app.policies.words import interval_words as words
from app.telemetry.instant import MAX_AGE

SOURCES: dict[str, str] = {
    "meter_minute": "meter_reading",
    "vehicle_minute": "vehicle_reading",
    "fleet_meter_minute": "meter_reading",
    "fleet_vehicle_minute": "vehicle_reading",
    "fleet_meter_hour": "fleet_meter_minute",
    "fleet_vehicle_hour": "fleet_vehicle_minute",
    "meter_hour": "meter_minute",
    "vehicle_hour": "vehicle_minute",
    "meter_day": "meter_hour",
    "vehicle_day": "vehicle_hour",
}
"""What each aggregate reads."""

# TimescaleDB gives an aggregate chunks of ten times the readings' width at its creation, whatever that becomes later.
AGGREGATE_CHUNK = timedelta(days=10)
LONGEST_CHUNK, SHORTEST_CHUNK = timedelta(days=31), timedelta(hours=1)
SHORTEST_SCHEDULE = timedelta(seconds=10)
# cagg_refreshable_from() leaves out what retention may drop within a day.
REFRESH_MARGIN = timedelta(days=1)
# Batches write to the chunks of the live window: none of these can be converted without them waiting.
READINGS_COLUMNSTORE = MAX_AGE + timedelta(days=1)


def read_policies(path: Path = POLICIES_FILE) -> Policies:
    """Reads the file, and checks it by all rules. Raises SetupError with each entry that is wrong, and its limit."""
    try:
        policies = parse_policies(path.read_text())
    except (OSError, UnicodeDecodeError, SetupError) as error:
        raise SetupError(f"{path.name}: {error}") from None
    if broken := list(violations(policies)):
        raise SetupError(f"{path.name}: {'; '.join(broken)}.")
    return policies


def violations(policies: Policies) -> Iterator[str]:
    """Yields a clause for each rule that is broken: the entry with its value, its limit, and whose limit it is."""
    yield from _chunks(policies)
    yield from _refreshes(policies)
    yield from _columnstores(policies)
    yield from _retentions(policies)


def _at_least(entry: str, value: str, limit: timedelta, reason: str) -> Iterator[str]:
    if span(value) < limit:
        yield f'{entry} = "{value}" must be at least "{words(limit)}": {reason}'


def _longer(entry: str, value: str, limit: timedelta, reason: str) -> Iterator[str]:
    if span(value) <= limit:
        yield f'{entry} = "{value}" must be longer than "{words(limit)}": {reason}'


def _chunks(policies: Policies) -> Iterator[str]:
    for name, width in policies.chunk_interval.items():
        entry = f"chunk_interval.{name}"
        yield from _at_least(entry, width, SHORTEST_CHUNK, "each chunk costs every plan")
        if span(width) > LONGEST_CHUNK:
            yield f'{entry} = "{width}" must be at most "{words(LONGEST_CHUNK)}": a chunk is dropped as a whole'


def _refreshes(policies: Policies) -> Iterator[str]:
    refreshes = {str(name): refresh for name, refresh in policies.refresh.items()}
    for name, refresh in refreshes.items():
        entry, start = f"refresh.{name}.start_offset", refresh.start_offset
        # A bucket that begins before the start is left out, and each level waits for its own turn.
        bucket, turns = _width(name), _turns(name, refreshes)
        reason = "readings may arrive so late, in the midst of a bucket, and wait for their refresh"
        yield from _at_least(entry, start, MAX_AGE + bucket + turns, reason)
        if below := refreshes.get(SOURCES[name]):
            reason = f"{SOURCES[name]}, which it reads, is refreshed over that range"
            yield from _longer(entry, start, span(below.start_offset), reason)
            reason = f"newer rows of {SOURCES[name]} may still change unseen"
            yield from _at_least(f"refresh.{name}.end_offset", refresh.end_offset, span(below.end_offset), reason)
        reason = f'two buckets must lie between it and end_offset = "{refresh.end_offset}"'
        yield from _at_least(entry, start, span(refresh.end_offset) + 2 * bucket, reason)
        entry, every = f"refresh.{name}.schedule_interval", refresh.schedule_interval
        yield from _at_least(entry, every, SHORTEST_SCHEDULE, "each run costs transactions")
        if refresh.buckets_per_batch < 0:
            yield f"refresh.{name}.buckets_per_batch = {refresh.buckets_per_batch} must be at least 0, which is all"


def _width(aggregate: str) -> timedelta:
    return timedelta(**{f"{aggregate.rpartition('_')[2]}s": 1})


def _turns(name: str, refreshes: dict[str, Refresh]) -> timedelta:
    """Returns the longest time until a new reading was refreshed at this level, after those below it."""
    refresh = refreshes.get(name)
    return span(refresh.schedule_interval) + _turns(SOURCES[name], refreshes) if refresh else timedelta()


def _columnstores(policies: Policies) -> Iterator[str]:
    refreshes = {str(name): refresh for name, refresh in policies.refresh.items()}
    retention = {str(name): age for name, age in policies.retention.items()}
    for name, after in policies.columnstore_after.items():
        entry = f"columnstore_after.{name}"
        if name.endswith("_reading"):
            reason = f"batches write to the chunks of the last {words(MAX_AGE)}"
            yield from _at_least(entry, after, READINGS_COLUMNSTORE, reason)
        if refresh := refreshes.get(name):
            yield from _longer(entry, after, span(refresh.start_offset), "its own refresh still rewrites these rows")
        if name in retention and span(after) >= span(retention[name]):
            yield f'{entry} = "{after}" must be shorter than retention.{name}, "{retention[name]}"'


def _retentions(policies: Policies) -> Iterator[str]:
    retention = {str(name): age for name, age in policies.retention.items()}
    chunks = {str(name): span(width) for name, width in policies.chunk_interval.items()}
    for aggregate, refresh in policies.refresh.items():
        source = SOURCES[aggregate]
        if source in retention:
            chunk = chunks.get(source, AGGREGATE_CHUNK)
            reason = (
                f"{aggregate} is refreshed over the last {refresh.start_offset}, and a chunk of {words(chunk)} is "
                "dropped as a whole"
            )
            shortest = span(refresh.start_offset) + max(chunk, REFRESH_MARGIN)
            yield from _at_least(f"retention.{source}", retention[source], shortest, reason)
    for above, below in SOURCES.items():
        if below in retention and above not in list(policies.refresh):
            yield f'retention.{below} = "{retention[below]}" needs refresh.{above}, which keeps the sums of what goes'
    for table, others in _OUTLIVES.items():
        for other in others:
            if table in retention and (other not in retention or span(retention[table]) < span(retention[other])):
                limit = f'"{retention[other]}"' if other in retention else "for good"
                yield (
                    f'retention.{table} = "{retention[table]}" must be at least that of {other}, {limit}: {_WHY[table]}'
                )


_OUTLIVES = {
    "import_journal": ("meter_reading", "vehicle_reading"),
    "efficiency_hour": ("meter_minute", "vehicle_minute"),
    "session_hour": ("meter_minute", "vehicle_minute"),
    "charging_session": ("meter_minute", "vehicle_minute"),
    "alert": ("meter_minute", "vehicle_minute"),
}
_WHY = {
    "import_journal": "a file imported again without its journal would be told apart only by its readings",
    "efficiency_hour": "a late reading has its hour judged again by the hours beside it",
    "session_hour": "a late reading would make a session anew without its other hours",
    "charging_session": "a late reading would make a session anew that is gone",
    "alert": "an alert that is gone would be announced once more",
}
