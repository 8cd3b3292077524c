"""The checks of a reading: from what a client wrote to the units of the store, or to a rejection with its code."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import compress, repeat
from operator import floordiv, not_, sub
from typing import Any

import msgspec

from app.ingest.batch import WARNINGS, Batch, Dropped, RejectedReading, reject
from app.telemetry.device_id import is_id
from app.telemetry.instant import MAX_AGE, MAX_AHEAD
from app.telemetry.reading import MeterReading, Stream, VehicleReading

MAX_AHEAD_US = MAX_AHEAD // timedelta(microseconds=1)
MAX_AGE_US = MAX_AGE // timedelta(microseconds=1)


class Wire(msgspec.Struct, rename="camel", gc=False):
    """A reading of either stream as clients write it, in kWh, volts, percent and degrees Celsius.

    An optional number that could not be read is the code of its fault.
    """

    # Without a default for the timestamp, `[{},{},…` fails at its first element instead of filling the memory.
    timestamp: datetime | None
    vehicle_id: str | None = None
    meter_id: str | None = None
    kwh_consumed_ac: float | None = None
    kwh_delivered_dc: float | None = None
    kwh_register_ac: float | None = None
    kwh_register_dc: float | None = None
    voltage: float | None = None
    soc: float | None = None
    battery_temp: float | None = None


class RejectedValue(Exception):
    """A value that its field does not allow."""

    def __init__(self, code: str, field: str) -> None:
        self.code = code
        self.field = field


def check_each(wires: Sequence[Wire | RejectedReading], now_us: int, stream: Stream | None, *, oldest_us: int) -> Batch:
    """Returns the readings that pass, and those rejected now or before.

    The clock is `now_us`, as in `decode_batch`; a reading older than `oldest_us` is `too_old`.
    """
    newest_us = now_us + MAX_AHEAD_US
    with suppress(RejectedValue, TypeError, AttributeError):
        return _check_all(wires, stream, oldest_us, newest_us)
    batch = Batch(len(wires), [], [], [])
    vehicles = bytearray(len(wires))
    dropped: list[RejectedValue] = []
    meter, vehicle = batch.meter.append, batch.vehicle.append
    for index, wire in enumerate(wires):
        if isinstance(wire, RejectedReading):
            batch.rejected.append(wire)
            continue
        of_vehicle = wire.vehicle_id is not None if stream is None else stream is Stream.VEHICLE
        try:
            if of_vehicle:
                vehicles[index] = 1
                vehicle(_vehicle_reading(wire, oldest_us, newest_us, dropped))
            else:
                meter(_meter_reading(wire, oldest_us, newest_us, dropped))
        except RejectedValue as why:
            of, device = (Stream.VEHICLE, wire.vehicle_id) if of_vehicle else (Stream.METER, wire.meter_id)
            batch.rejected.append(reject(index, why.code, why.field, of, device))
        if dropped:
            batch.warnings += [Dropped(index, why.code, why.field, WARNINGS[why.code]) for why in dropped]
            dropped.clear()
    if batch.meter and batch.vehicle:
        batch.of_vehicle = bytes(vehicles)
    return batch


def _check_all(wires: Sequence[Any], stream: Stream | None, oldest_us: int, newest_us: int) -> Batch:
    """Checks all readings a field at a time, mostly in C. Raises if any has a fault, not always with the reason."""
    of_vehicle = [wire.vehicle_id is not None if stream is None else stream is Stream.VEHICLE for wire in wires]
    meters = list(compress(wires, map(not_, of_vehicle)))
    vehicles = list(compress(wires, of_vehicle))
    ac = list(map(AC.__getitem__, [wire.kwh_consumed_ac for wire in meters]))
    ac_registers = list(map(REGISTER_AC.__getitem__, [wire.kwh_register_ac for wire in meters]))
    dc = list(map(DC.__getitem__, [wire.kwh_delivered_dc for wire in vehicles]))
    dc_registers = list(map(REGISTER_DC.__getitem__, [wire.kwh_register_dc for wire in vehicles]))
    refuse_other_than_one_energy(ac, ac_registers)
    refuse_other_than_one_energy(dc, dc_registers)
    meter = map(
        MeterReading,
        map(METER_ID.__getitem__, [wire.meter_id for wire in meters]),
        all_microseconds([wire.timestamp for wire in meters], oldest_us, newest_us),
        ac,
        map(VOLTAGE.__getitem__, [wire.voltage for wire in meters]),
        ac_registers,
    )
    vehicle = map(
        VehicleReading,
        map(VEHICLE_ID.__getitem__, [wire.vehicle_id for wire in vehicles]),
        all_microseconds([wire.timestamp for wire in vehicles], oldest_us, newest_us),
        dc,
        map(METER_ID_IF_ANY.__getitem__, [wire.meter_id for wire in vehicles]),
        map(SOC.__getitem__, [wire.soc for wire in vehicles]),
        map(BATTERY_TEMP.__getitem__, [wire.battery_temp for wire in vehicles]),
        dc_registers,
    )
    return Batch(len(wires), list(meter), list(vehicle), [], bytes(of_vehicle) if meters and vehicles else b"")


def _meter_reading(wire: Wire, oldest_us: int, newest_us: int, dropped: list[RejectedValue]) -> MeterReading:
    meter_id = METER_ID[wire.meter_id]
    ts_us = _microseconds(wire.timestamp, oldest_us, newest_us)
    ac, register = _energies(AC, wire.kwh_consumed_ac, REGISTER_AC, wire.kwh_register_ac)
    # What is optional comes last: nothing is dropped of a reading that is rejected.
    return MeterReading(meter_id, ts_us, ac, _optional(VOLTAGE, wire.voltage, dropped), register)


def _vehicle_reading(wire: Wire, oldest_us: int, newest_us: int, dropped: list[RejectedValue]) -> VehicleReading:
    vehicle_id = VEHICLE_ID[wire.vehicle_id]
    meter_id = METER_ID_IF_ANY[wire.meter_id]
    ts_us = _microseconds(wire.timestamp, oldest_us, newest_us)
    dc, register = _energies(DC, wire.kwh_delivered_dc, REGISTER_DC, wire.kwh_register_dc)
    soc = _optional(SOC, wire.soc, dropped)
    battery_temp = _optional(BATTERY_TEMP, wire.battery_temp, dropped)
    return VehicleReading(vehicle_id, ts_us, dc, meter_id, soc, battery_temp, register)


def _energies(
    difference: "_Quantity", energy: float | None, register: "_Quantity", shown: float | None
) -> tuple[int | None, int | None]:
    """Returns the energy since the previous reading and the register, of which one is None."""
    if energy is None and shown is None:
        raise RejectedValue("missing_field", difference.field)
    if energy is not None and shown is not None:
        raise RejectedValue("both_energy_forms", register.field)
    return difference[energy], register[shown]


def refuse_other_than_one_energy(differences: Sequence[int | None], registers: Sequence[int | None]) -> None:
    """Raises RejectedValue unless each reading has either a difference or a register."""
    if registers.count(None) == len(registers):
        if None in differences:
            raise RejectedValue("missing_field", "")
    elif any((energy is None) == (shown is None) for energy, shown in zip(differences, registers, strict=True)):
        raise RejectedValue("both_energy_forms", "")


def _optional(quantity: "_Quantity", value: float | None, dropped: list[RejectedValue]) -> int | None:
    """Returns the scaled value. A bad one is dropped: a sensor's error value is no reason to lose the energy."""
    try:
        scaled: int | None = quantity[value]
    except RejectedValue as why:
        dropped.append(why)
        return None
    return scaled


