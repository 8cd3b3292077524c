"""Brings the database's policies to the desired state, or back to the former one, and records each change."""

import msgspec
from sqlalchemy import Connection, insert, select, text

from app.database import os_user
from app.errors import SetupError
from app.policies.desired import Policies
from app.policies.live import Kind, Rule, live_state
from app.policies.plan import Change, Plan, compare, kept, loses_nothing, plan_policies
from app.policies.record import policy_change


class Recorded(msgspec.Struct, frozen=True):
    """The rules of one policy, as they stand in the table `policy_change`; none where there was no policy."""

    kind: Kind
    name: str
    rules: list[Rule]


def migrate_policies(connection: Connection, policies: Policies) -> list[str]:
    """Applies all changes at the first installation, later those that lose nothing; returns a line for each.

    One more line names the changes that are left.
    """
    changes = plan_policies(connection, policies).changes
    first = connection.execute(select(policy_change.c.id).limit(1)).first() is None
    applied = [change for change in changes if first or loses_nothing(change)]
    if first or applied:
        apply_changes(connection, applied, "first installation" if first else "wattline migrate")
    left = [change.words for change in changes if change not in applied]
    note = f"Left for `wattline policy apply`: {'; '.join(left)}."
    return [change.words for change in applied] + ([note] if left else [])


def apply_changes(connection: Connection, changes: list[Change], reason: str | None) -> None:
    """Makes the changes in the connection's transaction, and records them with who asks and why."""
    for change in changes:
        for statement in change.statements:
            connection.execute(text(statement), change.parameters)
    connection.execute(
        insert(policy_change).values(
            os_user=os_user(),
            reason=reason,
            changes=[change.words for change in changes],
            former=msgspec.to_builtins([Recorded(change.kind, change.name, change.live) for change in changes]),
            new=msgspec.to_builtins([Recorded(change.kind, change.name, change.desired) for change in changes]),
        )
    )


def plan_revert(connection: Connection) -> Plan:
    """The changes that bring the state before the last recorded change back. It only reads.

    Raises SetupError when nothing was changed since the installation.
    """
    newest = select(policy_change.c.former).order_by(policy_change.c.id.desc()).limit(2)
    records = connection.scalars(newest).all()
    if len(records) < 2:
        raise SetupError("There is nothing to revert: no policy was changed since the installation.")
    former = msgspec.convert(records[0], list[Recorded])
    engine = connection.scalars(text("SELECT engine FROM installation")).one()
    live = live_state(connection, engine)
    foreign = [policy for policy in former if None in policy.rules]
    back = {(policy.kind, policy.name): policy.rules for policy in former if policy not in foreign}
    desired = {key: rules for key, rules in (live | back).items() if rules}
    notes = [f"The {policy.kind} of {policy.name} was no rule of Wattline's and stays as it is." for policy in foreign]
    return Plan(compare(desired, live, engine), notes, kept(desired, engine))
