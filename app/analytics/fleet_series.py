"""The fleet's readings over time, as columns."""

from bisect import bisect_left
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import msgspec
from sqlalchemy import BigInteger, ColumnElement, FromClause, Select, bindparam, cast, func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.analytics.buckets import Buckets, of_zone
from app.analytics.freshness import Instants, fetch_instants
from app.analytics.power import DEMAND_MINUTES, SETTLED_SECONDS, kilowatts
from app.analytics.series import Series, fetch_columns
from app.analytics.series_source import FLEET
from app.analytics.window import Window
from app.database import snapshot
from app.tables import fleet_spread

# Over less time, energies of two clocks are compared, not losses.
_EFFICIENCY_MINUTES = 60
_LEAST_MINUTES = 15
_FIVE_MINUTES = 300


class FleetColumns(msgspec.Struct, frozen=True, rename="camel"):
    """Energy in kWh, power in kW; null where that stream was silent.

    `efficiency_ratio` is all DC over all AC, paired or not, over the bucket or the 60 minutes that end with it,
    whichever is longer; null where that is less than 15 minutes. Power is the mean over the bucket, or over the five
    minutes of the clock that it lies in; null where these are not full, or where it is not known yet when their energy
    flowed.
    """

    t: list[int]
    ac_kwh: list[float | None]
    dc_kwh: list[float | None]
    meter_readings: list[int | None]
    vehicle_readings: list[int | None]
    efficiency_ratio: list[float | None]
    ac_kw: list[float | None]
    dc_kw: list[float | None]


class FleetPeak(msgspec.Struct, frozen=True):
    """The greatest mean power in kW over 15 minutes, of each side; null in buckets wider than a minute."""

    ac: float | None
    dc: float | None


class FleetSeries(Series, frozen=True, rename="camel"):
    """The fleet's buckets that have readings, in order. All readings committed before `as_of` are included.

    Buckets before `kept_from` are no longer kept; null means that all are kept. With a `site`, they are those of its
    meters and vehicles.
    """

    site: str | None
    peak_kw: FleetPeak
    columns: FleetColumns


class Moved(NamedTuple):
    """Energy to be added to five minutes or an hour; the readings there for which that was found out, their energy."""

    ac: int
    dc: int
    readings: int
    read: int


Spread: TypeAlias = dict[int, Moved] | None
"""What to move, by the start of five minutes or hours; where a start is missing, that is not known. None: nothing."""


async def fetch_fleet_series(pool: AsyncEngine, buckets: Buckets) -> FleetSeries:
    """Returns the series of all meters and vehicles together."""
    wider = wider_of(buckets)
    async with pool.connect() as connection:
        instants = await fetch_instants(connection, *FLEET.aggregates[wider.source])
        buckets.refuse_dropped(instants.kept_from)
        async with snapshot(connection):
            sums = await fetch_columns(connection, FLEET, wider)
            spread = await fetch_spread(connection, wider, _SPREAD)
    return series_of(sums, spread, buckets, instants)


