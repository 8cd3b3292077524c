"""Registers that are not simply newer than their devices' states: counted with their neighbours.

Of a late reading, the three neighbours on each side tell all, but where one glitch follows another.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

from app.ingest.batch import Row
from app.ingest.store import register_statements as statements
from app.ingest.store.register_statements import NEVER, State
from app.ingest.store.statements import Connection
from app.telemetry.reading import Stream
from app.telemetry.register import Shown, count, fits, is_sound

_NEIGHBOURS = 3


class Asked(NamedTuple):
    """The bounds between which a device's readings are counted, and the readings that come new, in order."""

    first: int
    last: int
    sent: Sequence[Shown]


class Recount(NamedTuple):
    """The energies of what was sent, by device and instant, and what changes with it.

    `corrected` are stored readings with another energy: instant, device, energy. `counters` are the last three members
    of each device's State; those of `late` devices are not merged with a newer state.
    """

    energies: dict[int, dict[int, int | None]]
    corrected: list[Row]
    counters: dict[int, Row]
    late: list[int]


def asked_of(rows: Iterable[Row]) -> dict[int, Asked]:
    """Returns the readings of some rows by device, the first of each instant."""
    by_device: defaultdict[int, list[Shown]] = defaultdict(list)
    for row in rows:
        by_device[row[1]].append((row[0], row[-1]))
    ordered = {device: sorted(dict(reversed(shown)).items()) for device, shown in by_device.items()}
    return {device: Asked(sent[0][0], sent[-1][0], sent) for device, sent in ordered.items()}


async def recount(
    connection: Connection,
    stream: Stream,
    asked: Mapping[int, Asked],
    locked: Mapping[int, Row],
    limit_milliwatt: int,
) -> Recount:
    """Counts readings of devices whose states are locked."""
    outcome = Recount({}, [], {}, [])
    states = {device: State(*locked[device]) for device in asked}
    late = {}
    for device, one in asked.items():
        state = states[device]
        if one.sent and one.first > state.ts:
            _count_newer(outcome, device, one, state, limit_milliwatt)
        else:
            late[device] = one
    most = _NEIGHBOURS
    while late:
        neighbours = await _fetch(connection, stream, late, states, most)
        for device, near in neighbours.items():
            if near.count_into(outcome, device, late[device], states[device], limit_milliwatt):
                del late[device]
        most *= 10
    return outcome


def _count_newer(outcome: Recount, device: int, asked: Asked, state: State, limit_milliwatt: int) -> None:
    """Counts readings that are newer than the state, which stands for all before them."""
    base, sent = state.base(), asked.sent
    if state.ts > NEVER:
        sent = [(state.ts, state.milliwh), *sent]
    energies, last_base = count(sent, base, limit_milliwatt)
    # A register that did not fit may turn out to be a glitch, now that another follows.
    is_doubtful = base and not (state.milliwh is None or fits(base, state.ts, state.milliwh, limit_milliwatt))
    if is_doubtful and energies[:1] != count(sent[:1], base, limit_milliwatt).energies:
        outcome.corrected.append((state.ts, device, energies[0]))
    outcome.energies[device] = dict(zip(map(itemgetter(0), sent), energies, strict=True))
    outcome.counters[device] = (*(last_base or (None, None)), state.with_differences(asked.sent))


class _Near(NamedTuple):
    """A device's readings about those asked for, in order, with the energies of the stored ones by their instants.

    They begin with the device's first one, or end with its last one, where this is said.
    """

    shown: list[Shown]
    energies: dict[int, int | None]
    is_from_first: bool
    is_to_last: bool

    def count_into(self, outcome: Recount, device: int, asked: Asked, state: State, limit_milliwatt: int) -> bool:
        """Counts what has changed; returns False when more readings are needed."""
        start, end = self._start(asked.first, limit_milliwatt), self._end(asked.last, limit_milliwatt)
        if start is None or end is None:
            return False
        before = self.shown[start - 1] if start else (0, None)
        base = None if before[1] is None else (before[0], before[1])
        energies, last_base = count(self.shown[start:], base, limit_milliwatt)
        of_device = outcome.energies.setdefault(device, {})
        for place in range(start, end + 1):
            (ts, milliwh), energy = self.shown[place], energies[place - start]
            if ts not in self.energies:
                of_device[ts] = energy
            elif milliwh is not None and energy != self.energies[ts] and (place or energy is not None):
                # The first one of all keeps its energy: the reading before it was dropped.
                outcome.corrected.append((ts, device, energy))
        last = last_base if self.is_to_last and self.shown else state.base()
        outcome.counters[device] = (*(last or (None, None)), state.with_differences(asked.sent))
        outcome.late.append(device)
        return True

    def _start(self, first: int, limit_milliwatt: int) -> int | None:
        """Returns from where on to count: the reading after one that is no glitch, before the one before `first`."""
        if self.is_from_first:
            return 0
        before = bisect_left(self.shown, first, key=itemgetter(0)) - 1
        for place in range(before - 1, 0, -1):
            if self._is_sound(place, limit_milliwatt):
                return place + 1
        return None

    def _end(self, last: int, limit_milliwatt: int) -> int | None:
        """Returns until where to count: what follows a reading that is no glitch, two after `last`, is as it was."""
        if self.is_to_last:
            return len(self.shown) - 1
        at = bisect_right(self.shown, last, key=itemgetter(0)) - 1
        for place in range(max(at, 0) + 2, len(self.shown) - 1):
            if self._is_sound(place, limit_milliwatt):
                return place
        return None

    def _is_sound(self, place: int, limit_milliwatt: int) -> bool:
        return is_sound(self.shown[place - 1], self.shown[place], self.shown[place + 1], limit_milliwatt)


async def _fetch(
    connection: Connection, stream: Stream, asked: Mapping[int, Asked], states: Mapping[int, State], most: int
) -> dict[int, _Near]:
    """Returns what is stored between the bounds, and at most so many readings of registers on either side."""
    bounds = {device: (one.first, one.last) for device, one in asked.items()}
    stored: dict[int, dict[int, tuple[int | None, int | None]]] = {device: {} for device in asked}
    for device, ts, milliwh, energy in await statements.fetch_registers(connection, stream, bounds, most):
        stored[device][ts] = milliwh, energy
    shown = {
        device: dict(one.sent) | {ts: milliwh for ts, (milliwh, _) in stored[device].items()}
        for device, one in asked.items()
    }
    # Which instants there are differences at is not known of readings before this.
    since = {device: states[device].with_differences([]) for device in asked}
    gaps = [
        (device, ts, max(following, ts + 1))
        for device in asked
        for (ts, milliwh), (following, next_milliwh) in pairwise([*sorted(shown[device].items()), (0, None)])
        if ts < since[device] and milliwh is not None and (next_milliwh is not None or ts not in stored[device])
    ]
    for device, ts in await statements.fetch_differences(connection, stream, gaps):
        shown[device][ts] = None
        stored[device][ts] = None, None
    return {
        device: _Near(
            sorted(shown[device].items()),
            {ts: energy for ts, (_, energy) in stored[device].items()},
            sum(ts < first and milliwh is not None for ts, (milliwh, _) in stored[device].items()) < most,
            sum(ts > last and milliwh is not None for ts, (milliwh, _) in stored[device].items()) < most,
        )
        for device, (first, last) in bounds.items()
    }
