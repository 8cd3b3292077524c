"""The tables of sessions, which Alembic compares."""

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, SmallInteger, Table, Text, false

from app.analytics.efficiency.pairs import Evidence
from app.tables import Moment, metadata

_BATTERY = "soc_start_centipercent", "soc_end_centipercent", "battery_temp_max_centic"

# A session's part in a UTC hour, with its evidence.
session_hour = Table(
    "session_hour",
    metadata,
    Column("vehicle_id", Integer, primary_key=True, autoincrement=False),
    Column("started", Moment, primary_key=True),
    Column("until", Moment, nullable=False),
    Column("over_at", Moment, nullable=False),
    Column("is_first", Boolean, nullable=False),
    Column("meter_id", Integer),
    *(Column(name, BigInteger, nullable=False) for name in Evidence._fields),
    Column("peak_milliwatt", BigInteger),
    Column("silences", Integer, nullable=False),
    *(Column(name, SmallInteger) for name in _BATTERY),
    Index(None, "started"),
)

# A vehicle's session. It is over at `over_at` unless more readings come; `until` then is its end.
charging_session = Table(
    "charging_session",
    metadata,
    Column("vehicle_id", Integer, primary_key=True, autoincrement=False),
    Column("started", Moment, primary_key=True),
    Column("until", Moment, nullable=False),
    Column("over_at", Moment, nullable=False),
    Column("meter_id", Integer),
    *(Column(f"{name}_milliwh", BigInteger, nullable=False) for name in ("dc", "paired_ac", "paired_dc")),
    Column("uncertainty", Double),
    Column("status", Text, nullable=False),
    Column("peak_milliwatt", BigInteger),
    *(Column(name, SmallInteger) for name in _BATTERY),
    *(Column(name, Integer, nullable=False) for name in ("paired_minutes", "shared_minutes", "silences")),
    Column("told", Boolean, nullable=False, server_default=false()),
    Index(None, "started", "vehicle_id"),
    Index(None, "meter_id", "started"),
    Index(None, "over_at"),
)
