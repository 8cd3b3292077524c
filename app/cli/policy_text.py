"""The storage and the effects of a plan, as lines of text and as JSON."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from app.cli.common import counted
from app.policies.invariants import SOURCES
from app.policies.plan import Change, Plan, age_of, drops, loses_nothing
from app.policies.storage import Due, Policy, Storage, StoragePart, Stored, due
from app.policies.words import size_words

_KINDS = {"chunk_interval": "chunks", "refresh": "refresh", "columnstore": "compress", "retention": "keep"}


def storage_lines(storage: Storage) -> Iterator[str]:
    """Yields a paragraph for each table: its size, its policies as they are in force, and what is dropped next."""
    yield f"{size_words(storage.bytes)} in all, engine {storage.engine}, {_moment(storage.at)}"
    for stored in storage.tables:
        yield ""
        yield f"{stored.name}: {', '.join(_size(stored))}"
        for policy in stored.policies:
            yield from _policy_lines(policy)
        if stored.dropped_next:
            part, at = stored.dropped_next.part, stored.dropped_next.at
            yield f"  next to be dropped: {part.part}, {size_words(part.bytes or 0)}, from {_moment(at)}"
    yield from ["", *storage.notes] if storage.notes else []


def _size(stored: Stored) -> Iterator[str]:
    yield size_words(stored.bytes)
    yield f"about {counted(stored.rows_estimated, 'row')}"
    if stored.parts:
        yield f"{stored.parts} parts from {stored.oldest:%Y-%m-%d} to {stored.newest:%Y-%m-%d}"
    if stored.compressed_share:
        ratio = f" to a size {stored.compression_ratio:.1f} times smaller" if stored.compression_ratio else ""
        yield f"{stored.compressed_share:.0%} compressed{ratio}"


def _policy_lines(policy: Policy) -> Iterator[str]:
    kind = _KINDS[policy.kind]
    yield f"  {kind:8} {policy.live or 'no policy'}"
    if policy.live != policy.desired:
        yield f"  {'':8} differs from timescale/policies.toml: {policy.desired or 'no policy'}"
    if policy.last_run or policy.next_run:
        last = f"{policy.last_status or 'running'} at {_moment(policy.last_run)}" if policy.last_run else "none yet"
        coming = _moment(policy.next_run) if policy.next_run else "not planned"
        yield f"  {'':8} last run: {last}; next run: {coming}"
    if policy.last_error:
        yield f"  {'':8} error of the last run: {policy.last_error}"


def effect_lines(change: Change, parts: Iterable[StoragePart], plan: Plan, now: datetime) -> Iterator[str]:
    """Yields lines that say which parts the change drops or compresses at the first run and when the next one."""
    coming = due(change, parts)
    does = "drops" if change.kind == "retention" else "compresses"
    if at_once := [each.part for each in coming if each.at <= now]:
        rows, size = (sum(getattr(part, field) or 0 for part in at_once) for field in ("rows_estimated", "bytes"))
        yield (
            f"{does} {counted(len(at_once), 'part')} at the first run, {_range(at_once)}: about "
            f"{counted(rows, 'row')}, {size_words(size)}"
        )
    if later := [each for each in coming if each.at > now]:
        yield f"{does} {later[0].part.part} next, from {_moment(later[0].at)}"
    if drops(change):
        age = age_of(change.desired[0])
        if age and not coming:
            yield f"deletes at once each row that is older than {_moment(now - age)}"
        yield from _kept_above(change, plan)


def _kept_above(change: Change, plan: Plan) -> Iterator[str]:
    above = [name for name in SOURCES if change.name in _sources(name)]
    if above:
        kept = (f"{name} {plan.kept.get(name, 'for good')}" for name in above)
        yield f"what is made of it is kept: {', '.join(kept)}"


def _sources(name: str) -> Iterator[str]:
    while name in SOURCES:
        name = SOURCES[name]
        yield name


def plan_json(plan: Plan, parts: list[StoragePart]) -> dict[str, Any]:
    """Returns the plan with each part that a change drops or compresses, and the instant from which on it does."""
    return {
        "changes": [
            {
                "kind": change.kind,
                "name": change.name,
                "words": change.words,
                "migrateApplies": loses_nothing(change),
                "drops": drops(change),
                "parts": [_due_json(each) for each in due(change, parts)],
            }
            for change in plan.changes
        ],
        "brokenRules": plan.broken,
        "notes": plan.notes,
    }


def _due_json(each: Due) -> dict[str, Any]:
    part = each.part
    return {
        "part": part.part,
        "from": part.range_start,
        "to": part.range_end,
        "rowsEstimated": part.rows_estimated,
        "bytes": part.bytes,
        "at": each.at,
    }


def _range(parts: list[StoragePart]) -> str:
    starts = [part.range_start for part in parts if part.range_start]
    ends = [part.range_end for part in parts if part.range_end]
    return f"{min(starts):%Y-%m-%d} to {max(ends):%Y-%m-%d}"


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
