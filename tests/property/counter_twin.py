"""The efficiency of counters once more: slow, from the definitions, one elementary stretch of time after the other.

Nothing of the service's computation is used but the form of its input, and the names of what it answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import floor

from app.analytics.efficiency.pairs import Evidence
from app.analytics.efficiency.rows import Mapping

MINUTE = 60_000_000
HOUR = 60 * MINUTE


@dataclass(frozen=True)
class Minute:
    """A row of the minute aggregates."""

    first: int
    last: int
    milliwh: int | None
    readings: int
    meter: int | None = None


@dataclass(frozen=True)
class Span:
    """The time from one point to the next: `even` energy, one of a silence, or nothing is known."""

    start: int
    end: int
    milliwh: int
    kind: str
    meter: int | None
    is_assumed: bool = False

    @property
    def takes(self) -> bool:
        return Fraction(self.milliwh * HOUR, self.end - self.start) >= 50_000

    @property
    def power(self) -> Fraction:
        return Fraction(self.milliwh, self.end - self.start)


def spans_of(minutes: Sequence[Minute], mappings: Sequence[Mapping], gap: int, limit: int) -> list[Span]:
    rows = sorted(minutes, key=lambda row: row.last)
    found: list[Span] = []
    for number, row in enumerate(rows):
        before = rows[number - 1] if number else None
        if before is None or row.first - before.last > 4 * HOUR:
            start, kind = opening(rows, number)
            if before is not None:
                found.append(Span(before.last, start, 0, "unknown", None))
            is_assumed = kind in ("even", "lone")
        else:
            start, is_assumed = before.last, False
            longest = max(gap, min(90 * MINUTE, floor(Fraction(3, 2) * interval(rows, number, start))))
            kind = "even" if row.first - start <= longest else "silence"
        milliwh = row.milliwh
        if milliwh is None or (Fraction(milliwh * HOUR, row.last - start) > limit and kind != "lone"):
            milliwh, kind = 0, "unknown"
        meter = row.meter
        if meter is None:
            mapped = [one.meter_id for one in mappings if one.from_us <= start < one.to_us]
            meter = mapped[0] if mapped else None
        found.append(Span(start, row.last, milliwh, kind, meter, is_assumed))
    return found


def interval(rows: Sequence[Minute], number: int, start: int | None) -> int:
    """Returns the median of five intervals: of the spans before, as far as there are any near, else after."""

    def of(position: int) -> int:
        return (rows[position].last - rows[position - 1].last) // rows[position].readings

    before = [n for n in range(1, number) if start is not None and rows[n - 1].last >= start - HOUR]
    after = [n for n in range(number + 1, len(rows)) if rows[n].last <= rows[number].last + HOUR]
    chosen = (before[::-1][:5] + after)[:5] if len(before) < 5 else before[-5:]
    # Only the next five are looked at.
    chosen = [n for n in chosen if n <= number + 5]
    if not chosen:
        return MINUTE
    values = sorted(of(position) for position in chosen)
    middle = values[(len(values) - 1) // 2], values[len(values) // 2]
    return floor(Fraction(sum(middle), 2))


def opening(rows: Sequence[Minute], number: int) -> tuple[int, str]:
    row = rows[number]
    start = row.first - min(interval(rows, number, None), 30 * MINUTE)
    following = [n for n in range(number + 1, min(len(rows), number + 6)) if rows[n].last <= row.last + HOUR]
    powers = [Fraction(rows[n].milliwh or 0, rows[n].last - rows[n - 1].last) for n in following]
    if not row.milliwh or Fraction(row.milliwh, row.last - start) <= Fraction(3, 2) * max(powers, default=Fraction(0)):
        return start, "even"
    return (row.last - 4 * HOUR, "unknown") if following else (start, "lone")


class Device:
    """A device by its spans."""

    def __init__(self, spans: list[Span]) -> None:
        self.spans = spans
        self.instants = sorted({instant for span in spans for instant in (span.start, span.end)})

    def at(self, instant: int) -> int:
        """Returns the energy up to an instant, rounded down."""
        total = Fraction(0)
        for span in self.spans:
            if span.end <= instant:
                total += span.milliwh
            elif span.start < instant:
                total += Fraction(span.milliwh * (instant - span.start), span.end - span.start)
        return floor(total)

    def flowed(self, a: int, b: int) -> int:
        return self.at(b) - self.at(a)

    def over(self, a: int, b: int) -> list[Span]:
        return [span for span in self.spans if span.start < b and span.end > a]

    def the(self, a: int, b: int) -> Span | None:
        """Returns the span that holds an elementary stretch."""
        return next((span for span in self.spans if span.start <= a and b <= span.end), None)

    def cut(self, instant: int) -> int:
        return sum(span.milliwh for span in self.spans if span.start < instant < span.end)

    def seen_charging(self, meter: int) -> list[Span]:
        return [span for span in self.spans if span.kind == "even" and span.takes and span.meter == meter]


def takes_at(other: Device, meter: int) -> Iterator[tuple[int, int]]:
    """Yields when another vehicle takes energy at the meter, or may have."""
    charging = other.seen_charging(meter)
    for span in charging:
        yield span.start, span.end
    for span in other.spans:
        if span.kind == "even" or span.meter not in (meter, None) or span.milliwh <= 1000:
            continue
        at = [one for one in other.spans if one.meter == meter]
        if span.meter is None and not any(
            (one.start < span.start and one.end > span.start - HOUR)
            or (one.end > span.end and one.start < span.end + HOUR)
            for one in at
        ):
            continue
        if any(one.end == span.start for one in charging):
            yield span.start, span.end
            continue
        beside = [
            one
            for one in other.spans
            if one.end - one.start <= 90 * MINUTE
            and (span.start - HOUR <= one.start < one.end <= span.start or one.start >= span.end >= one.end - HOUR)
        ]
        highest = max((one.power for one in beside), default=Fraction(0))
        needed = floor(Fraction(3, 2) * span.milliwh / highest) if highest else 4 * HOUR
        after = [one for one in other.spans if one.start == span.end and one.kind == "even"]
        is_first = bool(after) and needed <= 2 * (after[0].end - after[0].start)
        yield max(span.start, span.end - needed) if is_first else span.start, span.end


def doubts(other: Device, meter: Device, meter_id: int) -> Iterator[tuple[int, int]]:
    blank = [span for span in meter.spans if span.kind != "even" or not span.takes]
    for span in other.seen_charging(meter_id):
        after = [one for one in other.spans if one.start == span.end]
        if not after or after[0].kind != "even":
            until = min([span.end + 8 * HOUR] + [one.end for one in after])
            yield span.end, min([until] + [one.start for one in blank if span.end <= one.start and one.end <= until])
        before = [one for one in other.spans if one.end == span.start]
        if not before or before[0].kind != "even":
            since = max([span.start - 8 * HOUR] + [one.start for one in before])
            yield max([since] + [one.end for one in blank if since <= one.start and one.end <= span.start]), span.start
    for start, end in takes_at(other, meter_id):
        if end - start == 4 * HOUR:
            yield max([end - 8 * HOUR] + [instant for instant in other.instants if instant < start]), start


def within(stretches: Sequence[tuple[int, int]], a: int, b: int) -> bool:
    return any(start < b and end > a for start, end in stretches)


def joined(pieces: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for a, b in sorted(pieces):
        if found and found[-1][1] == a:
            found[-1] = found[-1][0], b
        else:
            found.append((a, b))
    return found


def silent(vehicle: Device, meter: Device, meter_id: int) -> list[tuple[int, int]]:
    """Returns the silences of both, overlapping ones as one, that both counters know the ends of."""
    silences = sorted(
        (span.start, span.end)
        for device in (vehicle, meter)
        for span in device.spans
        if span.kind == "silence" and (device is meter or span.meter == meter_id)
    )
    clusters: list[tuple[int, int]] = []
    for a, b in silences:
        if clusters and a < clusters[-1][1]:
            clusters[-1] = clusters[-1][0], max(b, clusters[-1][1])
        else:
            clusters.append((a, b))
    found = []
    for a, b in clusters:
        knows = all(
            bool(device.spans)
            and device.spans[0].start <= a
            and b <= device.spans[-1].end
            and all(
                span.kind == "even" or (span.kind == "silence" and a <= span.start and span.end <= b)
                for span in device.over(a, b)
            )
            for device in (vehicle, meter)
        )
        here = all(span.meter == meter_id or span.milliwh == 0 for span in vehicle.over(a, b))
        if b - a <= 4 * HOUR and knows and here:
            found.append((a, b))
    return found


class Twin:
    """A vehicle at a meter, in elementary stretches."""

    def __init__(self, vehicle: Device, meter: Device, meter_id: int, others: Sequence[Device]) -> None:
        self.vehicle, self.meter, self.meter_id = vehicle, meter, meter_id
        self.cuts = [one for other in others for one in takes_at(other, meter_id)]
        self.doubt = [one for other in others for one in doubts(other, meter, meter_id) if one[0] < one[1]]
        instants = sorted({*vehicle.instants, *meter.instants, *(t for one in (*self.cuts, *self.doubt) for t in one)})
        self.pieces = list(pairwise(instants))
        self.here = [piece for piece in self.pieces if self._is_here(*piece)]
        plain = [piece for piece in self.here if self._is_metered(*piece) and not within(self.cuts, *piece)]
        self.plain = joined(plain)
        self.taken = [
            one for one in silent(vehicle, meter, meter_id) if not within(self.cuts, *one) and self._fits(*one)
        ]
        self.taken += [
            (span.start, span.end)
            for span in vehicle.spans
            for opened in meter.spans
            if (span.kind, opened.kind, span.meter) == ("lone", "lone", meter_id)
            if (span.start, span.end) == (opened.start, opened.end) and not within(self.cuts, span.start, span.end)
        ]
        self.edges, self.unsure = self._edges()
        self.vehicle, self.meter = self._spread(vehicle, meter), self._spread(meter, vehicle)

    def _spread(self, device: Device, other: Device) -> Device:
        """Returns the device with its taken silences cut at the other's instants, in the other's proportions."""
        spans = list[Span]()
        for span in device.spans:
            a, b = span.start, span.end
            is_taken = span.kind == "silence" and any(start <= a and b <= end for start, end in self.taken)
            whole = other.flowed(a, b) if is_taken else 0
            instants = [a, *(t for t in other.instants if a < t < b and whole), b]
            before = [span.milliwh * other.flowed(a, t) // whole if whole else 0 for t in instants[:-1]]
            for sooner, later in zip(pairwise(instants), pairwise([*before, span.milliwh]), strict=True):
                spans.append(replace(span, start=sooner[0], end=sooner[1], milliwh=later[1] - later[0]))
        return Device(spans)

    def _is_here(self, a: int, b: int) -> bool:
        span = self.vehicle.the(a, b)
        return span is not None and span.kind == "even" and span.takes and span.meter == self.meter_id

    def _is_metered(self, a: int, b: int) -> bool:
        span = self.meter.the(a, b)
        return span is not None and span.kind == "even"

    def _fits(self, a: int, b: int) -> bool:
        near = [(max(x, a - HOUR), min(y, b + HOUR)) for x, y in self.plain]
        near = [(x, y) for x, y in near if x < y]
        ac, dc = (sum(device.flowed(*one) for one in near) for device in (self.meter, self.vehicle))
        if self.meter.flowed(a, b) <= 10_000 or ac == 0 or dc == 0:
            return False
        rest = Fraction(dc, ac)
        return abs(Fraction(self.vehicle.flowed(a, b), self.meter.flowed(a, b)) - rest) <= Fraction(12, 100) * rest

    def _edges(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        vehicle, meter = self.vehicle, self.meter
        here, edges, unsure = joined(self.here), [], []
        for lo, hi in self.plain:
            opened = [span for span in vehicle.spans if span.start == lo and span.is_assumed]
            unsure += [(lo, span.milliwh // 4) for span in opened if lo not in meter.instants]
            if not any(b == lo for _, b in self.taken):
                before = [span for span in vehicle.spans if span.end == lo]
                starts = any(a == lo for a, _ in here) and (opened or any(one.kind == "even" for one in before))
                cut = [span for span in meter.spans if span.start < lo < span.end]
                idle = [span for span in meter.spans if cut and span.end == cut[0].start]
                until = min(hi, lo + 30 * MINUTE)
                if starts and idle and self._idles(idle[0], lo, until) and not within(self.cuts, cut[0].start, lo):
                    edges.append((cut[0].start, lo))
                else:
                    unsure.append((lo, (meter.cut(lo) + vehicle.cut(lo)) // 2))
            if not any(a == hi for a, _ in self.taken):
                cut = [span for span in meter.spans if span.start < hi < span.end]
                idle = [span for span in meter.spans if cut and span.start == cut[0].end]
                stops, since = any(b == hi for _, b in here), max(lo, hi - 30 * MINUTE)
                if stops and idle and self._idles(idle[0], since, hi) and not within(self.cuts, hi, cut[0].end):
                    edges.append((hi, cut[0].end))
                    if not any(span.start == hi and span.kind == "even" for span in vehicle.spans):
                        unsure.append((hi, meter.flowed(hi, cut[0].end) // 2))
                else:
                    unsure.append((hi, (meter.cut(hi) + vehicle.cut(hi)) // 2))
        return edges, unsure

    def _idles(self, span: Span, a: int, b: int) -> bool:
        return span.kind == "even" and span.power < Fraction(self.meter.flowed(a, b), b - a) / 20

    def evidence(self, start: int, end: int) -> Evidence:
        """Returns the evidence in [start, end), summed over elementary stretches."""
        instants = {start, end, *(t for piece in (*self.pieces, *self.edges) for t in piece if start < t < end)}
        ordered = sorted(instants)
        sums = dict.fromkeys(Evidence._fields, 0)
        sums["unsure_milliwh"] = sum(milliwh for instant, milliwh in self.unsure if start <= instant < end)
        for a, b in pairwise(ordered):
            span = self.vehicle.the(a, b)
            dc, ac = self.vehicle.flowed(a, b), self.meter.flowed(a, b)
            doubtful = within(self.doubt, a, b)
            if span is not None and span.meter == self.meter_id:
                sums["dc_milliwh"] += dc
            if within(self.plain, a, b) or within(self.taken, a, b):
                sums["paired_ac_milliwh"] += ac
                sums["paired_dc_milliwh"] += dc
                sums["paired_us"] += b - a
                sums["doubtful_ac_milliwh"] += ac * doubtful
                sums["doubtful_dc_milliwh"] += dc * doubtful
                sums["doubtful_us"] += (b - a) * doubtful
                continue
            if within(self.edges, a, b):
                sums["paired_ac_milliwh"] += ac
                sums["doubtful_ac_milliwh"] += ac * doubtful
            if self._is_here(a, b) and within(self.cuts, a, b):
                sums["shared_us"] += b - a
            elif span is not None and span.takes and span.meter == self.meter_id:
                sums["unpaired_us"] += b - a
        return Evidence(**sums)
