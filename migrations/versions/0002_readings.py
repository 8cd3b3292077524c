"""Readings: hypertables, or tables partitioned by day."""

from migrations.engine import run_sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run_sql("0002_readings.sql")


def downgrade() -> None:
    run_sql("0002_readings.down.sql")
