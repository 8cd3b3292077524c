"""A session in answers."""

from datetime import datetime
from typing import Any

import msgspec

from app.analytics.efficiency.verdict import Status


class SessionAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """A session of a vehicle; `end` is null while it may go on.

    `dc_kwh` is all its DC. `ac_kwh`, `loss_kwh` and `efficiency_ratio` are of the paired time, as those of the
    performance; `meter_id` is null where the vehicle was at no meter.
    """

    vehicle_id: str
    meter_id: str | None
    start: datetime
    end: datetime | None
    dc_kwh: float
    ac_kwh: float
    loss_kwh: float
    efficiency_ratio: float | None
    uncertainty: float | None
    status: Status
    peak_kw: float | None
    soc_start: float | None
    soc_end: float | None
    battery_temp_max: float | None
    paired_minutes: int
    shared_minutes: int
    silences: int


_NAMES = ("vehicleId", "meterId")


def details_of(session: SessionAnswer) -> dict[str, Any]:
    """Returns the members of a session in JSON, but for the names of its devices, which may change."""
    members: dict[str, Any] = msgspec.to_builtins(session)
    return {name: value for name, value in members.items() if name not in _NAMES}


def named(details: dict[str, Any], vehicle: str, meters: list[str]) -> SessionAnswer:
    """Returns the session of such members, whose vehicle and meters have these names today."""
    return msgspec.convert({**details, "vehicleId": vehicle, "meterId": next(iter(meters), None)}, SessionAnswer)
