"""The names that a reading's members may have, the same at every door: over HTTP, over MQTT and in files."""

import re

import msgspec

from app.ingest.check import Wire

#: A field's own name -> the attribute of Wire.
ATTRIBUTES = {field.encode_name: field.name for field in msgspec.structs.fields(Wire)}

SYNONYMS = {
    "timestamp": ("ts", "time", "datetime", "measuredAt", "recordedAt"),
    "vehicleId": ("vehicle", "vin"),
    "meterId": ("meter",),
    "kwhConsumedAc": ("kwhAc", "acKwh", "kwhConsumed", "energyAcKwh"),
    "kwhDeliveredDc": ("kwhDc", "dcKwh", "kwhDelivered", "energyDcKwh"),
    "kwhRegisterAc": ("registerAcKwh", "acRegisterKwh"),
    "kwhRegisterDc": ("registerDcKwh", "dcRegisterKwh"),
    "voltage": ("volt", "volts", "voltageV"),
    "soc": ("stateOfCharge", "socPercent"),
    "batteryTemp": ("batteryTemperature", "batteryTempC"),
}
"""Other names that a field may have; upper and lower case, `_`, `-`, `.` and blanks make no difference."""

# Names come from clients. A longer one stands for no field, and of so many names the meaning is looked up once.
_LONGEST_NAME = 100
_MAX_KNOWN = 1_000


class _Fields(dict[str, str | None]):
    """The field for which each name stands, None for none."""

    def __missing__(self, name: str) -> str | None:
        if len(name) > _LONGEST_NAME:
            return None
        field = _OF_PLAIN.get(_plain(name))
        if len(self) < _MAX_KNOWN:
            self[name] = field
        return field


def _plain(name: str) -> str:
    return re.sub(r"[\s_.-]", "", name).casefold()


_OF_PLAIN = {_plain(name): field for field, others in SYNONYMS.items() for name in (field, *others)}

FIELDS = _Fields()
