"""The tables and SQL functions of the database, which Alembic compares and from which reads select.

The readings' keys and indexes differ between the engines and stand in `timescale/` and `timescale/plain/`. Both
engines make the types of buckets from `timescale/shared/`.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Function,
    Identity,
    Index,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    TableValuedAlias,
    Text,
    UniqueConstraint,
    bindparam,
    false,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP, TSTZMULTIRANGE, TSTZRANGE, ExcludeConstraint

from app.telemetry.device_id import ID_FORM

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "excl": "%(table_name)s_%(constraint_name)s_excl",
    }
)

Moment = DateTime(timezone=True)


def _device_table(name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("id", Integer, Identity(), primary_key=True),
        Column("external_id", Text, nullable=False, unique=True),
        Column("registered_at", Moment, nullable=False, server_default=func.now()),
        Column("retired_at", Moment),
        *(Column(name, Text) for name in ("expectation", "site")),
        Column("max_milliwatt", BigInteger),
        Index(None, "registered_at"),
        CheckConstraint("expectation IN ('always', 'charging', 'never')", name="expectation"),
        CheckConstraint("max_milliwatt > 0", name="max_milliwatt"),
        CheckConstraint("length(site) BETWEEN 1 AND 64", name="site"),
        CheckConstraint(f"external_id ~ '^{ID_FORM}$'", name="external_id"),
    )


meter = _device_table("meter")
vehicle = _device_table("vehicle")

former_name = Table(
    "former_name",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("external_id", Text, primary_key=True),
    Column("device_id", Integer, nullable=False),
    CheckConstraint("stream IN ('meter', 'vehicle')", name="stream"),
)

# The readings have no foreign key: a new chunk would lock the device table.
meter_reading = Table(
    "meter_reading",
    metadata,
    Column("ts", Moment, nullable=False),
    Column("received_at", TIMESTAMP(timezone=True, precision=0), nullable=False, server_default=func.now()),
    Column("register_milliwh", BigInteger),
    Column("ac_milliwh", BigInteger),
    Column("meter_id", Integer, nullable=False),
    Column("voltage_centiv", Integer),
)
vehicle_reading = Table(
    "vehicle_reading",
    metadata,
    Column("ts", Moment, nullable=False),
    Column("received_at", TIMESTAMP(timezone=True, precision=0), nullable=False, server_default=func.now()),
    Column("register_milliwh", BigInteger),
    Column("dc_milliwh", BigInteger),
    Column("vehicle_id", Integer, nullable=False),
    Column("meter_id", Integer),
    Column("soc_centipercent", SmallInteger),
    Column("battery_temp_centic", SmallInteger),
)


def _register_columns() -> list[Column[Any]]:
    moments = [Column(name, Moment) for name in ("base_ts", "registers_since")]
    return [*(Column(name, BigInteger) for name in ("register_milliwh", "base_milliwh")), *moments]


meter_state = Table(
    "meter_state",
    metadata,
    Column("meter_id", ForeignKey("meter.id"), primary_key=True, autoincrement=False),
    Column("ts", Moment, nullable=False),
    Column("ac_milliwh", BigInteger),
    Column("voltage_centiv", Integer),
    *_register_columns(),
    Column("in_time", Boolean, nullable=False, server_default=false()),
    Index("meter_state_register_idx", "meter_id", postgresql_where=text("registers_since IS NOT NULL")),
)
vehicle_state = Table(
    "vehicle_state",
    metadata,
    Column("vehicle_id", ForeignKey("vehicle.id"), primary_key=True, autoincrement=False),
    Column("ts", Moment, nullable=False),
    Column("meter_id", Integer),
    Column("dc_milliwh", BigInteger),
    Column("soc_centipercent", SmallInteger),
    Column("battery_temp_centic", SmallInteger),
    *_register_columns(),
    Column("in_time", Boolean, nullable=False, server_default=false()),
    Index("vehicle_state_register_idx", "vehicle_id", postgresql_where=text("registers_since IS NOT NULL")),
)

vehicle_meter = Table(
    "vehicle_meter",
    metadata,
    Column("id", Integer, Identity(), primary_key=True),
    Column("vehicle_id", ForeignKey("vehicle.id"), nullable=False),
    Column("meter_id", ForeignKey("meter.id"), nullable=False),
    Column("valid", TSTZRANGE, nullable=False),
    CheckConstraint("NOT isempty(valid)", name="valid"),
    ExcludeConstraint(("vehicle_id", "="), ("valid", "&&"), name="one_meter_at_a_time", using="gist"),
    Index(None, "meter_id"),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("source", Text, nullable=False),
    Column("topic", Text),
    Column("stream", Text),
    Column("device", Text),
    Column("code", Text, nullable=False),
    Column("field", Text),
    Column("message", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("times", Integer, nullable=False, server_default="1"),
    Column("first_at", Moment, nullable=False, server_default=func.now()),
    Column("last_at", Moment, nullable=False, server_default=func.now()),
    UniqueConstraint("hash", "code"),
    Index(None, "last_at"),
)


def _device_instants(name: str, *columns: Column[Any]) -> Table:
    stream = CheckConstraint("stream IN ('meter', 'vehicle')", name="stream")
    device = Column("device_id", Integer, primary_key=True, autoincrement=False)
    return Table(name, metadata, Column("stream", Text, primary_key=True), device, *columns, stream)


touched_hour = _device_instants(
    "touched_hour", Column("hour", Moment, primary_key=True), Column("at", Moment, nullable=False)
)
register_due = _device_instants("register_due", Column("ts", Moment, primary_key=True))

# The evidence on a vehicle at a meter (0: at none) in a UTC hour.
efficiency_hour = Table(
    "efficiency_hour",
    metadata,
    Column("vehicle_id", Integer, primary_key=True, autoincrement=False),
    Column("hour", Moment, primary_key=True),
    Column("meter_id", Integer, primary_key=True, autoincrement=False),
    *(
        Column(f"{name}_milliwh", BigInteger, nullable=False)
        for name in ("paired_ac", "paired_dc", "doubtful_ac", "doubtful_dc", "dc", "unsure")
    ),
    *(Column(f"{name}_us", BigInteger, nullable=False) for name in ("paired", "shared", "unpaired", "doubtful")),
    Column("frozen_meter_minutes", SmallInteger, nullable=False),
    Column("frozen_meter_dc_milliwh", BigInteger, nullable=False),
    Column("frozen_vehicle_minutes", SmallInteger, nullable=False),
    Column("frozen_vehicle_ac_milliwh", BigInteger, nullable=False),
    Index(None, "hour"),
    Index(None, "meter_id", "hour", postgresql_where=text("frozen_meter_minutes > 0")),
)

# What to add to the fleet's energy of five minutes, for the readings of `read_in`: timescale/shared/0004_spread.sql.
fleet_spread = Table(
    "fleet_spread",
    metadata,
    Column("read_in", Moment, primary_key=True),
    Column("bucket", Moment, primary_key=True),
    Column("readings", BigInteger),
    Column("read_milliwh", BigInteger),
    Column("ac_milliwh", BigInteger, nullable=False),
    Column("dc_milliwh", BigInteger, nullable=False),
    Index(None, "bucket"),
)

webhook = Table(
    "webhook",
    metadata,
    Column("transition_id", BigInteger, primary_key=True, autoincrement=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_at", Moment, nullable=False, server_default=func.now()),
)

import_journal = Table(
    "import_journal",
    metadata,
    Column("id", LargeBinary, primary_key=True),
    Column("name", Text, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("lines", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("read", BigInteger, nullable=False),
    Column("inserted", BigInteger, nullable=False),
    Column("duplicates", BigInteger, nullable=False),
    Column("conflicts", BigInteger, nullable=False),
    Column("rejected", BigInteger, nullable=False),
    Column("ahead", BigInteger, nullable=False),
    Column("touched", TSTZMULTIRANGE, nullable=False),
    Column("updated_at", Moment, nullable=False, server_default=func.clock_timestamp()),
)

installation = Table(
    "installation",
    metadata,
    Column("engine", Text, nullable=False),
    Column("sql_checksum", Text),
    Column("max_milliwatt", BigInteger, nullable=False),
    Column("settings", JSONB, nullable=False),
    Column("installed_at", Moment, nullable=False, server_default=func.now()),
    Column("quarantine_dropped", BigInteger, nullable=False, server_default="0"),
    *(Column(name, Moment) for name in ("judged_as_of", "sessions_as_of")),
    Column("webhooks_queued", BigInteger),
    Column("webhooks_given_up", BigInteger, nullable=False, server_default="0"),
    CheckConstraint("engine IN ('timescale', 'plain')", name="engine"),
)

retention = Table(
    "retention",
    metadata,
    Column("name", Text, primary_key=True),
    Column("drop_after", Interval, nullable=False),
)

_METER_COLUMNS = (
    Column("meter_id", Integer),
    Column("bucket", Moment),
    Column("ac_milliwh", BigInteger),
    Column("readings", BigInteger),
    Column("voltage_centiv_sum", BigInteger),
    Column("voltage_readings", BigInteger),
    Column("voltage_centiv_min", Integer),
    Column("voltage_centiv_max", Integer),
)
_VEHICLE_COLUMNS = (
    Column("vehicle_id", Integer),
    Column("bucket", Moment),
    Column("dc_milliwh", BigInteger),
    Column("readings", BigInteger),
    Column("soc_centipercent_sum", BigInteger),
    Column("soc_readings", BigInteger),
    Column("soc_centipercent_min", SmallInteger),
    Column("soc_centipercent_max", SmallInteger),
    Column("battery_temp_centic_sum", BigInteger),
    Column("battery_temp_readings", BigInteger),
    Column("battery_temp_centic_min", SmallInteger),
    Column("battery_temp_centic_max", SmallInteger),
)
_FLEET_COLUMNS = (
    Column("bucket", Moment),
    Column("ac_milliwh", BigInteger),
    Column("meter_readings", BigInteger),
    Column("dc_milliwh", BigInteger),
    Column("vehicle_readings", BigInteger),
)
_OF_MINUTES = (Column("first_ts", Moment), Column("last_ts", Moment), Column("unknown_readings", BigInteger))

_RANGE = (bindparam("range_from", type_=Moment), bindparam("range_to", type_=Moment))
_DEVICES = bindparam("devices", None, type_=ARRAY(Integer))


def _buckets(name: str, columns: tuple[Column[Any], ...], *parameters: BindParameter[Any]) -> TableValuedAlias:
    """Returns one of the SQL functions that both engines offer, over the buckets in [:range_from, :range_to).

    Both bounds are parameters of every statement that selects from it, and are whole minutes, hours or days. A function
    of devices answers those whose ids are in the list :devices, or all without a list.
    """
    called: Function[Any] = getattr(func, name)(*_RANGE, *parameters)
    return called.table_valued(*columns, name=name)


meter_minute = _buckets("meter_minute", (*_METER_COLUMNS, *_OF_MINUTES), _DEVICES)
meter_hour = _buckets("meter_hour", _METER_COLUMNS, _DEVICES)
meter_day = _buckets("meter_day", _METER_COLUMNS, _DEVICES)
vehicle_minute = _buckets("vehicle_minute", (*_VEHICLE_COLUMNS, *_OF_MINUTES, Column("meter_id", Integer)), _DEVICES)
vehicle_hour = _buckets("vehicle_hour", _VEHICLE_COLUMNS, _DEVICES)
vehicle_day = _buckets("vehicle_day", _VEHICLE_COLUMNS, _DEVICES)
fleet_minute = _buckets("fleet_minute", _FLEET_COLUMNS)
fleet_hour = _buckets("fleet_hour", _FLEET_COLUMNS)
fleet_day = _buckets("fleet_day", _FLEET_COLUMNS)

# as_of: the aggregate includes every reading committed before it.
aggregate_freshness = func.aggregate_freshness().table_valued(
    Column("name", Text), Column("materialized_through", Moment), Column("as_of", Moment), name="aggregate_freshness"
)

# kept_from: the aggregate is complete from then on; NULL means that it is kept for good.
aggregate_retention = func.aggregate_retention().table_valued(
    Column("name", Text), Column("kept_from", Moment), name="aggregate_retention"
)
