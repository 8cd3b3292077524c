"""The energies of readings of registers in a store transaction: of those that it stores, and of their neighbours.

The latest state of a device is the lock on its readings. A transaction that stores registers locks the states of their
devices before it reads neighbours. Any other locks the states of its devices when it merges them, after its COPY; only
then it knows which of them have sent registers, and counts these again. So of two, the second sees what the first did.

What is newer than the state needs no neighbour but the state. A late reading has its neighbours fetched
(late_registers.py).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter

from app.ingest.batch import Row
from app.ingest.store import register_statements as statements
from app.ingest.store.late_registers import Recount, asked_of, recount
from app.ingest.store.statements import SQL, Connection
from app.telemetry.instant import HOUR_US
from app.telemetry.reading import Stream
from app.telemetry.register import MINUTES_OF_HOUR, can_flow, fits


class Counting:
    """The counting of a stream's rows. The states of the devices that send registers are locked."""

    def __init__(self, stream: Stream, rows: list[Row], states: Mapping[int, Row], limit_milliwatt: int) -> None:
        self._stream, self._rows, self._states, self._limit_milliwatt = stream, rows, states, limit_milliwatt
        self._place = SQL[stream].energy
        self.recount = Recount({}, [], {}, [])

    def steady(self) -> Iterable[Row]:
        """Yields the rows for COPY, but for those of devices in `others`, which are known at its end.

        A steady register goes up from its state on. Nearly all do: one pass, which counts while the database stores,
        takes a fifth of the time. The index of registers begins with the device: in its order, COPY takes four fifths.
        """
        return self._count_steady() if self._states else self._rows

    def _count_steady(self) -> Iterator[Row]:
        place, after = self._place, self._place + 1
        for device, group in groupby(sorted(self._rows, key=itemgetter(1)), key=itemgetter(1)):
            state = self._states.get(device)
            if state is None:
                yield from group
            elif energies := _steady(state, together := [*group], self._limit_milliwatt):
                before = together[-2] if len(together) > 1 else state
                self.recount.counters[device] = before[0], before[-1], state[4]
                for row, energy in zip(together, energies, strict=True):
                    yield row[:place] + (energy,) + row[after:]  # noqa: RUF005 - the faster way

    async def others(self, connection: Connection) -> list[Row]:
        """Counts the devices that were not steady; returns their rows for COPY, in order."""
        others = self._states.keys() - self.recount.counters.keys()
        if not others:
            return []
        rows = [row for row in self._rows if row[1] in others]
        outcome = await recount(connection, self._stream, asked_of(rows), self._states, self._limit_milliwatt)
        self.recount.corrected.extend(outcome.corrected)
        self.recount.counters.update(outcome.counters)
        self.recount.late.extend(outcome.late)
        place, energies = self._place, outcome.energies
        return [
            row if row[-1] is None else (*row[:place], energies[row[1]].get(row[0]), *row[place + 1 :]) for row in rows
        ]

    async def all(self, connection: Connection) -> list[Row]:
        """Counts all devices, with their neighbours; returns all rows, in order."""
        complete = iter(await self.others(connection))
        return [next(complete) if row[1] in self._states else row for row in self._rows]


async def begin_counting(connection: Connection, stream: Stream, rows: list[Row], limit_milliwatt: int) -> Counting:
    """Locks the states of devices that send registers."""
    devices = {row[1] for row in rows if row[-1] is not None}
    states = await statements.lock(connection, stream, sorted(devices)) if devices else {}
    return Counting(stream, rows, states, limit_milliwatt)


def _steady(state: Row, rows: Sequence[Row], limit_milliwatt: int) -> list[int]:
    """Returns the energies of a device's rows when its register goes up from its state on, in order; else nothing."""
    if state[-1] is None or not (state[2] is None or fits(state[2:4], state[0], state[-1], limit_milliwatt)):
        return []
    energies, last, least = list[int](), state, limit_milliwatt // MINUTES_OF_HOUR
    for row in rows:
        if row[-1] is None or row[0] <= last[0]:
            return []
        rise = row[-1] - last[-1]
        if rise < 0 or (rise > least and not can_flow(rise, row[0] - last[0], limit_milliwatt)):
            return []
        energies.append(rise)
        last = row
    return energies


async def correct(connection: Connection, stream: Stream, outcome: Recount, near: Sequence[Row]) -> bool:
    """Writes what has changed: states, and energies in the hours of the rows. Returns True when others are due.

    On TimescaleDB, a transaction invalidates the aggregates over the whole span between its oldest and newest row.
    """
    counters = {device: outcome.counters[device] for device in outcome.late}
    await statements.write_counters(connection, stream, counters)
    if not outcome.corrected:
        return False
    instants = [row[0] for row in near]
    hours = range(min(instants, default=0) // HOUR_US, max(instants, default=-1) // HOUR_US + 1)
    here = sorted(row for row in outcome.corrected if row[0] // HOUR_US in hours)
    due = [row for row in outcome.corrected if row[0] // HOUR_US not in hours]
    if here:
        await statements.write_energies(connection, stream, here)
    if due:
        await statements.note_due(connection, stream, due)
    return bool(due)
