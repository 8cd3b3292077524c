"""The meeting of a vehicle's counter with those of its meters: how much of the AC energy reached its battery. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from app.analytics.efficiency.counter import Counter
from app.analytics.efficiency.doubt import doubtful_beside
from app.analytics.efficiency.edges import find_edges
from app.analytics.efficiency.silences import fits, silences
from app.analytics.efficiency.stretches import Stretch, Stretches, common, touches, union, without

Kind: TypeAlias = Literal["paired", "shared", "unpaired"]


class Evidence(NamedTuple):
    """The evidence on a vehicle at a meter in a window. That of adjacent windows adds up to that of the whole.

    `dc_milliwh` is all DC of the vehicle at the meter, `unsure_milliwh` half the energy of spans that edges cut.
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


class Pair(msgspec.Struct, frozen=True):
    """A vehicle at one meter. Both counters count in `paired`, only the meter's in `edges`; `unsure` is by instant."""

    vehicle: Counter
    meter: Counter
    present: Stretches
    paired: Stretches
    edges: Stretches
    shared: Stretches
    unpaired: Stretches
    doubtful: Stretches
    unsure: list[tuple[int, int]]

    def between(self, start: int, end: int) -> Evidence:
        """Returns the evidence in [start, end)."""
        window = [(start, end)]
        both, edges = common(self.paired, window), common(self.edges, window)
        doubtful = common(both, self.doubtful)
        return Evidence(
            paired_ac_milliwh=self.meter.flowed_in(both) + self.meter.flowed_in(edges),
            paired_dc_milliwh=self.vehicle.flowed_in(both),
            doubtful_ac_milliwh=self.meter.flowed_in(doubtful) + self.meter.flowed_in(common(edges, self.doubtful)),
            doubtful_dc_milliwh=self.vehicle.flowed_in(doubtful),
            dc_milliwh=self.vehicle.flowed_in(common(self.present, window)),
            unsure_milliwh=sum(milliwh for instant, milliwh in self.unsure if start <= instant < end),
            paired_us=_duration(both),
            shared_us=_duration(common(self.shared, window)),
            unpaired_us=_duration(common(self.unpaired, window)),
            doubtful_us=_duration(doubtful),
        )

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


def pair_counters(
    vehicle: Counter, meters: Mapping[int, Counter], others: Iterable[Counter] = ()
) -> dict[int | None, Pair]:
    """Pairs a vehicle with each meter that its spans are at; under None stands the rest of its time.

    `others` are all other vehicles that are at these meters, at whatever else.
    """
    others = [*others]
    empty = Counter([], [], [], set(), set())
    return {
        meter_id: _at_no_meter(vehicle, empty)
        if meter_id is None
        else _pair(
            vehicle, meter_id, meters.get(meter_id, empty), [other for other in others if meter_id in other.meters()]
        )
        for meter_id in vehicle.meters()
    }


def evidence_between(pairs: Mapping[int | None, Pair], start: int, end: int) -> dict[int | None, Evidence]:
    """Returns the evidence in [start, end) by meter, for those where the vehicle was or has evidence."""
    window = [(start, end)]
    return {
        meter_id: evidence
        for meter_id, pair in pairs.items()
        if any(evidence := pair.between(start, end)) or common(pair.present, window)
    }


def total(by_meter: Mapping[int | None, Evidence]) -> Evidence:
    """Returns the sum of the evidence at all meters, with the time but without the energy at no meter."""
    summed = (one if meter_id is not None else one._replace(dc_milliwh=0) for meter_id, one in by_meter.items())
    return Evidence(*map(sum, zip(*summed, strict=True)))


def _at_no_meter(vehicle: Counter, empty: Counter) -> Pair:
    present = vehicle.at_meter(None)
    return Pair(vehicle, empty, present, [], [], [], vehicle.taking(None), [], [])


def _pair(vehicle: Counter, meter_id: int, meter: Counter, others: Sequence[Counter]) -> Pair:
    here = vehicle.charging(meter_id)
    cuts = union(stretch for other in others for stretch in (*other.charging(meter_id), *other.catch_ups(meter_id)))
    plain = without(common(here, meter.cover()), cuts)
    # However long the energy of two lone readings flowed, it flowed in the same time if they came in the same.
    lone = {*vehicle.lone(meter_id)}.intersection(meter.lone(None))
    alone = (silence for silence in silences(vehicle, meter, meter_id) if not touches(cuts, *silence))
    taken = [silence for silence in alone if fits(vehicle, meter, plain, *silence)]
    taken += [opened for opened in lone if not touches(cuts, *opened)]
    edges, unsure = find_edges(vehicle, meter, here, plain, cuts, taken)
    paired = union((*plain, *taken))
    shared = without(common(here, cuts), paired)
    return Pair(
        vehicle,
        meter,
        present=vehicle.at_meter(meter_id),
        paired=paired,
        edges=without(union(edges), paired),
        shared=shared,
        unpaired=without(vehicle.taking(meter_id), union((*paired, *shared))),
        doubtful=union(stretch for other in others for stretch in doubtful_beside(other, meter, meter_id)),
        unsure=unsure,
    )


def _duration(stretches: Iterable[Stretch]) -> int:
    return sum([end - start for start, end in stretches])
