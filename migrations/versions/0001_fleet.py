"""The installation with its engine and retentions; the fleet: devices, their names, latest states and mapping."""

import os

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from app.fleet.limits import limit_of
from app.settings import Settings
from migrations.engine import choose_engine, engine_setting

revision = "0001"
down_revision = None


def upgrade() -> None:
    engine = choose_engine(op.get_bind(), engine_setting())
    installation = op.create_table(
        "installation",
        sa.Column("engine", sa.Text, nullable=False),
        # The checksum of the SQL that made this database; env.py records it with each revision.
        sa.Column("sql_checksum", sa.Text),
        # More power than this is no energy between two registers. The setting of later says nothing of what is stored.
        sa.Column("max_milliwatt", sa.BigInteger, nullable=False),
        # The settings by which all processes are to answer, as the last `wattline migrate` had them.
        sa.Column("settings", postgresql.JSONB, nullable=False),
        sa.Column("installed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        # How many rejected readings the bounds of the quarantine have dropped so far.
        sa.Column("quarantine_dropped", sa.BigInteger, nullable=False, server_default="0"),
        sa.CheckConstraint("engine IN ('timescale', 'plain')", name="engine"),
    )
    settings = Settings.from_environ(os.environ)
    op.get_bind().execute(
        installation.insert().values(
            engine=engine, max_milliwatt=limit_of(settings.max_power_kw), settings=settings.recorded()
        )
    )

    # How long rows are kept, as policies.toml says. On TimescaleDB, its jobs hold the retentions of the hypertables.
    op.create_table(
        "retention",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("drop_after", sa.Interval, nullable=False),
    )

    for device in ("meter", "vehicle"):
        op.create_table(
            device,
            sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
            sa.Column("external_id", sa.Text, nullable=False, unique=True),
            sa.Column(
                "registered_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now(), index=True
            ),
            sa.Column("retired_at", sa.DateTime(timezone=True)),
            # An operator's word on when the device must report; NULL: its own rhythm tells.
            sa.Column("expectation", sa.Text),
            # Energy that takes more power than this is implausible; NULL: the service's setting is the limit.
            sa.Column("max_milliwatt", sa.BigInteger),
            # The operator's label; NULL without one.
            sa.Column("site", sa.Text),
            sa.CheckConstraint("expectation IN ('always', 'charging', 'never')", name="expectation"),
            sa.CheckConstraint("max_milliwatt > 0", name="max_milliwatt"),
            sa.CheckConstraint("length(site) BETWEEN 1 AND 64", name="site"),
            sa.CheckConstraint("external_id ~ '^[A-Za-z0-9][A-Za-z0-9._:*+@~-]{0,63}$'", name="external_id"),
        )

    # The names that devices had before they were renamed; readings under these names are still theirs.
    op.create_table(
        "former_name",
        sa.Column("stream", sa.Text, primary_key=True),
        sa.Column("external_id", sa.Text, primary_key=True),
        sa.Column("device_id", sa.Integer, nullable=False),
        sa.CheckConstraint("stream IN ('meter', 'vehicle')", name="stream"),
    )

    # A state is what the device last sent: its register, or else the energy. `base_milliwh`, the register of `base_ts`,
    # is the last good one before that. `registers_since` is set once the device has sent a register; no difference is
    # of that instant or later.
    # `in_time` says that a reading of the device once came in time, which no import does.
    # Every batch rewrites the rows of its devices. The free space keeps a row's new version on its page, so that the
    # index does not change.
    op.create_table(
        "meter_state",
        sa.Column("meter_id", sa.Integer, sa.ForeignKey("meter.id"), primary_key=True, autoincrement=False),
        sa.Column("ts", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ac_milliwh", sa.BigInteger),
        sa.Column("voltage_centiv", sa.Integer),
        sa.Column("register_milliwh", sa.BigInteger),
        sa.Column("base_ts", sa.DateTime(timezone=True)),
        sa.Column("base_milliwh", sa.BigInteger),
        sa.Column("registers_since", sa.DateTime(timezone=True)),
        sa.Column("in_time", sa.Boolean, nullable=False, server_default=sa.false()),
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "vehicle_state",
        sa.Column("vehicle_id", sa.Integer, sa.ForeignKey("vehicle.id"), primary_key=True, autoincrement=False),
        sa.Column("ts", sa.DateTime(timezone=True), nullable=False),
        sa.Column("meter_id", sa.Integer),
        sa.Column("dc_milliwh", sa.BigInteger),
        sa.Column("soc_centipercent", sa.SmallInteger),
        sa.Column("battery_temp_centic", sa.SmallInteger),
        sa.Column("register_milliwh", sa.BigInteger),
        sa.Column("base_ts", sa.DateTime(timezone=True)),
        sa.Column("base_milliwh", sa.BigInteger),
        sa.Column("registers_since", sa.DateTime(timezone=True)),
        sa.Column("in_time", sa.Boolean, nullable=False, server_default=sa.false()),
        postgresql_with={"fillfactor": 50},
    )

    # The end of each store transaction asks which of its devices have sent registers.
    for device in ("meter", "vehicle"):
        op.create_index(
            f"{device}_state_register_idx",
            f"{device}_state",
            [f"{device}_id"],
            postgresql_where=sa.text("registers_since IS NOT NULL"),
        )

    # A GiST exclusion constraint needs it to compare integers. It comes with PostgreSQL, as a trusted extension.
    op.execute("CREATE EXTENSION IF NOT EXISTS btree_gist")
    op.create_table(
        "vehicle_meter",
        sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
        sa.Column("vehicle_id", sa.Integer, sa.ForeignKey("vehicle.id"), nullable=False),
        sa.Column("meter_id", sa.Integer, sa.ForeignKey("meter.id"), nullable=False, index=True),
        sa.Column("valid", postgresql.TSTZRANGE, nullable=False),
        sa.CheckConstraint("NOT isempty(valid)", name="valid"),
        postgresql.ExcludeConstraint(("vehicle_id", "="), ("valid", "&&"), name="one_meter_at_a_time", using="gist"),
    )

    # A device is in service unless it was retired and has measured nothing since; `ts` is of its newest reading. The
    # function is inlined, so that the planner estimates its rows well.
    op.execute("""
        CREATE FUNCTION in_service(retired_at timestamptz, ts timestamptz) RETURNS boolean LANGUAGE sql IMMUTABLE
        AS $$ SELECT retired_at IS NULL OR coalesce(ts > retired_at, false) $$
    """)
    # Every device with its newest reading, and what is expected of it.
    op.execute("""
        CREATE VIEW device (stream, id, external_id, registered_at, ts, milliwh, register_milliwh, retired_at,
                            in_service, in_time, expectation, max_milliwatt, site) AS
        SELECT 'meter'::text, id, external_id, registered_at, ts, ac_milliwh, register_milliwh, retired_at,
               in_service(retired_at, ts), in_time, expectation, max_milliwatt, site
        FROM meter LEFT JOIN meter_state ON meter_id = id
        UNION ALL
        SELECT 'vehicle', id, external_id, registered_at, ts, dc_milliwh, register_milliwh, retired_at,
               in_service(retired_at, ts), in_time, expectation, max_milliwatt, site
        FROM vehicle LEFT JOIN vehicle_state ON vehicle_id = id
    """)


def downgrade() -> None:
    op.execute("DROP VIEW device")
    op.execute("DROP FUNCTION in_service")
    for table in (
        "vehicle_meter",
        "vehicle_state",
        "meter_state",
        "former_name",
        "vehicle",
        "meter",
        "retention",
        "installation",
    ):
        op.drop_table(table)
