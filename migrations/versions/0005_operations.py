"""The SQL functions that tell an operator about jobs, their scheduler and sizes."""

from migrations.engine import run_sql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run_sql("0005_operations.sql")


def downgrade() -> None:
    run_sql("0005_operations.down.sql")
