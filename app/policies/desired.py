"""The desired state: timescale/policies.toml, read and checked."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

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
Table = Literal["import_journal", "quarantine", "efficiency_hour", "alert", "alert_transition"]
"""Tables that are alike on both engines."""

Interval = Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,5} (second|minute|hour|day)s?\Z")]


class Refresh(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a continuous aggregate is refreshed, and over which buckets; offsets count back from now."""

    start_offset: Interval
    end_offset: Interval
    schedule_interval: Interval
    buckets_per_batch: int


class Policies(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All policies, by the name of the table or aggregate; intervals as PostgreSQL writes them."""

    chunk_interval: dict[Readings, Interval]
    columnstore_after: dict[Readings | Aggregate, Interval]
    retention: dict[Readings | Aggregate | Table, Interval]
    refresh: dict[Aggregate, Refresh]


def read_policies(path: Path = POLICIES_FILE) -> Policies:
    """Reads the file. Raises SetupError where it is missing or no TOML, or has unknown names or wrong values."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), Policies)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise SetupError(f"{path.name}: {error}") from error
