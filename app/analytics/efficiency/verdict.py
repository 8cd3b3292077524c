"""The verdict on a vehicle's efficiency: the ratio, the status, and the sentence of an alert."""

from enum import StrEnum

import msgspec

from app.analytics.efficiency.pairs import Evidence
from app.analytics.efficiency.rhythm import MINUTE_US

ENOUGH_AC_MILLIWH = 500_000
POSSIBLE_RATIO = 1.02
"""Above this ratio, measuring errors are no explanation: one of the two devices is wrong."""


class Status(StrEnum):
    """The verdict on an efficiency: the first status, in this order, that fits the vehicle."""

    NO_METER = "no_meter"
    INSUFFICIENT_DATA = "insufficient_data"
    IMPOSSIBLE = "impossible"
    LOW_EFFICIENCY = "low_efficiency"
    OK = "ok"


class Coverage(msgspec.Struct, frozen=True):
    """The minutes in which the vehicle took energy: paired, shared or unpaired. Doubtful ones are paired.

    Each is rounded; `minutes` is their sum.
    """

    minutes: int
    paired: int
    shared: int
    unpaired: int
    doubtful: int


def coverage_of(evidence: Evidence) -> Coverage:
    """Returns the minutes of the evidence."""
    paired, shared, unpaired, doubtful = (
        (2 * us + MINUTE_US) // (2 * MINUTE_US)
        for us in (evidence.paired_us, evidence.shared_us, evidence.unpaired_us, evidence.doubtful_us)
    )
    return Coverage(paired + shared + unpaired, paired, shared, unpaired, doubtful)


def efficiency_ratio(evidence: Evidence) -> float | None:
    """Returns the share of the paired AC energy that reached the battery, never clamped; None without AC energy."""
    if evidence.paired_ac_milliwh == 0:
        return None
    return evidence.paired_dc_milliwh / evidence.paired_ac_milliwh


def uncertainty(evidence: Evidence) -> float | None:
    """Returns what is unsure, and by how much doubtful time lowers the ratio, as a ratio; None without AC energy."""
    ac, dc = evidence.paired_ac_milliwh, evidence.paired_dc_milliwh
    if ac == 0:
        return None
    sure_ac, sure_dc = ac - evidence.doubtful_ac_milliwh, dc - evidence.doubtful_dc_milliwh
    lowered = sure_dc / sure_ac - dc / ac if sure_ac >= ENOUGH_AC_MILLIWH else 0
    return evidence.unsure_milliwh / ac + max(0, lowered)


def verdict(evidence: Evidence, *, has_meter: bool, low_efficiency: float) -> tuple[Status, str | None]:
    """Returns the status, and an alert sentence for two of them. Ratios below `low_efficiency` are low.

    A ratio is judged where its uncertainty does not reach over a limit. In doubtful time another vehicle may have taken
    energy, which can only lower the ratio: a low one must be low without that time too.
    """
    ac, dc, unsure = evidence.paired_ac_milliwh, evidence.paired_dc_milliwh, evidence.unsure_milliwh
    if not has_meter:
        return Status.NO_METER, None
    if ac < ENOUGH_AC_MILLIWH or 2 * dc < evidence.dc_milliwh:
        return Status.INSUFFICIENT_DATA, None
    # Python divides integers to the nearest float, so a ratio of exactly 85/100 is the very float that 0.85 is:
    # comparing floats is exact at the limits.
    if (dc - unsure) / ac > POSSIBLE_RATIO:
        return Status.IMPOSSIBLE, _impossible_sentence(ac, dc)
    if low_efficiency <= (dc - unsure) / ac and (dc + unsure) / ac <= POSSIBLE_RATIO:
        return Status.OK, None
    sure_ac, sure_dc = ac - evidence.doubtful_ac_milliwh, dc - evidence.doubtful_dc_milliwh
    if (
        (dc + unsure) / ac < low_efficiency
        and sure_ac >= ENOUGH_AC_MILLIWH
        and ((sure_dc + unsure) / sure_ac < low_efficiency)
    ):
        return Status.LOW_EFFICIENCY, _low_sentence(ac, dc, low_efficiency)
    return Status.INSUFFICIENT_DATA, None


# The percentages are rounded away from the limit, so that no sentence says "85.0 % is below 85 %".


def _impossible_sentence(ac: int, dc: int) -> str:
    percent, limit = -(-1000 * dc // ac) / 10, 100 * POSSIBLE_RATIO
    return f"Efficiency {percent:.1f} % is above {limit:g} %: {_kwh(dc)} DC cannot come from {_kwh(ac)} AC"


def _low_sentence(ac: int, dc: int, low_efficiency: float) -> str:
    percent, limit = 1000 * dc // ac / 10, 100 * low_efficiency
    return f"Efficiency {percent:.1f} % is below {limit:g} %: {_kwh(ac - dc)} of {_kwh(ac)} AC lost"


def _kwh(milliwh: int) -> str:
    return f"{milliwh / 1_000_000:.2f} kWh"
