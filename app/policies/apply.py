"""The application of the plan, which brings the database's policies to the desired state."""

from sqlalchemy import Connection, text

from app.policies.desired import Policies
from app.policies.plan import plan_policies


def apply_policies(connection: Connection, policies: Policies) -> list[str]:
    """Executes the plan in the connection's transaction; returns one line per change."""
    changes = plan_policies(connection, policies).changes
    for change in changes:
        for statement in change.statements:
            connection.execute(text(statement), change.parameters)
    return [change.words for change in changes]
