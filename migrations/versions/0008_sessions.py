"""Charging sessions, and the instant up to which they are made."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    # The sessions that are not over are made of all readings that were committed before it.
    op.add_column("installation", sa.Column("sessions_as_of", sa.DateTime(timezone=True)))

    # A session's part in a UTC hour. If it is not the first one, it goes on from the part that ends where it starts.
    # The evidence is as in efficiency_hour, but dc_milliwh is all DC of the session.
    op.create_table(
        "session_hour",
        sa.Column("vehicle_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("started", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("over_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("is_first", sa.Boolean, nullable=False),
        sa.Column("meter_id", sa.Integer),
        sa.Column("paired_ac_milliwh", sa.BigInteger, nullable=False),
        sa.Column("paired_dc_milliwh", sa.BigInteger, nullable=False),
        sa.Column("doubtful_ac_milliwh", sa.BigInteger, nullable=False),
        sa.Column("doubtful_dc_milliwh", sa.BigInteger, nullable=False),
        sa.Column("dc_milliwh", sa.BigInteger, nullable=False),
        sa.Column("unsure_milliwh", sa.BigInteger, nullable=False),
        sa.Column("paired_us", sa.BigInteger, nullable=False),
        sa.Column("shared_us", sa.BigInteger, nullable=False),
        sa.Column("unpaired_us", sa.BigInteger, nullable=False),
        sa.Column("doubtful_us", sa.BigInteger, nullable=False),
        sa.Column("peak_milliwatt", sa.BigInteger),
        sa.Column("silences", sa.Integer, nullable=False),
        sa.Column("soc_start_centipercent", sa.SmallInteger),
        sa.Column("soc_end_centipercent", sa.SmallInteger),
        sa.Column("battery_temp_max_centic", sa.SmallInteger),
    )
    op.create_index(None, "session_hour", ["started"])

    # A session is the sum of its parts. It follows from the stored data, but for whether a webhook has told of it.
    # Nothing was taken from `until` to `over_at`; if nothing is up to then, it ended at `until`.
    op.create_table(
        "charging_session",
        sa.Column("vehicle_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("started", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("over_at", sa.DateTime(timezone=True), nullable=False),
        # NULL where the vehicle is at no meter.
        sa.Column("meter_id", sa.Integer),
        # All DC of the session; the paired energies are its evidence.
        sa.Column("dc_milliwh", sa.BigInteger, nullable=False),
        sa.Column("paired_ac_milliwh", sa.BigInteger, nullable=False),
        sa.Column("paired_dc_milliwh", sa.BigInteger, nullable=False),
        sa.Column("uncertainty", sa.Double),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("peak_milliwatt", sa.BigInteger),
        sa.Column("soc_start_centipercent", sa.SmallInteger),
        sa.Column("soc_end_centipercent", sa.SmallInteger),
        sa.Column("battery_temp_max_centic", sa.SmallInteger),
        sa.Column("paired_minutes", sa.Integer, nullable=False),
        sa.Column("shared_minutes", sa.Integer, nullable=False),
        sa.Column("silences", sa.Integer, nullable=False),
        sa.Column("told", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.create_index(None, "charging_session", ["started", "vehicle_id"])
    op.create_index(None, "charging_session", ["meter_id", "started"])
    op.create_index(None, "charging_session", ["over_at"])


def downgrade() -> None:
    op.drop_table("charging_session")
    op.drop_table("session_hour")
    op.drop_column("installation", "sessions_as_of")
