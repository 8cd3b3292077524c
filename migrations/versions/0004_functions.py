"""The SQL functions that both engines offer."""

from migrations.engine import run_sql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run_sql("0004_functions.sql")


def downgrade() -> None:
    run_sql("0004_functions.down.sql")
