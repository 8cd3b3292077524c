"""The alerts of a device, judged by its hours. Pure; hours since 1970.

Each hour in which the device has a row is judged over the 24 hours before its end. Nothing is known of other hours, so
an open alert stays open in them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from operator import attrgetter
from typing import Any, NamedTuple

from app.analytics.alerts.hours import FROZEN_MINUTES, NO_METER, Frozen, Hour
from app.analytics.efficiency.pairs import Evidence, total
from app.analytics.efficiency.rhythm import MINUTE_US
from app.analytics.efficiency.verdict import Status, coverage_of, efficiency_ratio, uncertainty, verdict
from app.csv_rows import stamp
from app.telemetry.reading import Stream

TRAILING_HOURS = 24
# After so much paired time without a frozen stretch, a device is sound again.
ENOUGH_PAIRED_MINUTES = 60
# A low efficiency ends this far above the limit: a ratio near the limit would open and close an alert each hour.
HYSTERESIS = 0.02


class Kind(StrEnum):
    """The kind of an alert."""

    LOW_EFFICIENCY = "low_efficiency"
    IMPOSSIBLE_EFFICIENCY = "impossible_efficiency"
    FROZEN_METER = "frozen_meter"
    FROZEN_VEHICLE = "frozen_vehicle"
    NO_DATA = "no_data"
    IMPLAUSIBLE_ENERGY = "implausible_energy"


EVIDENCE = (
    *("efficiencyRatio", "uncertainty", "acKwh", "dcKwh", "lossKwh", "minutes", "pairedMinutes", "sharedMinutes"),
    *("frozenMinutes", "from", "to", "lastSeen", "readings", "limitKw", "looksLike"),
)
"""The members that an alert's evidence may have, over all kinds."""

KINDS = {
    Stream.VEHICLE: (Kind.LOW_EFFICIENCY, Kind.IMPOSSIBLE_EFFICIENCY, Kind.FROZEN_VEHICLE),
    Stream.METER: (Kind.FROZEN_METER,),
}
"""The kinds that are judged by the hour."""


class Alert(NamedTuple):
    """An alert; its instants are the ends of the hours that were judged, its `evidence` is from the opening."""

    opened: datetime
    closed: datetime | None
    evidence: Mapping[str, Any]


Row = tuple[int, int, Hour]
"""A device's hour: its number, the device at the other end (a vehicle's meter, a meter's vehicle), the row."""


class TrailingDay(NamedTuple):
    """The 24 hours before the end of `hour`."""

    hour: int
    rows: Sequence[Row]

    @property
    def evidence(self) -> Evidence:
        """The evidence of all hours."""
        return total(row.evidence for _, _, row in self.rows)


def judge(kind: Kind, rows: Sequence[Row], first: int, alert: Alert | None, *, low_efficiency: float) -> list[Alert]:
    """Returns, in order, the alerts that are open in or open after the hour `first`; `rows` are in order of hours.

    `rows` reach 23 hours further back. `alert` is the one that was open before `first`.
    """
    alerts = [] if alert is None else [alert._replace(closed=None)]
    for day in _trailing_days(rows, first):
        is_open = bool(alerts) and alerts[-1].closed is None
        verdict = _VERDICTS[kind](day, low_efficiency)
        if verdict and not is_open:
            alerts.append(Alert(_end(day.hour), None, _EVIDENCE[kind](day)))
        elif verdict is False and is_open:
            alerts[-1] = alerts[-1]._replace(closed=_end(day.hour))
    return alerts


def splice(old: list[Alert], new: list[Alert], until: datetime | None) -> tuple[list[Alert], list[Alert] | None]:
    """Returns which of the `old` alerts to replace, and their replacements from `new`, which are judged up to `until`.

    The replacements are None when an alert is open then in only one of the two: later hours must be judged too.
    """
    if until is None:
        return old, new
    old = [alert for alert in old if alert.opened <= until]
    was_open = bool(old) and (old[-1].closed is None or old[-1].closed > until)
    is_open = bool(new) and new[-1].closed is None
    if was_open != is_open:
        return old, None
    return old, [*new[:-1], new[-1]._replace(closed=old[-1].closed)] if is_open else new


