"""The energies of a device whose register is read: a function of its readings in order of time. Pure.

A register only goes up, as long as nothing disturbs it. It starts anew when a device is reset or replaced, and it shows
wrong values for a moment, a zero or a spike.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from app.telemetry.instant import HOUR_US

Shown: TypeAlias = tuple[int, int | None]
"""A reading: its instant, and its register in thousandths of a Wh; None in a reading of a difference."""
Base: TypeAlias = tuple[int, int]
"""The instant and the value of a good register, from which what follows is counted."""

# A limit of power for a minute; shorter times count as a minute.
MINUTES_OF_HOUR = 60


class Counted(NamedTuple):
    """The energy of each reading, None where it is not known, and the last good register before the last reading."""

    energies: list[int | None]
    base: Base | None


def count(readings: Sequence[Shown], base: Base | None, limit_milliwatt: int) -> Counted:
    """Counts the readings of a device, which are in order of time; `base` is the last good register before them.

    A difference, whose energy is its own, has none here. The last reading is counted as if none followed.
    """
    energies: list[int | None] = []
    before = base
    for number, (ts, milliwh) in enumerate(readings, 1):
        before, energy = base, None
        if milliwh is None:
            base = None
        elif base is None:
            base = ts, milliwh
        elif fits(base, ts, milliwh, limit_milliwatt):
            energy, base = milliwh - base[1], (ts, milliwh)
        elif number < len(readings) and fits(base, *readings[number], limit_milliwatt):
            energy = 0  # A glitch is no base for what follows.
        else:
            if milliwh < base[1] and can_flow(milliwh, ts - base[0], limit_milliwatt):
                energy = milliwh
            base = ts, milliwh
        energies.append(energy)
    return Counted(energies, before)


def fits(base: Base, ts: int, milliwh: int | None, limit_milliwatt: int) -> bool:
    """Returns True when a register has gone up from the base to what is shown, or stands still."""
    return milliwh is not None and milliwh >= base[1] and can_flow(milliwh - base[1], ts - base[0], limit_milliwatt)


def is_sound(before: Shown, shown: Shown, after: Shown, limit_milliwatt: int) -> bool:
    """Returns True when a reading is no glitch, whatever came before these three."""
    if before[1] is None or shown[1] is None:
        return True
    base = before[0], before[1]
    return fits(base, *shown, limit_milliwatt) or not fits(base, *after, limit_milliwatt)


def can_flow(milliwh: int, us: int, limit_milliwatt: int) -> bool:
    """Returns True when so much energy can flow in a time, or in a minute."""
    return milliwh <= limit_milliwatt // MINUTES_OF_HOUR or milliwh * HOUR_US <= limit_milliwatt * us
