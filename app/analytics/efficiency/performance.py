"""One vehicle's efficiency over a window, with its evidence."""

from contextlib import suppress
from datetime import datetime

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from app.analytics.efficiency.cost import cost
from app.analytics.efficiency.evidence import fetch_sides, near, pair_in_thread, us
from app.analytics.efficiency.pairs import evidence_between, total
from app.analytics.efficiency.verdict import Coverage, Status, coverage_of, efficiency_ratio, uncertainty, verdict
from app.analytics.freshness import fetch_instants
from app.analytics.minutes import fetch_totals
from app.analytics.window import Window
from app.database import snapshot
from app.errors import NoChargingData, UnknownDevice
from app.fleet.registry import device_id_of
from app.settings import Settings
from app.tables import vehicle


class Performance(msgspec.Struct, frozen=True, rename="camel"):
    """A vehicle's energy in kWh, and averages over its readings in percent and °C.

    `total_dc_delivery` is all DC of the window; `total_ac_consumption`, `paired_dc_delivery`, `energy_loss_kwh` and
    `efficiency_ratio` are of the paired time, and the ratio may be off by `uncertainty` in either direction.
    `loss_cost` is the price of the loss in `currency`; both are null where the settings name no price.
    `data_points` counts the vehicle's readings. All readings committed before `as_of` are included, but minutes before
    `kept_from` are no longer kept; null means that all are kept.
    """

    vehicle_id: str
    time_window_hours: float
    from_: datetime = msgspec.field(name="from")
    to: datetime
    total_ac_consumption: float
    total_dc_delivery: float
    paired_dc_delivery: float
    efficiency_ratio: float | None
    uncertainty: float | None
    avg_soc: float | None
    avg_battery_temp: float | None
    data_points: int
    energy_loss_kwh: float
    loss_cost: float | None
    currency: str | None
    coverage: Coverage
    status: Status
    alert: str | None
    as_of: datetime | None
    kept_from: datetime | None


async def fetch_performance(pool: AsyncEngine, vehicle_id: str, window: Window, settings: Settings) -> Performance:
    """Returns a vehicle's performance. Raises NoChargingData when it has no reading in the window, or is not known.

    Raises InvalidTimeRange when too many vehicles share its meters for so long a window.
    """
    bounds = window.first_minute, window.end_minute
    async with pool.connect() as connection:
        instants = await fetch_instants(connection, "vehicle_minute", "meter_minute")
        async with snapshot(connection):
            totals = None
            with suppress(UnknownDevice):
                device = await device_id_of(connection, vehicle, vehicle_id)
                rows, totals = await fetch_totals(connection, device, near(*bounds, settings), bounds)
            if totals is None or not totals.readings:
                raise NoChargingData(
                    f"No charging data found in last {window.hours:g} hours", vehicleId=vehicle_id, asOf=instants.as_of
                )
            sides = await fetch_sides(connection, [device], *bounds, settings, rows={device: rows})

    pairs = (await pair_in_thread(sides, [device], settings))[device]
    by_meter = evidence_between(pairs, us(bounds[0]), us(bounds[1]))
    evidence = total(by_meter.values())
    loss = evidence.paired_ac_milliwh - evidence.paired_dc_milliwh
    status, alert = verdict(evidence, has_meter=bool(by_meter.keys() - {None}), low_efficiency=settings.low_efficiency)
    return Performance(
        vehicle_id=vehicle_id,
        time_window_hours=window.hours,
        from_=window.start,
        to=window.end,
        total_ac_consumption=evidence.paired_ac_milliwh / 1_000_000,
        total_dc_delivery=totals.dc_milliwh / 1_000_000,
        paired_dc_delivery=evidence.paired_dc_milliwh / 1_000_000,
        efficiency_ratio=efficiency_ratio(evidence),
        uncertainty=uncertainty(evidence),
        avg_soc=_average(totals.soc_centipercent, totals.soc_readings),
        avg_battery_temp=_average(totals.battery_temp_centic, totals.battery_temp_readings),
        data_points=totals.readings,
        energy_loss_kwh=loss / 1_000_000,
        loss_cost=cost(loss, settings.price_per_kwh),
        currency=settings.currency,
        coverage=coverage_of(evidence),
        status=status,
        alert=alert,
        as_of=instants.as_of,
        kept_from=instants.kept_from,
    )


def _average(hundredths: int, readings: int) -> float | None:
    return hundredths / (100 * readings) if readings else None
