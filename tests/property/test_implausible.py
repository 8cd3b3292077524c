"""Alerts about implausible energy that are judged piece by piece equal those judged at once."""

from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from app.analytics.alerts.implausible import Implausible, alerts_of
from app.analytics.alerts.judge import TRAILING_HOURS, Alert

Rows = dict[int, Implausible]
OVER = 200


def row(hour: int, readings: int, looks_like: str) -> Implausible:
    at = datetime.fromtimestamp(3600 * hour, UTC)
    return Implausible(readings, 1_000_000 * readings, at, at, 10**9, looks_like)


changes = st.tuples(
    st.integers(0, OVER - 1),
    st.none() | st.tuples(st.integers(1, 60), st.sampled_from(["register", "wh", "step"])),
)


def judged(rows: Rows, first: int, before: Alert | None) -> list[Alert]:
    seen = [(hour, rows[hour]) for hour in sorted(rows) if hour >= first - TRAILING_HOURS]
    return alerts_of(seen, first, before, OVER, "acKwh")


@given(st.lists(changes, max_size=40))
@settings(max_examples=500)
def test_judging_what_changed_ends_where_judging_all_would(changed: list[tuple[int, tuple[int, str] | None]]) -> None:
    rows: Rows = {}
    stored: list[Alert] = []
    for hour, content in changed:
        if content is None:
            rows.pop(hour, None)
        else:
            rows[hour] = row(hour, *content)
        since = datetime.fromtimestamp(3600 * (hour + 1), UTC)
        ended = [alert for alert in stored if alert.closed is not None and alert.closed < since]
        old = stored[len(ended) :]
        before = old[0] if old and old[0].opened < since else None
        stored = [*ended, *judged(rows, hour, before)]
    assert stored == judged(rows, 0, None)


@given(st.sets(st.integers(0, OVER - 1), min_size=1, max_size=20))
def test_an_alert_is_open_at_the_end_of_each_hour_that_has_one_within_a_day(hours: set[int]) -> None:
    alerts = judged({hour: row(hour, 1, "step") for hour in hours}, 0, None)
    for hour in range(OVER):
        end = datetime.fromtimestamp(3600 * (hour + 1), UTC)
        is_open = any(alert.opened <= end and (alert.closed is None or alert.closed > end) for alert in alerts)
        assert is_open == any(hour - TRAILING_HOURS < other <= hour for other in hours)