def _trailing_days(rows: Sequence[Row], first: int) -> Iterator[TrailingDay]:
    start = 0
    for position, (hour, _, _) in enumerate(rows):
        if position + 1 < len(rows) and rows[position + 1][0] == hour:
            continue
        while rows[start][0] <= hour - TRAILING_HOURS:
            start += 1
        if hour >= first:
            yield TrailingDay(hour, rows[start : position + 1])


# Each function says whether its alert is to be open after a day; None means that the day does not tell.


def _status(evidence: Evidence, low_efficiency: float) -> Status:
    return verdict(evidence, has_meter=True, low_efficiency=low_efficiency)[0]


def _is_low(day: TrailingDay, low_efficiency: float) -> bool | None:
    evidence = day.evidence
    if _status(evidence, low_efficiency) is Status.LOW_EFFICIENCY:
        return True
    sound = round(low_efficiency + HYSTERESIS, 9)
    return False if _status(evidence, sound) in (Status.OK, Status.IMPOSSIBLE) else None


def _is_impossible(day: TrailingDay, low_efficiency: float) -> bool | None:
    status = _status(day.evidence, low_efficiency)
    return None if status is Status.INSUFFICIENT_DATA else status is Status.IMPOSSIBLE


def _has_frozen(frozen_of: Callable[[Hour], Frozen]) -> Callable[[TrailingDay, float], bool | None]:
    def is_frozen(day: TrailingDay, _: float) -> bool | None:
        if any(frozen_of(row).minutes for _, _, row in day.rows):
            return True
        return False if day.evidence.paired_us >= ENOUGH_PAIRED_MINUTES * MINUTE_US else None

    return is_frozen


_VERDICTS: dict[Kind, Callable[[TrailingDay, float], bool | None]] = {
    Kind.LOW_EFFICIENCY: _is_low,
    Kind.IMPOSSIBLE_EFFICIENCY: _is_impossible,
    Kind.FROZEN_METER: _has_frozen(attrgetter("frozen_meter")),
    Kind.FROZEN_VEHICLE: _has_frozen(attrgetter("frozen_vehicle")),
}


def _efficiency_evidence(day: TrailingDay) -> dict[str, Any]:
    evidence = day.evidence
    ac, dc, coverage = evidence.paired_ac_milliwh, evidence.paired_dc_milliwh, coverage_of(evidence)
    return {
        "efficiencyRatio": efficiency_ratio(evidence),
        "uncertainty": uncertainty(evidence),
        "acKwh": ac / 1_000_000,
        "dcKwh": dc / 1_000_000,
        "lossKwh": (ac - dc) / 1_000_000,
        "minutes": coverage.minutes,
        "pairedMinutes": coverage.paired,
        "sharedMinutes": coverage.shared,
        "from": stamp(_end(day.hour - TRAILING_HOURS)),
        "to": stamp(_end(day.hour)),
        "others": _others(other for _, other, row in day.rows if row.evidence.paired_us),
    }


def _frozen_evidence(frozen_of: Callable[[Hour], Frozen], energy: str) -> Callable[[TrailingDay], dict[str, Any]]:
    def evidence(day: TrailingDay) -> dict[str, Any]:
        frozen, hour, other = max((frozen_of(row), hour, other) for hour, other, row in day.rows)
        return {
            "frozenMinutes": frozen.minutes,
            energy: frozen.other_milliwh / 1_000_000,
            "from": stamp(_end(hour - 1) - timedelta(minutes=FROZEN_MINUTES)),
            "to": stamp(_end(hour)),
            "others": _others([other]),
        }

    return evidence


_EVIDENCE: dict[Kind, Callable[[TrailingDay], dict[str, Any]]] = {
    Kind.LOW_EFFICIENCY: _efficiency_evidence,
    Kind.IMPOSSIBLE_EFFICIENCY: _efficiency_evidence,
    Kind.FROZEN_METER: _frozen_evidence(attrgetter("frozen_meter"), "dcKwh"),
    Kind.FROZEN_VEHICLE: _frozen_evidence(attrgetter("frozen_vehicle"), "acKwh"),
}


def _others(ids: Iterable[int]) -> list[int]:
    return sorted(set(ids) - {NO_METER})


def _end(hour: int) -> datetime:
    return datetime.fromtimestamp(3600 * (hour + 1), UTC)
