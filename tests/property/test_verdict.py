"""The verdict is exact at its limits, and its sentence never contradicts it."""

from fractions import Fraction

from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.analytics.efficiency.pairs import Evidence
from app.analytics.efficiency.verdict import verdict
from tests.property.brute_force import status_of

energies = st.integers(0, 10**11)


@settings(max_examples=300)
@given(energies, energies, st.integers(0, 10**9), st.integers(1, 9_999).map(lambda n: Fraction(n, 10_000)))
@example(10**11, 85 * 10**9, 0, Fraction(85, 100))
@example(10**11, 85 * 10**9 - 1, 0, Fraction(85, 100))
@example(10**11, 102 * 10**9, 0, Fraction(85, 100))
@example(10**11, 102 * 10**9 + 1, 0, Fraction(85, 100))
@example(10**11, 102 * 10**9 + 1, 1, Fraction(85, 100))
@example(10**11, 85 * 10**9, 1, Fraction(85, 100))
def test_the_verdict_is_exact_at_its_limits(ac: int, dc: int, unsure: int, limit: Fraction) -> None:
    evidence = Evidence(paired_ac_milliwh=ac, paired_dc_milliwh=dc, dc_milliwh=dc, unsure_milliwh=unsure)
    status, alert = verdict(evidence, has_meter=True, low_efficiency=float(limit))
    assert status == status_of(evidence, limit)
    assert (alert is not None) == (status in ("impossible", "low_efficiency"))
    if unsure == 0 and ac >= 500_000:
        assert status != "insufficient_data"
