"""The SQL functions that tell an operator about jobs and sizes; the records of changed policies and of sizes."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.engine import run_sql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run_sql("0005_operations.sql")
    run_sql("0005_sizes.sql")
    # Here and not with the installation: where aggregates were made anew, their policies are applied as at first.
    op.create_table(
        "policy_change",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("database_role", sa.Text, nullable=False, server_default=sa.text("SESSION_USER")),
        sa.Column("os_user", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("changes", postgresql.ARRAY(sa.Text), nullable=False),
        sa.Column("former", postgresql.JSONB, nullable=False),
        sa.Column("new", postgresql.JSONB, nullable=False),
    )
    op.create_table(
        "storage_size",
        sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("storage_size")
    op.drop_table("policy_change")
    run_sql("0005_sizes.down.sql")
    run_sql("0005_operations.down.sql")
