"""Sums per minute, hour and day."""

from migrations.engine import run_sql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run_sql("0003_aggregates.sql")


def downgrade() -> None:
    run_sql("0003_aggregates.down.sql")
