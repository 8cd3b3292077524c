"""Readings, as hypertables or partitioned by day, and what ingest writes beside them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.engine import run_sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run_sql("0002_readings.sql")

    # Rejected readings. A row stands for all that have the same payload and code.
    op.create_table(
        "quarantine",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("topic", sa.Text),
        sa.Column("stream", sa.Text),
        sa.Column("device", sa.Text),
        sa.Column("code", sa.Text, nullable=False),
        sa.Column("field", sa.Text),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("times", sa.Integer, nullable=False, server_default="1"),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now(), index=True),
        sa.UniqueConstraint("hash", "code"),
    )

    # The hours of devices that have new readings, by which alerts are judged again.
    op.create_table(
        "touched_hour",
        sa.Column("stream", sa.Text, primary_key=True),
        sa.Column("device_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("hour", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("stream IN ('meter', 'vehicle')", name="stream"),
    )

    # Readings of registers whose energy is to be computed again, since readings of another hour came late. The store
    # does it right after the transaction that noted them.
    op.create_table(
        "register_due",
        sa.Column("stream", sa.Text, primary_key=True),
        sa.Column("device_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("ts", sa.DateTime(timezone=True), primary_key=True),
        sa.CheckConstraint("stream IN ('meter', 'vehicle')", name="stream"),
    )

    # How far the import of each file has come, and the days to refresh, in which it stored readings.
    op.create_table(
        "import_journal",
        sa.Column("id", sa.LargeBinary, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("lines", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("read", sa.BigInteger, nullable=False),
        sa.Column("inserted", sa.BigInteger, nullable=False),
        sa.Column("duplicates", sa.BigInteger, nullable=False),
        sa.Column("conflicts", sa.BigInteger, nullable=False),
        sa.Column("rejected", sa.BigInteger, nullable=False),
        sa.Column("ahead", sa.BigInteger, nullable=False),
        sa.Column("touched", postgresql.TSTZMULTIRANGE, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()),
    )


def downgrade() -> None:
    for table in ("import_journal", "register_due", "touched_hour", "quarantine"):
        op.drop_table(table)
    run_sql("0002_readings.down.sql")
