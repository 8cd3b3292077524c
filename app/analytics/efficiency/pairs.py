"""The meeting of a vehicle's counter with those of its meters: how much of the AC energy reached its battery. Pure."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, chain, pairwise
from operator import sub
from typing import Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np

from app.analytics.efficiency.counter import Counter, Numbers
from app.analytics.efficiency.doubt import doubtful_beside
from app.analytics.efficiency.edges import find_edges
from app.analytics.efficiency.silences import fits, silences, spread
from app.analytics.efficiency.stretches import Stretch, Stretches, common, touches, union, without

Kind: TypeAlias = Literal["paired", "shared", "unpaired"]


class Evidence(NamedTuple):
    """The evidence on a vehicle at a meter in a window. That of adjacent windows adds up to that of the whole.

    `dc_milliwh` is all DC of the vehicle at the meter, and 0 at no meter; `unsure_milliwh` is half the energy of spans
    that edges cut.
    """

    paired_ac_milliwh: int = 0
    paired_dc_milliwh: int = 0
    doubtful_ac_milliwh: int = 0
    doubtful_dc_milliwh: int = 0
    dc_milliwh: int = 0
    unsure_milliwh: int = 0
    paired_us: int = 0
    shared_us: int = 0
    unpaired_us: int = 0
    doubtful_us: int = 0


class Run(NamedTuple):
    """A stretch of a vehicle's time of one kind; doubtful time is paired."""

    from_us: int
    to_us: int
    kind: Kind
    is_doubtful: bool


class Flow:
    """The sum over some stretches up to any instant, of a counter's energy or of microseconds."""

    def __init__(self, stretches: Stretches, counter: Counter | None = None) -> None:
        self._counter = counter
        at = self._at = counter.at if counter else int
        self._starts = [start for start, _ in stretches]
        self._ends = [end for _, end in stretches]
        ats = [(at(start), at(end)) for start, end in stretches]
        before = accumulate((end - start for start, end in ats), initial=0)
        self._offsets = [total - start for total, (start, _) in zip(before, ats, strict=False)]

    def until(self, instant: int) -> int:
        """Returns the sum over the time before the instant."""
        last = bisect_left(self._starts, instant) - 1
        if last < 0:
            return 0
        return self._offsets[last] + self._at(min(instant, self._ends[last]))

    def until_each(self, instants: Numbers) -> Numbers:
        """Returns what until() does for each instant."""
        if not self._starts:
            return np.zeros_like(instants)
        last = np.searchsorted(np.array(self._starts), instants) - 1
        until = np.minimum(instants, np.array(self._ends)[last])
        flowed = self._counter.at_each(until) if self._counter else until
        return np.where(last < 0, 0, np.array(self._offsets)[last] + flowed)


class Flows(NamedTuple):
    """The flows behind the evidence of the same names."""

    paired_ac_milliwh: Flow
    paired_dc_milliwh: Flow
    doubtful_ac_milliwh: Flow
    doubtful_dc_milliwh: Flow
    dc_milliwh: Flow
    paired_us: Flow
    shared_us: Flow
    unpaired_us: Flow
    doubtful_us: Flow


