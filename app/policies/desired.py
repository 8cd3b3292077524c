"""The desired state: timescale/policies.toml, read and checked."""

import tomllib
from pathlib import Path

import msgspec

from app.errors import SetupError

POLICIES_FILE = Path(__file__).resolve().parent.parent.parent / "timescale" / "policies.toml"


class Refresh(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a continuous aggregate is refreshed, and over which buckets; offsets count back from now."""

    start_offset: str
    end_offset: str
    schedule_interval: str
    buckets_per_batch: int


class Policies(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All policies, by the name of the readings table or aggregate; intervals as PostgreSQL writes them."""

    chunk_interval: dict[str, str]
    columnstore_after: dict[str, str]
    retention: dict[str, str]
    refresh: dict[str, Refresh]


def read_policies(path: Path = POLICIES_FILE) -> Policies:
    """Raises SetupError for a file that is missing, no TOML, or holds unknown keys or wrong types."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), Policies)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise SetupError(f"{path.name}: {error}") from error
