"""The stretches of time on which a vehicle's efficiency rests."""

from contextlib import suppress
from datetime import datetime

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from app.analytics.efficiency.evidence import fetch_sides, pair_in_thread, us
from app.analytics.efficiency.pairs import Kind
from app.analytics.freshness import fetch_instants
from app.analytics.window import Window
from app.database import snapshot
from app.errors import UnknownDevice
from app.fleet.registry import device_id_of
from app.settings import Settings
from app.tables import vehicle


class CoverageColumns(msgspec.Struct, frozen=True, rename="camel"):
    """Stretches of time of one kind: `t` is the start in seconds since 1970 UTC, `seconds` is the length.

    `doubtful` stretches are paired: a neighbour was not seen, and may have taken energy.
    """

    t: list[float]
    seconds: list[float]
    kind: list[Kind]
    doubtful: list[bool]


class VehicleCoverage(msgspec.Struct, frozen=True, rename="camel"):
    """The stretches of time in which a vehicle takes energy, in order. Outside of them it takes none.

    All readings committed before `as_of` are included, but minutes before `kept_from` are no longer kept.
    """

    vehicle_id: str
    from_: datetime = msgspec.field(name="from")
    to: datetime
    as_of: datetime | None
    kept_from: datetime | None
    columns: CoverageColumns


async def fetch_coverage(pool: AsyncEngine, vehicle_id: str, window: Window, settings: Settings) -> VehicleCoverage:
    """Returns a vehicle's stretches; none when it has no reading in the window, or is not known.

    Raises InvalidTimeRange when too many vehicles share its meters for so long a window.
    """
    bounds = window.first_minute, window.end_minute
    columns = CoverageColumns([], [], [], [])
    sides = None
    async with pool.connect() as connection:
        instants = await fetch_instants(connection, "vehicle_minute", "meter_minute")
        async with snapshot(connection):
            with suppress(UnknownDevice):
                device = await device_id_of(connection, vehicle, vehicle_id)
                sides = await fetch_sides(connection, [device], *bounds, settings)
    if sides is not None:
        pairs = (await pair_in_thread(sides, [device], settings))[device]
        for run in sorted(run for pair in pairs.values() for run in pair.runs(us(bounds[0]), us(bounds[1]))):
            columns.t.append(run.from_us / 1_000_000)
            columns.seconds.append((run.to_us - run.from_us) / 1_000_000)
            columns.kind.append(run.kind)
            columns.doubtful.append(run.is_doubtful)
    return VehicleCoverage(vehicle_id, *bounds, instants.as_of, instants.kept_from, columns)
