"""The policies in words."""

from collections.abc import Iterable
from datetime import timedelta

from app.policies.live import Columnstore, Job, Refresh, Retention, Rule


def words(rule: Rule, with_details: Iterable[str] = ()) -> str:
    """Returns the rule's age, such as `8 days`, or the range of a refresh; then those of its details."""
    match rule:
        case None:
            return "another rule"
        case timedelta():
            return interval_words(rule)
        case Refresh():
            first = "over all there is" if rule.start is None else f"over the last {interval_words(rule.start)}"
            last = "up to the newest reading" if rule.end is None else f"up to {interval_words(rule.end)} ago"
            # TimescaleDB's own default is 10, and it takes 0 for all.
            batch = {None: "10", 0: "all"}.get(rule.buckets_per_batch, rule.buckets_per_batch)
            said = f"each {interval_words(rule.every)}, {first}, {last}, {batch} buckets at a time"
        case Retention() | Columnstore():
            said = interval_words(rule.age)
    own = details(rule)
    return ", ".join([said, *(own[key] for key in with_details if key in own)])


def words_in_full(rule: Rule) -> str:
    """Returns the rule with its details, but for those that every job has unless somebody has changed it."""
    own = details(rule)
    return words(rule, [key for key in own if own[key] not in _USUAL])


def details(rule: Rule) -> dict[str, str]:
    """Returns the rule's other properties in words, by their names; two rules differ in some if not in words()."""
    if not isinstance(rule, Job):
        return {}
    every = {} if isinstance(rule, Refresh) else {"every": f"with a run each {interval_words(rule.every)}"}
    found = every | {
        "runtime": f"of {interval_words(rule.max_runtime)} at most" if rule.max_runtime else _WITHOUT_LIMIT,
        "paused": "paused" if rule.paused else _RUNS,
        "owner": f"as the role {rule.owner}" if rule.owner else _AS_OWNER,
        "config": f"with {rule.config}" if rule.config else _NO_ENTRIES,
    }
    match rule:
        case Refresh():
            found["reads"] = "materialised only" if rule.materialized_only else "in real time"
        case Columnstore():
            segments = f"in segments of {rule.segmentby}" if rule.segmentby else "in one segment"
            found["layout"] = f"{segments} by {rule.orderby}"
    return found


def interval_words(length: timedelta) -> str:
    """Returns the interval in its largest whole unit, such as `8 days`."""
    for unit, name in _UNITS:
        if length % unit == timedelta() and (length or name == "second"):
            return f"{length // unit} {name}{'' if length == unit else 's'}"
    return str(length)


def size_words(size_bytes: int) -> str:
    """Returns the size in the largest unit that leaves a whole one, such as `1.4 GB`."""
    for unit, name in ((1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes / 1024:.0f} kB"


_USUAL = _RUNS, _WITHOUT_LIMIT, _AS_OWNER, _NO_ENTRIES = (
    "not paused",
    "without a limit of time",
    "as the table's owner",
    "with no other entries",
)
_UNITS = [
    (timedelta(days=1), "day"),
    (timedelta(hours=1), "hour"),
    (timedelta(minutes=1), "minute"),
    (timedelta(seconds=1), "second"),
]
