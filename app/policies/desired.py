"""The desired state, which is read from timescale/policies.toml and checked."""

import json
import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from app.errors import SetupError

POLICIES_FILE = Path(__file__).resolve().parent.parent.parent / "timescale" / "policies.toml"

Readings = Literal["meter_reading", "vehicle_reading"]
Aggregate = Literal[
    "meter_minute",
    "vehicle_minute",
    "fleet_meter_minute",
    "fleet_vehicle_minute",
    "fleet_meter_hour",
    "fleet_vehicle_hour",
    "meter_hour",
    "vehicle_hour",
    "meter_day",
    "vehicle_day",
]
Table = Literal[
    "fleet_spread",
    "import_journal",
    "quarantine",
    "efficiency_hour",
    "session_hour",
    "charging_session",
    "alert",
    "alert_transition",
    "storage_size",
]
"""The tables that are alike on both engines."""

Interval = Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,5} (second|minute|hour|day)s?\Z")]


class Refresh(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The refresh of a continuous aggregate: its schedule, and its range of buckets, as offsets back from now."""

    start_offset: Interval
    end_offset: Interval
    schedule_interval: Interval
    buckets_per_batch: int


class Policies(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All policies, by the name of the table or aggregate; intervals have PostgreSQL's form."""

    chunk_interval: dict[Readings, Interval]
    columnstore_after: dict[Readings | Aggregate, Interval]
    retention: dict[Readings | Aggregate | Table, Interval]
    refresh: dict[Aggregate, Refresh]


def parse_policies(text: str) -> Policies:
    """Decodes the text of a file. Raises SetupError with the table, key and value that are wrong."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"it is no TOML: {error}") from None
    try:
        return msgspec.convert(document, Policies)
    except msgspec.ValidationError as error:
        raise SetupError(_where(document) or f"{error}") from None


def span(interval: str) -> timedelta:
    """Returns the length of an interval of the file, such as `8 days`."""
    count, _, unit = interval.partition(" ")
    return timedelta(**{unit if unit.endswith("s") else f"{unit}s": int(count)})


def _where(document: dict[str, Any]) -> str | None:
    """Names the entry that is wrong: msgspec tells no key of a dict."""
    for table, entries in document.items():
        for key, entry in entries.items() if isinstance(entries, dict) else ():
            for name, value in entry.items() if isinstance(entry, dict) else ((None, entry),):
                try:
                    if name is None:
                        msgspec.convert(_EMPTY | {table: {key: value}}, Policies)
                    elif name in Refresh.__struct_fields__:
                        msgspec.convert(_EMPTY | {table: {key: _SAMPLE | {name: value}}}, Policies)
                    else:
                        return f"{table}.{key}.{name} is unknown; known are {', '.join(Refresh.__struct_fields__)}"
                except msgspec.ValidationError as error:
                    place = ".".join(filter(None, (table, key, name)))
                    return f"{place} = {json.dumps(value, default=str)}: {_in_words(str(error))}"
            if isinstance(entry, dict) and (missing := Refresh.__struct_fields__ - entry.keys()):
                return f"{table}.{key} lacks {', '.join(sorted(missing))}"
    return None


_EMPTY: dict[str, Any] = {table: {} for table in Policies.__struct_fields__}
_SAMPLE = {"start_offset": "8 days", "end_offset": "1 day", "schedule_interval": "1 day", "buckets_per_batch": 0}


def _in_words(error: str) -> str:
    message = re.sub(r" - at .*", "", error)
    return 'it must be like "8 days", of seconds, minutes, hours or days' if "regex" in message else message
