"""The efficiency of one vehicle."""

from tests.benchmarks.conftest import Ask, Measure


def test_performance_of_one_vehicle(ask: Ask, measure: Measure) -> None:
    assert ask("/v1/analytics/performance/vehicle-4711")["coverage"]["paired"] > 1_400
    measure("performance of one vehicle over 24 h", lambda _: "/v1/analytics/performance/vehicle-4711")


def test_performance_of_a_vehicle_not_asked_for_before(measure: Measure) -> None:
    measure(
        "performance of another vehicle each time",
        lambda number: f"/v1/analytics/performance/vehicle-{1 + number * 37}",
    )
