"""The minutes on which a vehicle's efficiency rests."""

from contextlib import suppress
from datetime import datetime
from typing import Literal, TypeAlias

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from app.analytics.efficiency.evidence import VEHICLE_MINUTES, fetch_minutes, fetch_sides, pair_sides
from app.analytics.efficiency.pairing import Evidence
from app.analytics.freshness import fetch_instants
from app.analytics.window import Window
from app.database import snapshot
from app.errors import UnknownDevice
from app.fleet.registry import device_id_of
from app.tables import vehicle

Kind: TypeAlias = Literal["paired", "shared", "unpaired"]


class CoverageColumns(msgspec.Struct, frozen=True, rename="camel"):
    """Runs of minutes of one kind; `t` is the start of the first, in seconds since 1970 UTC, `minutes` their number."""

    t: list[int]
    minutes: list[int]
    kind: list[Kind]


class VehicleCoverage(msgspec.Struct, frozen=True, rename="camel"):
    """The minutes that a vehicle covers, in order; minutes outside all runs are not covered.

    All readings committed before `as_of` are included, but minutes before `kept_from` are no longer kept.
    """

    vehicle_id: str
    from_: datetime = msgspec.field(name="from")
    to: datetime
    as_of: datetime | None
    kept_from: datetime | None
    columns: CoverageColumns


async def fetch_coverage(pool: AsyncEngine, vehicle_id: str, window: Window, *, gap_minutes: int) -> VehicleCoverage:
    """Returns a vehicle's runs; none when it has no reading in the window, or is not known.

    Raises InvalidTimeRange when too many vehicles share its meters for so long a window.
    """
    bounds = window.first_minute, window.end_minute
    columns = CoverageColumns([], [], [])
    sides = None
    async with pool.connect() as connection:
        instants = await fetch_instants(connection, "vehicle_minute", "meter_minute")
        async with snapshot(connection):
            with suppress(UnknownDevice):
                device = await device_id_of(connection, vehicle, vehicle_id)
                if own := await fetch_minutes(connection, VEHICLE_MINUTES, [device], *bounds):
                    sides = await fetch_sides(connection, own, *bounds)
    if sides is not None:
        columns = _runs(await pair_sides(sides, device, gap_minutes=gap_minutes))
    return VehicleCoverage(vehicle_id, *bounds, instants.as_of, instants.kept_from, columns)


def _runs(evidence: Evidence) -> CoverageColumns:
    columns = CoverageColumns([], [], [])
    after = None
    for minute in sorted(evidence.covered):
        kind = _kind(evidence, minute)
        if minute == after and columns.kind[-1] == kind:
            columns.minutes[-1] += 1
        else:
            columns.t.append(60 * minute)
            columns.minutes.append(1)
            columns.kind.append(kind)
        after = minute + 1
    return columns


def _kind(evidence: Evidence, minute: int) -> Kind:
    if minute in evidence.paired_ac_milliwh:
        return "paired"
    return "shared" if minute in evidence.shared else "unpaired"
