"""The alerts of a device, judged by its hours. Pure; hours since 1970.

Each hour in which the device has a row is judged over the 24 hours before its end. Nothing is known of other hours, so
an open alert stays open in them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from app.analytics.alerts.hours import FROZEN_MINUTES, NO_METER, Hour
from app.analytics.efficiency.verdict import ENOUGH_AC_MILLIWH, POSSIBLE_RATIO
from app.csv_rows import stamp
from app.telemetry.reading import Stream

TRAILING_HOURS = 24
# In a short session the first and last readings of two clocks weigh too much (docs/efficiency.md).
ENOUGH_CHARGING_MINUTES = 60
# A low efficiency ends this far above the limit: a ratio near the limit would open and close an alert each hour.
HYSTERESIS = 0.02


class Kind(StrEnum):
    """The kind of an alert."""

    LOW_EFFICIENCY = "low_efficiency"
    IMPOSSIBLE_EFFICIENCY = "impossible_efficiency"
    FROZEN_METER = "frozen_meter"
    FROZEN_VEHICLE = "frozen_vehicle"
    NO_DATA = "no_data"


EVIDENCE = (
    *("efficiencyRatio", "acKwh", "dcKwh", "lossKwh", "minutes", "pairedMinutes", "sharedMinutes"),
    *("frozenMinutes", "from", "to", "lastSeen"),
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

    def total(self, column: str) -> int:
        """Returns the sum of a column."""
        return sum(getattr(row, column) for _, _, row in self.rows)

    @property
    def ratio(self) -> float | None:
        """The efficiency; None when too few minutes are paired to tell."""
        ac, paired = self.total("ac_milliwh"), self.total("paired")
        if ac < ENOUGH_AC_MILLIWH or 2 * paired < self.total("minutes"):
            return None
        if self.total("charging") < ENOUGH_CHARGING_MINUTES:
            return None
        return self.total("dc_milliwh") / ac


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


def _is_low(day: TrailingDay, low_efficiency: float) -> bool | None:
    ratio = day.ratio
    if ratio is None or low_efficiency <= ratio < round(low_efficiency + HYSTERESIS, 9):
        return None
    return ratio < low_efficiency


def _is_impossible(day: TrailingDay, _: float) -> bool | None:
    ratio = day.ratio
    return None if ratio is None else ratio > POSSIBLE_RATIO


def _has_frozen(column: str) -> Callable[[TrailingDay, float], bool | None]:
    def is_frozen(day: TrailingDay, _: float) -> bool | None:
        if any(getattr(row, column) for _, _, row in day.rows):
            return True
        return False if day.total("charging") >= ENOUGH_CHARGING_MINUTES else None

    return is_frozen


_VERDICTS: dict[Kind, Callable[[TrailingDay, float], bool | None]] = {
    Kind.LOW_EFFICIENCY: _is_low,
    Kind.IMPOSSIBLE_EFFICIENCY: _is_impossible,
    Kind.FROZEN_METER: _has_frozen("frozen_meter_minutes"),
    Kind.FROZEN_VEHICLE: _has_frozen("frozen_vehicle_minutes"),
}


def _efficiency_evidence(day: TrailingDay) -> dict[str, Any]:
    ac, dc = day.total("ac_milliwh"), day.total("dc_milliwh")
    return {
        "efficiencyRatio": dc / ac,
        "acKwh": ac / 1_000_000,
        "dcKwh": dc / 1_000_000,
        "lossKwh": (ac - dc) / 1_000_000,
        "minutes": day.total("minutes"),
        "pairedMinutes": day.total("paired"),
        "sharedMinutes": day.total("shared"),
        "from": stamp(_end(day.hour - TRAILING_HOURS)),
        "to": stamp(_end(day.hour)),
        "others": _others((other for _, other, row in day.rows if row.paired)),
    }


def _frozen_evidence(minutes: str, milliwh: str, energy: str) -> Callable[[TrailingDay], dict[str, Any]]:
    def evidence(day: TrailingDay) -> dict[str, Any]:
        frozen = [row for row in day.rows if getattr(row[2], minutes)]
        hour, other, row = max(frozen, key=lambda row: (getattr(row[2], minutes), row))
        return {
            "frozenMinutes": getattr(row, minutes),
            energy: getattr(row, milliwh) / 1_000_000,
            "from": stamp(_end(hour - 1) - timedelta(minutes=FROZEN_MINUTES)),
            "to": stamp(_end(hour)),
            "others": _others([other]),
        }

    return evidence


_EVIDENCE: dict[Kind, Callable[[TrailingDay], dict[str, Any]]] = {
    Kind.LOW_EFFICIENCY: _efficiency_evidence,
    Kind.IMPOSSIBLE_EFFICIENCY: _efficiency_evidence,
    Kind.FROZEN_METER: _frozen_evidence("frozen_meter_minutes", "frozen_meter_dc_milliwh", "dcKwh"),
    Kind.FROZEN_VEHICLE: _frozen_evidence("frozen_vehicle_minutes", "frozen_vehicle_ac_milliwh", "acKwh"),
}


def _others(ids: Iterable[int]) -> list[int]:
    return sorted(set(ids) - {NO_METER})


def _end(hour: int) -> datetime:
    return datetime.fromtimestamp(3600 * (hour + 1), UTC)