class Pair(msgspec.Struct, frozen=True, dict=True):
    """A vehicle at one meter. Both counters count in `paired`, only the meter's in `edges`; `unsure` is by instant.

    In `alone` both cover the vehicle's time at the meter, whether it takes energy or not, and no other takes any;
    `others` is when each of them does, or may.
    """

    vehicle: Counter
    meter: Counter
    present: Stretches
    alone: Stretches
    paired: Stretches
    edges: Stretches
    shared: Stretches
    unpaired: Stretches
    doubtful: Stretches
    unsure: list[tuple[int, int]]
    others: Mapping[int, Sequence[Stretch]]

    @cached_property
    def flows(self) -> Flows:
        """The sums of the evidence, up to any instant."""
        drawn, doubtful = union((*self.paired, *self.edges)), common(self.paired, self.doubtful)
        return Flows(
            paired_ac_milliwh=Flow(drawn, self.meter),
            paired_dc_milliwh=Flow(self.paired, self.vehicle),
            doubtful_ac_milliwh=Flow(common(drawn, self.doubtful), self.meter),
            doubtful_dc_milliwh=Flow(doubtful, self.vehicle),
            dc_milliwh=Flow(self.present, self.vehicle),
            paired_us=Flow(self.paired),
            shared_us=Flow(self.shared),
            unpaired_us=Flow(self.unpaired),
            doubtful_us=Flow(doubtful),
        )

    def between(self, start: int, end: int) -> Evidence:
        """Returns the evidence in [start, end)."""
        (evidence,) = self.windows([start, end])
        return evidence

    def windows(self, bounds: Sequence[int]) -> list[Evidence]:
        """Returns the evidence between each two consecutive bounds."""
        return [Evidence(*map(sub, until, since)) for since, until in pairwise(map(self._until, bounds))]

    def _until(self, instant: int) -> Evidence:
        """Returns the evidence before an instant; hours and sessions ask for the same ones."""
        if instant not in self._known:
            unsure = sum([milliwh for at, milliwh in self.unsure if at < instant])
            sums = {name: flow.until(instant) for name, flow in zip(Flows._fields, self.flows, strict=True)}
            self._known[instant] = Evidence(**sums, unsure_milliwh=unsure)
        return self._known[instant]

    @cached_property
    def _known(self) -> dict[int, Evidence]:
        return {}

    def has_been(self, start: int, end: int) -> bool:
        """Returns True when the vehicle was at the meter in [start, end)."""
        return bool(common(self.present, [(start, end)]))

    def shared_with(self, start: int, end: int) -> set[int]:
        """Returns the vehicles with which the vehicle shared the meter in [start, end)."""
        shared = common(self.shared, [(start, end)])
        return {other for other, taking in self.others.items() if common(shared, union(taking))}

    def runs(self, start: int, end: int) -> list[Run]:
        """Returns the runs in [start, end), in order."""
        window = [(start, end)]
        paired = common(self.paired, window)
        kinds: list[tuple[Kind, bool, Stretches]] = [
            ("paired", False, without(paired, self.doubtful)),
            ("paired", True, common(paired, self.doubtful)),
            ("shared", False, common(self.shared, window)),
            ("unpaired", False, common(self.unpaired, window)),
        ]
        return sorted(Run(*stretch, kind, doubtful) for kind, doubtful, stretches in kinds for stretch in stretches)


Pairs: TypeAlias = dict[int | None, Pair]
"""A vehicle's pairs by meter; None stands for no meter."""


def pair_counters(vehicle: Counter, meters: Mapping[int, Counter], others: Iterable[tuple[int, Counter]] = ()) -> Pairs:
    """Pairs a vehicle with each meter that its spans are at; under None stands the rest of its time.

    `others` are all other vehicles that are at these meters, at whatever else, with their ids.
    """
    others = [*others]
    empty = Counter([], [], [], [], set(), set())
    return {
        meter_id: _at_no_meter(vehicle, empty)
        if meter_id is None
        else _pair(
            vehicle,
            meter_id,
            meters.get(meter_id, empty),
            {other: counter for other, counter in others if meter_id in counter.meters()},
        )
        for meter_id in vehicle.meters()
    }


def evidence_between(pairs: Pairs, start: int, end: int) -> dict[int | None, Evidence]:
    """Returns the evidence in [start, end) by meter, for those where the vehicle was or has evidence."""
    return {
        meter_id: evidence
        for meter_id, pair in pairs.items()
        if any(evidence := pair.between(start, end)) or pair.has_been(start, end)
    }


def total(summed: Iterable[Evidence]) -> Evidence:
    """Returns the sum of the evidence."""
    return Evidence(*map(sum, zip(*summed, strict=True)))


def _at_no_meter(vehicle: Counter, empty: Counter) -> Pair:
    return Pair(vehicle, empty, [], [], [], [], [], unpaired=vehicle.taking(None), doubtful=[], unsure=[], others={})


def _pair(vehicle: Counter, meter_id: int, meter: Counter, others: Mapping[int, Counter]) -> Pair:
    here = vehicle.charging(meter_id)
    taking = {one: [*other.charging(meter_id), *other.catch_ups(meter_id)] for one, other in others.items()}
    cuts = union(chain.from_iterable(taking.values()))
    alone = without(common(vehicle.known_at(meter_id), meter.cover()), cuts)
    plain = common(here, alone)
    # However long the energy of two lone readings flowed, it flowed in the same time if they came in the same.
    lone = {*vehicle.lone(meter_id)}.intersection(meter.lone(None))
    uncut = (silence for silence in silences(vehicle, meter, meter_id) if not touches(cuts, *silence))
    taken = [silence for silence in uncut if fits(vehicle, meter, plain, *silence)]
    taken += [opened for opened in lone if not touches(cuts, *opened)]
    edges, unsure = find_edges(vehicle, meter, here, plain, cuts, taken)
    paired = union((*plain, *taken))
    shared = without(common(here, cuts), paired)
    return Pair(
        spread(vehicle, meter, taken),
        spread(meter, vehicle, taken),
        present=vehicle.at_meter(meter_id),
        alone=alone,
        paired=paired,
        edges=without(union(edges), paired),
        shared=shared,
        unpaired=without(vehicle.taking(meter_id), union((*paired, *shared))),
        doubtful=union(stretch for other in others.values() for stretch in doubtful_beside(other, meter, meter_id)),
        unsure=unsure,
        others=taking,
    )
