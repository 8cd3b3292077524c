"""Alerts, the judged hours behind them, and the log of their transitions."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"

_KINDS = """kind IN ('low_efficiency', 'impossible_efficiency', 'frozen_meter', 'frozen_vehicle', 'no_data',
                     'implausible_energy')"""
_STREAMS = "stream IN ('meter', 'vehicle')"


def upgrade() -> None:
    # All readings that were committed before it have been judged if their hour was over.
    op.add_column("installation", sa.Column("judged_as_of", sa.DateTime(timezone=True)))

    # A row is the evidence on a vehicle at a meter in a UTC hour; meter 0 stands for no meter. `dc_milliwh` is all DC
    # at the meter, the doubtful energies and times are paired ones too. The `frozen_` columns describe the longest
    # stretch that ends in the hour and in which one device was frozen: its length, and the energy that the other device
    # measured meanwhile.
    energies = ("paired_ac", "paired_dc", "doubtful_ac", "doubtful_dc", "dc", "unsure")
    op.create_table(
        "efficiency_hour",
        sa.Column("vehicle_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("hour", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("meter_id", sa.Integer, primary_key=True, autoincrement=False),
        *(sa.Column(f"{name}_milliwh", sa.BigInteger, nullable=False) for name in energies),
        *(
            sa.Column(f"{name}_us", sa.BigInteger, nullable=False)
            for name in ("paired", "shared", "unpaired", "doubtful")
        ),
        sa.Column("frozen_meter_minutes", sa.SmallInteger, nullable=False),
        sa.Column("frozen_meter_dc_milliwh", sa.BigInteger, nullable=False),
        sa.Column("frozen_vehicle_minutes", sa.SmallInteger, nullable=False),
        sa.Column("frozen_vehicle_ac_milliwh", sa.BigInteger, nullable=False),
    )
    op.create_index(None, "efficiency_hour", ["hour"])
    op.create_index(None, "efficiency_hour", ["meter_id", "hour"], postgresql_where=sa.text("frozen_meter_minutes > 0"))

    # The first and the last minute of an hour in which a device reported, and the longest time between two such minutes
    # that follow each other; 0 if there is only one. A device has rows of the week before its newest reading.
    op.create_table(
        "reported_hour",
        sa.Column("stream", sa.Text, primary_key=True),
        sa.Column("device_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("hour", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("first_minute", sa.SmallInteger, nullable=False),
        sa.Column("last_minute", sa.SmallInteger, nullable=False),
        sa.Column("gap_minutes", sa.SmallInteger, nullable=False),
        sa.CheckConstraint(_STREAMS, name="stream"),
    )

    # The readings of a device in an hour whose power is beyond its limit at that time: their number and energy, the
    # first and the last of them, the limit, and what may be wrong with them.
    op.create_table(
        "implausible_hour",
        sa.Column("stream", sa.Text, primary_key=True),
        sa.Column("device_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("hour", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("readings", sa.Integer, nullable=False),
        sa.Column("milliwh", sa.BigInteger, nullable=False),
        sa.Column("first_ts", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_ts", sa.DateTime(timezone=True), nullable=False),
        sa.Column("max_milliwatt", sa.BigInteger, nullable=False),
        sa.Column("looks_like", sa.Text, nullable=False),
        sa.CheckConstraint(_STREAMS, name="stream"),
        sa.CheckConstraint("looks_like IN ('register', 'wh', 'step')", name="looks_like"),
    )
    op.create_index(None, "implausible_hour", ["hour"])

    # Alerts follow from the stored data, whatever order these came in. `evidence` is as of the opening.
    op.create_table(
        "alert",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("stream", sa.Text, primary_key=True),
        sa.Column("device_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("opened", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("closed", sa.DateTime(timezone=True)),
        sa.Column("evidence", JSONB, nullable=False),
        # Who has taken it on, when and why; NULL again when it reopens.
        sa.Column("acknowledged", JSONB),
        # The paired energies since the opening; the loss has those of the 24 hours before it as well. Those of a frozen
        # device are of the hours in which it was frozen.
        sa.Column("ac_milliwh", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("dc_milliwh", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("loss_milliwh", sa.BigInteger, nullable=False, server_default="0"),
        sa.CheckConstraint(_KINDS, name="kind"),
        sa.CheckConstraint(_STREAMS, name="stream"),
    )
    op.create_index(None, "alert", ["opened"])

    # The log has every transition of an alert in the order in which it was found, and what is told of sessions, whose
    # start is in `opened`. No webhook has a quiet one, for somebody had acknowledged the alert.
    op.create_table(
        "alert_transition",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()),
        sa.Column("transition", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("device_id", sa.Integer, nullable=False),
        sa.Column("opened", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed", sa.DateTime(timezone=True)),
        sa.Column("evidence", JSONB, nullable=False),
        sa.Column("quiet", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.CheckConstraint(
            """
            CASE WHEN kind = 'session' THEN transition IN ('ended', 'changed')
                 ELSE transition IN ('opened', 'closed', 'retracted') END
            """,
            name="transition",
        ),
        sa.CheckConstraint(f"kind = 'session' OR {_KINDS}", name="kind"),
        sa.CheckConstraint(_STREAMS, name="stream"),
    )
    op.create_index(None, "alert_transition", ["at"])


def downgrade() -> None:
    for table in ("alert_transition", "alert", "implausible_hour", "reported_hour", "efficiency_hour"):
        op.drop_table(table)
    op.drop_column("installation", "judged_as_of")
