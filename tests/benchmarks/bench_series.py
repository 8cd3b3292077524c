"""The first answers that a dashboard needs: series over 24 h, and the latest state of everything."""

import pytest

from tests.benchmarks.conftest import AT_SITE, DEVICES, Ask, Measure

SERIES = {
    "fleet": ("/v1/analytics/fleet/series?hours=24&bucket=1m", "series of the fleet, 24 h by minute"),
    "site": (
        "/v1/analytics/fleet/series?hours=24&bucket=1m&site=depot",
        f"series of a site of {AT_SITE} devices, 24 h",
    ),
    "vehicle": ("/v1/analytics/vehicles/vehicle-4711/series?hours=24", "series of a vehicle with efficiency, 24 h"),
    "meter": ("/v1/analytics/meters/meter-4711/series?hours=24", "series of a meter, 24 h"),
}


@pytest.mark.parametrize("kind", SERIES)
def test_series(kind: str, ask: Ask, measure: Measure) -> None:
    path, what = SERIES[kind]
    assert len(ask(path)["columns"]["t"]) > 1_400
    measure(what, lambda _: path)


def test_states_of_all_vehicles(ask: Ask, measure: Measure) -> None:
    path = "/v1/analytics/vehicles/states"
    assert len(ask(path)) == DEVICES
    measure(f"states of {DEVICES:,} vehicles", lambda _: path)