# The most values that a table holds. None is ever dropped: a value that does not come again only takes up a place.
MAX_LOOKED_UP = 32_768


class _Id(dict[str | None, Any]):
    """Each valid id as itself; a lookup may raise RejectedValue. One text for each id makes the later steps faster."""

    def __init__(self, field: str, *, optional: bool = False) -> None:
        super().__init__({None: None} if optional else {})
        self.field = field

    def __missing__(self, value: str | None) -> str:
        if value is None:
            raise RejectedValue("missing_field", self.field)
        if not is_id(value):
            raise RejectedValue("invalid_id", self.field)
        if len(self) < MAX_LOOKED_UP:
            self[value] = value
        return value


METER_ID = _Id("meterId")
METER_ID_IF_ANY = _Id("meterId", optional=True)
VEHICLE_ID = _Id("vehicleId")


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _microseconds(timestamp: datetime | None, oldest_us: int, newest_us: int) -> int:
    if timestamp is None:
        raise RejectedValue("missing_field", "timestamp")
    if timestamp.tzinfo is None:
        raise RejectedValue("timestamp_without_zone", "timestamp")
    since = timestamp - _EPOCH
    ts_us = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if ts_us > newest_us:
        raise RejectedValue("in_the_future", "timestamp")
    if ts_us < oldest_us:
        raise RejectedValue("too_old", "timestamp")
    return ts_us


