"""Webhooks: the transitions of alerts that wait for delivery to a receiver."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    # The last transition for which a webhook was queued; NULL before the first one.
    op.add_column("installation", sa.Column("webhooks_queued", sa.BigInteger))
    op.add_column("installation", sa.Column("webhooks_given_up", sa.BigInteger, nullable=False, server_default="0"))

    op.create_table(
        "webhook",
        sa.Column("transition_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )


def downgrade() -> None:
    op.drop_table("webhook")
    op.drop_column("installation", "webhooks_given_up")
    op.drop_column("installation", "webhooks_queued")
