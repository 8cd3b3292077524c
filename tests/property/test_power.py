"""Power that is spread over time is neither more nor less energy than was read."""

from itertools import accumulate, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.analytics.efficiency.rows import counter_of
from app.analytics.power import hour_powers, minute_powers
from tests.fixtures.charges import rows

MINUTE = 60_000_000
FIRST = 1_700_000_000 // 3600 * 60
"""A minute that begins an hour."""
# Minutes since the reading before, of silences too, and its energy in thousandths of a Wh.
readings = st.lists(st.tuples(st.integers(1, 235), st.integers(0, 10**7)), min_size=1, max_size=40)


@given(readings)
def test_each_reading_s_energy_is_spread_over_the_time_since_the_one_before_and_adds_up(
    readings: list[tuple[int, int]],
) -> None:
    ends = [FIRST, *accumulate((span for span, _ in readings), initial=FIRST)][1:]
    at = [MINUTE * end for end in ends]
    energies = [0, *(energy for _, energy in readings)]
    counter = counter_of(rows(zip(at, at, energies, repeat(1), repeat(None))), gap_us=5 * MINUTE, limit_milliwatt=10**9)

    window = range(FIRST, ends[-1])
    powers, peak = minute_powers(counter, [60 * minute for minute in window], window)
    truth = [energy * 60 / span / 1_000_000 for span, energy in readings for _ in range(span)]
    assert powers == pytest.approx(truth, abs=1e-4)
    assert sum(power or 0 for power in powers) / 60 == pytest.approx(sum(energies) / 1_000_000, abs=1e-9)

    demands = [sum(truth[minute : minute + 15]) / 15 for minute in range(len(truth) - 14)]
    assert peak == (pytest.approx(max(demands), abs=1e-4) if demands else None)
    hours = range(FIRST // 60, -(-window.stop // 60))
    for hour, power in zip(hours, hour_powers(counter, [3600 * hour for hour in hours]), strict=True):
        inside = truth[60 * hour - FIRST : 60 * hour + 60 - FIRST]
        assert power == (pytest.approx(sum(inside) / len(inside), abs=1e-4) if len(inside) >= 5 else None)
