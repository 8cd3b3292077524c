"""The tables in which each change of the policies, and the growth of what is stored, are recorded."""

from sqlalchemy import BigInteger, Column, Identity, Table, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from app.tables import Moment, metadata

# Who changed policies, why, and from which rules to which; the first row is of the installation.
policy_change = Table(
    "policy_change",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("changed_at", Moment, nullable=False, server_default=func.now()),
    Column("database_role", Text, nullable=False, server_default=text("SESSION_USER")),
    Column("os_user", Text, nullable=False),
    Column("reason", Text),
    Column("changes", ARRAY(Text), nullable=False),
    Column("former", JSONB, nullable=False),
    Column("new", JSONB, nullable=False),
)

# The size of each table and aggregate, once an hour.
storage_size = Table(
    "storage_size",
    metadata,
    Column("at", Moment, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("bytes", BigInteger, nullable=False),
)
