"""The slow way to the energies of registers, after the definition: sort the readings, then apply its five rules."""

from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

LIMIT_KW = 1_000


class Sent(NamedTuple):
    """A reading of a device: its instant, and either its register or the energy since the reading before."""

    ts_us: int
    register: int | None
    difference: int | None = None


def energies(readings: Iterable[Sent]) -> dict[int, int | None]:
    """Returns the energy of each reading of one device, by instant; None where it is not known."""
    ordered = sorted(readings)
    found: dict[int, int | None] = {}
    good: Sent | None = None
    for number, one in enumerate(ordered):
        before = ordered[number - 1] if number else None
        after = ordered[number + 1] if number + 1 < len(ordered) else None
        if one.register is None:
            found[one.ts_us] = one.difference
        elif before is None or before.register is None:
            found[one.ts_us], good = None, one
        else:
            assert good is not None
            if follows(good, one):
                found[one.ts_us], good = rise(good, one), one
            elif after is not None and after.register is not None and follows(good, after):
                found[one.ts_us] = 0
            elif rise(good, one) < 0 and one.register <= most(good, one):
                found[one.ts_us], good = one.register, one
            else:
                found[one.ts_us], good = None, one
    return found


def follows(good: Sent, one: Sent) -> bool:
    return 0 <= rise(good, one) <= most(good, one)


def rise(good: Sent, one: Sent) -> int:
    assert good.register is not None
    assert one.register is not None
    return one.register - good.register


def most(good: Sent, one: Sent) -> Fraction:
    """Returns the most energy that can have flowed between two readings."""
    minutes = max(Fraction(one.ts_us - good.ts_us, 60_000_000), Fraction(1))
    return LIMIT_KW * 1_000_000 * minutes / 60