def all_microseconds(timestamps: Iterable[Any], oldest_us: int, newest_us: int) -> list[int]:
    """Converts timestamps. Raises RejectedValue for an instant out of bounds, TypeError for None or a missing zone."""
    all_us = list(map(floordiv, map(sub, timestamps, repeat(_EPOCH)), repeat(_MICROSECOND)))
    if all_us and (max(all_us) > newest_us or min(all_us) < oldest_us):
        raise RejectedValue("too_old", "timestamp")
    return all_us


class _Quantity(dict[float | str | None, Any]):
    """The scaled integer of each value; a lookup may raise RejectedValue.

    The range holds for what is stored: noise of floats such as -5.6e-17 kWh is a zero, and no reason to reject. Most
    values come again, and looking them up is faster than computing them.
    """

    def __init__(self, field: str, code: str, low: float, high: float, factor: int) -> None:
        super().__init__({None: None})
        self.field, self.code, self.low, self.high, self.factor = field, code, low, high, factor

    def __missing__(self, value: float | str) -> int:
        if isinstance(value, str):
            raise RejectedValue(value, self.field)
        # Nothing outside of this rounds into the range, and neither infinity nor NaN can be rounded.
        if not self.low - 1 < value < self.high + 1:
            raise RejectedValue(self.code, self.field)
        product = value * self.factor
        scaled = round(product)
        if not -0.499999 < product - scaled < 0.499999 or product > _MAX_EXACT:
            # The product errs by less than 3e-7, so only this near to a half can it round wrongly; that of a register
            # may err by more. The double's shortest decimal is what the client wrote, up to 15 digits.
            scaled = round(Decimal(repr(value)) * self.factor)
        if not self.low * self.factor <= scaled <= self.high * self.factor:
            raise RejectedValue(self.code, self.field)
        if len(self) < MAX_LOOKED_UP:
            self[value] = scaled
        return scaled


_MAX_EXACT = 1_000_000_000
# Whether a reading has one is checked with its register: _energies(), refuse_other_than_one_energy().
AC = _Quantity("kwhConsumedAc", "energy_out_of_range", 0, 1000, 1_000_000)
DC = _Quantity("kwhDeliveredDc", "energy_out_of_range", 0, 1000, 1_000_000)
# A double has six decimals of so many kWh, and no meter shows more.
REGISTER_AC = _Quantity("kwhRegisterAc", "register_out_of_range", 0, 1_000_000_000, 1_000_000)
REGISTER_DC = _Quantity("kwhRegisterDc", "register_out_of_range", 0, 1_000_000_000, 1_000_000)
VOLTAGE = _Quantity("voltage", "voltage_out_of_range", 0, 1000, 100)
SOC = _Quantity("soc", "soc_out_of_range", 0, 100, 100)
BATTERY_TEMP = _Quantity("batteryTemp", "battery_temp_out_of_range", -60, 150, 100)
