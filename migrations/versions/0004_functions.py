"""The SQL functions that both engines offer, and the table that spreads the fleet's energy."""

import sqlalchemy as sa
from alembic import op

from migrations.engine import run_sql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run_sql("0004_functions.sql")
    run_sql("0004_instants.sql")
    op.create_table(
        "fleet_spread",
        sa.Column("read_in", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("bucket", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("readings", sa.BigInteger),
        sa.Column("read_milliwh", sa.BigInteger),
        sa.Column("ac_milliwh", sa.BigInteger, nullable=False),
        sa.Column("dc_milliwh", sa.BigInteger, nullable=False),
    )
    op.create_index(None, "fleet_spread", ["bucket"])
    run_sql("0004_spread.sql")


def downgrade() -> None:
    run_sql("0004_spread.down.sql")
    op.drop_table("fleet_spread")
    run_sql("0004_instants.down.sql")
    run_sql("0004_functions.down.sql")
