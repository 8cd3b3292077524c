"""One reading: one measurement of one device at one instant, in the units in which it is stored.

Numbers are scaled integers, like money, so that sums are exact and independent of order.
"""

from enum import StrEnum

import msgspec


class Stream(StrEnum):
    """The two independent sources of readings."""

    METER = "meter"
    VEHICLE = "vehicle"


class MeterReading(msgspec.Struct, frozen=True, gc=False):
    """AC energy that a meter measured since its previous reading, or its register: all energy that it ever measured.

    `ts_us` counts microseconds since 1970-01-01 UTC, `ac_milliwh` and `register_milliwh` thousandths of a Wh
    (1 kWh = 1,000,000), `voltage_centiv` hundredths of a volt. One of the two energies is None.
    """

    meter_id: str
    ts_us: int
    ac_milliwh: int | None
    voltage_centiv: int | None = None
    register_milliwh: int | None = None


class VehicleReading(msgspec.Struct, frozen=True, gc=False):
    """DC energy that a vehicle's battery received since the vehicle's previous reading, or the vehicle's register.

    `meter_id` names the meter that the vehicle was charging at, where the vehicle knows it.
    `soc_centipercent` is the state of charge in hundredths of a percent, `battery_temp_centic`
    the battery's temperature in hundredths of a degree Celsius.
    """

    vehicle_id: str
    ts_us: int
    dc_milliwh: int | None
    meter_id: str | None = None
    soc_centipercent: int | None = None
    battery_temp_centic: int | None = None
    register_milliwh: int | None = None