def series_of(
    sums: list[list[Any]], spread: Spread, buckets: Buckets, instants: Instants, *, site: str | None = None
) -> FleetSeries:
    """Returns the series from the columns of wider_of(buckets), and from what is to be moved in them.

    That of a site has no efficiency: its vehicles also charge elsewhere, and others charge there.
    """
    wider, now = wider_of(buckets), datetime.now(UTC).timestamp()
    power = _power(sums, spread, wider, now) if buckets.zone is None else _power_of_zone(sums, wider, now)
    peak = FleetPeak(*(_peak(side, buckets) for side in power))
    # Of a zone, each bucket has a power of its own.
    step = max(buckets.seconds, _FIVE_MINUTES) if buckets.zone is None else 1
    first, after = (bisect_left(sums[0], instant.timestamp()) for instant in (buckets.start, buckets.end))
    ratios = _ratios(sums, buckets.seconds, now)[first:after]
    t, ac, dc, meter_readings, vehicle_readings = (column[first:after] for column in sums)
    powers = [[side.get(start // step * step) for start in t] for side in power]
    if site is not None:
        ratios = [None for _ in ratios]
    columns = FleetColumns(t, _kwh(ac), _kwh(dc), meter_readings, vehicle_readings, ratios, *powers)
    return FleetSeries("fleet", *buckets[:3], *instants, site, peak, columns)


def wider_of(buckets: Buckets) -> Buckets:
    """Returns the buckets with one on either side; minutes in whole fives, and with the hour before."""
    if buckets.zone is not None:
        tick = timedelta(microseconds=1)
        return of_zone(Window(buckets.start - tick, buckets.end + tick), buckets.width, buckets.zone)
    step, before = timedelta(seconds=max(buckets.seconds, _FIVE_MINUTES)), timedelta(0)
    if buckets.width == "1m":
        before = timedelta(minutes=_EFFICIENCY_MINUTES)
    beyond = timedelta(seconds=-buckets.end.timestamp() % step.total_seconds())
    within = timedelta(seconds=buckets.start.timestamp() % step.total_seconds())
    return buckets._replace(start=buckets.start - within - before - step, end=buckets.end + beyond + step)


async def fetch_spread(connection: AsyncConnection, buckets: Buckets, statement: Select[Any], **more: Any) -> Spread:
    """Returns what to move, by a statement of spread_statement(); None for days, in which a silence is little."""
    if buckets.width in ("1d", "1mo"):
        return None
    step = timedelta(seconds=max(buckets.seconds, _FIVE_MINUTES))
    values = {"step": step, "range_from": buckets.start, "range_to": buckets.end, **more}
    rows = (await connection.execute(statement, values)).one()
    t, *moved = (column or [] for column in rows)
    return dict(zip(t, map(Moved._make, zip(*moved, strict=True)), strict=True))


Power = dict[int, float | None]
"""Power in kW by the start of five minutes, or of wider buckets."""


def _power(sums: list[list[Any]], spread: Spread, buckets: Buckets, now: float) -> tuple[Power, Power]:
    """Returns the power of AC and of DC in full buckets, where energy is spread for each reading in them."""
    step = max(buckets.seconds, _FIVE_MINUTES)
    readings: defaultdict[int, int] = defaultdict(int)
    read: defaultdict[int, int] = defaultdict(int)
    energies: tuple[dict[int, int], dict[int, int]] = {}, {}
    for t, ac, dc, meters, vehicles in zip(*sums, strict=True):
        at = t // step * step
        readings[at] += (meters or 0) + (vehicles or 0)
        read[at] += (ac or 0) + (dc or 0)
        for side, energy in zip(energies, (ac, dc), strict=True):
            if energy is not None:
                side[at] = side.get(at, 0) + energy
    for at, moved in (spread or {}).items():
        for side, energy in zip(energies, moved[:2], strict=True):
            if energy:
                side[at] = side.get(at, 0) + energy

    def is_spread(at: int) -> bool:
        known = (0, 0) if spread is None or at not in spread else spread[at][2:]
        return spread is None or (readings.get(at, 0), read.get(at, 0)) == known

    # The next five minutes' readings hold energy of these. Data that begin or end within a bucket do not fill it.
    def is_known(at: int, side: dict[int, int]) -> bool:
        is_over = at + step + SETTLED_SECONDS <= now and at - step in side and at + step in side
        return is_over and is_spread(at) and (step > _FIVE_MINUTES or is_spread(at + step))

    ac, dc = (
        {at: kilowatts(energy, step) if is_known(at, side) else None for at, energy in side.items()}
        for side in energies
    )
    return ac, dc


def _power_of_zone(sums: list[list[Any]], buckets: Buckets, now: float) -> tuple[Power, Power]:
    """Returns the power of AC and of DC in full days or months that are over, all but the first and the last one."""
    starts, *energies, _, _ = sums
    bounds = [int(bound.timestamp()) for bound in buckets.bounds]

    def powers(of_side: list[int | None]) -> Power:
        known = {start: energy for start, energy in zip(starts, of_side, strict=True) if energy is not None}
        return {
            start: kilowatts(known[start], end - start)
            if before in known and end in known and end + SETTLED_SECONDS <= now
            else None
            for before, start, end in zip(bounds, bounds[1:], bounds[2:], strict=False)
            if start in known
        }

    ac, dc = map(powers, energies)
    return ac, dc


def _peak(power: Power, buckets: Buckets) -> float | None:
    """Returns the greatest mean over 15 minutes in the buckets of which the power is known."""
    if buckets.width != "1m":
        return None
    number = 60 * DEMAND_MINUTES // _FIVE_MINUTES
    means = []
    for at in power:
        inside = buckets.start.timestamp() <= at and at + 60 * DEMAND_MINUTES <= buckets.end.timestamp()
        parts = [power.get(at + _FIVE_MINUTES * part) for part in range(number)] if inside else []
        known = [part for part in parts if part is not None]
        if len(known) == number:
            means.append(sum(known) / number)
    return max(means, default=None)


def _ratios(sums: list[list[Any]], seconds: int, now: float) -> list[float | None]:
    """Returns DC over AC of the buckets with both, or of those in the hour that ends with a minute."""
    t, *energies, _, _ = sums
    both = [ac is not None and dc is not None for ac, dc in zip(*energies, strict=True)]
    ac, dc, minutes = (
        [0, *accumulate(value if is_in else 0 for value, is_in in zip(column, both, strict=True))]
        for column in (*energies, [seconds // 60] * len(t))
    )
    ratios = []
    for position, start in enumerate(t):
        first = bisect_left(t, start + seconds - max(seconds, 60 * _EFFICIENCY_MINUTES))
        consumed, delivered, found = (column[position + 1] - column[first] for column in (ac, dc, minutes))
        is_full = found >= _LEAST_MINUTES and (seconds == 60 or start + 60 * _LEAST_MINUTES <= now)
        ratios.append(delivered / consumed if consumed and is_full else None)
    return ratios


def _kwh(milliwh: list[int | None]) -> list[float | None]:
    return [None if energy is None else energy / 1_000_000 for energy in milliwh]


def spread_statement(spread: FromClause) -> Select[Any]:
    """Selects what rows like those of fleet_spread add to buckets in [:range_from, :range_to), and their readings.

    The answer has an array for each column.
    """
    rows = spread.c
    in_bucket = (
        select(
            cast(func.date_part("epoch", func.utc_bucket(bindparam("step"), rows.bucket)), BigInteger).label("t"),
            cast(func.sum(rows.ac_milliwh), BigInteger).label("ac"),
            cast(func.sum(rows.dc_milliwh), BigInteger).label("dc"),
            cast(func.coalesce(func.sum(rows.readings), 0), BigInteger).label("readings"),
            cast(func.coalesce(func.sum(rows.read_milliwh), 0), BigInteger).label("read"),
        )
        .where(rows.bucket >= bindparam("range_from"), rows.bucket < bindparam("range_to"))
        .group_by("t")
        .subquery()
    )
    arrays: list[ColumnElement[Any]] = [func.array_agg(column) for column in in_bucket.c]
    return select(*arrays)


_SPREAD = spread_statement(fleet_spread)
