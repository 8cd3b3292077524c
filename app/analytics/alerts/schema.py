"""The tables of alerts and of their transitions, which Alembic compares."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    false,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB

from app.tables import Moment, metadata

_KINDS = """kind IN ('low_efficiency', 'impossible_efficiency', 'frozen_meter', 'frozen_vehicle', 'no_data',
                     'implausible_energy')"""
_STREAMS = "stream IN ('meter', 'vehicle')"

# An alert is a pure function of the stored data, but for who has acknowledged it.
alert = Table(
    "alert",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("stream", Text, primary_key=True),
    Column("device_id", Integer, primary_key=True, autoincrement=False),
    Column("opened", Moment, primary_key=True),
    Column("closed", Moment),
    Column("evidence", JSONB, nullable=False),
    Column("acknowledged", JSONB),
    Column("ac_milliwh", BigInteger, nullable=False, server_default="0"),
    Column("dc_milliwh", BigInteger, nullable=False, server_default="0"),
    Column("loss_milliwh", BigInteger, nullable=False, server_default="0"),
    Index(None, "opened"),
    CheckConstraint(_KINDS, name="kind"),
    CheckConstraint(_STREAMS, name="stream"),
)

# The log of what happened to alerts, and of what is told of sessions, is in the order of arrival.
alert_transition = Table(
    "alert_transition",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("at", Moment, nullable=False, server_default=func.clock_timestamp()),
    Column("transition", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("stream", Text, nullable=False),
    Column("device_id", Integer, nullable=False),
    Column("opened", Moment, nullable=False),
    Column("closed", Moment),
    Column("evidence", JSONB, nullable=False),
    Column("quiet", Boolean, nullable=False, server_default=false()),
    CheckConstraint(
        """
        CASE WHEN kind = 'session' THEN transition IN ('ended', 'changed')
             ELSE transition IN ('opened', 'closed', 'retracted') END
        """,
        name="transition",
    ),
    CheckConstraint(f"kind = 'session' OR {_KINDS}", name="kind"),
    CheckConstraint(_STREAMS, name="stream"),
    Index(None, "at"),
)

# The minutes in which a device reported in each of its last hours, for its rhythm.
reported_hour = Table(
    "reported_hour",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("device_id", Integer, primary_key=True, autoincrement=False),
    Column("hour", Moment, primary_key=True),
    Column("first_minute", SmallInteger, nullable=False),
    Column("last_minute", SmallInteger, nullable=False),
    Column("gap_minutes", SmallInteger, nullable=False),
    CheckConstraint(_STREAMS, name="stream"),
)

# The implausible readings of a device in an hour; other hours have no row.
implausible_hour = Table(
    "implausible_hour",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("device_id", Integer, primary_key=True, autoincrement=False),
    Column("hour", Moment, primary_key=True),
    Column("readings", Integer, nullable=False),
    Column("milliwh", BigInteger, nullable=False),
    Column("first_ts", Moment, nullable=False),
    Column("last_ts", Moment, nullable=False),
    Column("max_milliwatt", BigInteger, nullable=False),
    Column("looks_like", Text, nullable=False),
    Index(None, "hour"),
    CheckConstraint(_STREAMS, name="stream"),
    CheckConstraint("looks_like IN ('register', 'wh', 'step')", name="looks_like"),
)
