"""Sums per minute, hour and day, and the shapes in which they are answered."""

from migrations.engine import run_sql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run_sql("0003_buckets.sql")
    run_sql("0003_aggregates.sql")


def downgrade() -> None:
    run_sql("0003_aggregates.down.sql")
    run_sql("0003_buckets.down.sql")
