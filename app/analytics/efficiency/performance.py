"""One vehicle's efficiency over a window, with its evidence."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import BigInteger, cast, func
from sqlalchemy.ext.asyncio import AsyncEngine

from app.analytics.efficiency.evidence import fetch_minutes, fetch_sides, pair_sides, vehicle_minutes
from app.analytics.efficiency.pairing import Minutes
from app.analytics.efficiency.verdict import Status, efficiency_ratio, judge
from app.analytics.freshness import fetch_instants
from app.analytics.window import Window
from app.database import snapshot
from app.errors import NoChargingData, UnknownDevice
from app.fleet.registry import device_id_of
from app.tables import vehicle, vehicle_minute


class Coverage(msgspec.Struct, frozen=True):
    """The vehicle's minutes, each counted once: paired, else shared, else unpaired."""

    minutes: int
    paired: int
    shared: int
    unpaired: int


class Performance(msgspec.Struct, frozen=True, rename="camel"):
    """A vehicle's energy in kWh, and averages over its readings in percent and °C.

    `total_dc_delivery` is all DC of the window; `total_ac_consumption`, `efficiency_ratio` and `energy_loss_kwh` are of
    the paired minutes. `data_points` counts the vehicle's readings. All readings committed before `as_of` are included,
    but minutes before `kept_from` are no longer kept; null means that all are kept.
    """

    vehicle_id: str
    time_window_hours: float
    from_: datetime = msgspec.field(name="from")
    to: datetime
    total_ac_consumption: float
    total_dc_delivery: float
    efficiency_ratio: float | None
    avg_soc: float | None
    avg_battery_temp: float | None
    data_points: int
    energy_loss_kwh: float
    coverage: Coverage
    status: Status
    alert: str | None
    as_of: datetime | None
    kept_from: datetime | None


async def fetch_performance(
    pool: AsyncEngine, vehicle_id: str, window: Window, *, gap_minutes: int, low_efficiency: float
) -> Performance:
    """Returns a vehicle's performance. Raises NoChargingData when it has no reading in the window, or is not known.

    Raises InvalidTimeRange when too many vehicles share its meters for so long a window.
    """
    bounds = window.first_minute, window.end_minute
    own: list[Minutes] = []
    async with pool.connect() as connection:
        instants = await fetch_instants(connection, "vehicle_minute", "meter_minute")
        async with snapshot(connection):
            with suppress(UnknownDevice):
                device = await device_id_of(connection, vehicle, vehicle_id)
                own = await fetch_minutes(connection, _MINUTES, [device], *bounds)
            if not own:
                raise NoChargingData(
                    f"No charging data found in last {window.hours:g} hours", vehicleId=vehicle_id, asOf=instants.as_of
                )
            sides = await fetch_sides(connection, own, *bounds)

    pairing = (await pair_sides(sides, device, gap_minutes=gap_minutes)).total()
    status, alert = judge(pairing, low_efficiency=low_efficiency)
    return Performance(
        vehicle_id=vehicle_id,
        time_window_hours=window.hours,
        from_=window.start,
        to=window.end,
        total_ac_consumption=pairing.paired_ac_milliwh / 1_000_000,
        total_dc_delivery=sum(sum(at.milliwh) for at in own) / 1_000_000,
        efficiency_ratio=efficiency_ratio(pairing),
        avg_soc=_average(at.others[:2] for at in own),
        avg_battery_temp=_average(at.others[2:] for at in own),
        data_points=sum(sum(at.readings) for at in own),
        energy_loss_kwh=(pairing.paired_ac_milliwh - pairing.paired_dc_milliwh) / 1_000_000,
        coverage=Coverage(pairing.minutes, pairing.paired, pairing.shared, pairing.unpaired),
        status=status,
        alert=alert,
        as_of=instants.as_of,
        kept_from=instants.kept_from,
    )


def _average(sums: Iterable[Sequence[Any]]) -> float | None:
    """Returns the average of hundredths, from sums and counts; None over no readings."""
    hundredths, readings = (sum(filter(None, column)) for column in zip(*sums, strict=True))
    return hundredths / (100 * readings) if readings else None


# The minutes of one vehicle, with the sums for its averages.
_MINUTES = vehicle_minutes(
    *(
        cast(func.sum(vehicle_minute.c[column]), BigInteger)
        for column in ("soc_centipercent_sum", "soc_readings", "battery_temp_centic_sum", "battery_temp_readings")
    )
)
