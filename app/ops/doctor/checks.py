"""The checks. Each yields a finding for each cause of something that is wrong, and none when all is well."""

from collections.abc import Iterator
from datetime import UTC, timedelta

from app.analytics.alerts.sentence import LOOKS_LIKE, TO_DO
from app.database import most_connections
from app.faults import STORE_FAULTS
from app.fleet.states import REPORTING_MINUTES
from app.migrate import OTHER_SQL
from app.ops.doctor.facts import Facts, Finding
from app.ops.doctor.jobs import check_jobs
from app.policies.plan import loses_nothing
from app.settings import variable_of

CLOCK_SECONDS = 5
# With less free than either of these, the server may stop at any moment: it panics when it cannot write its log.
DISK_FREE_BYTES = 1 << 30
DISK_FREE_SHARE = 0.05
# A transaction of fewer readings costs more than its readings do; 20 is Mosquitto's default.
LEAST_IN_FLIGHT = 1_000


def wrong(facts: Facts) -> list[Finding]:
    """Returns the findings of all checks, and those about what could not be read."""
    return [finding for check in _CHECKS for finding in check(facts)] + facts.unread


def _away(facts: Facts) -> Iterator[Finding]:
    if facts.away:
        advice = "See that its server runs, that DATABASE_URL names it, and that the database exists (`createdb`)."
        yield Finding("away", f"{facts.away} {advice if facts.settings.database_url else ''}")


def _versions(facts: Facts) -> Iterator[Finding]:
    if facts.server and not 160000 <= facts.server.postgresql_number < 190000:
        yield Finding(
            "postgresql_version", f"This is PostgreSQL {facts.server.postgresql}; Wattline needs 16, 17 or 18."
        )


def _migration(facts: Facts) -> Iterator[Finding]:
    if facts.by_other_sql:
        yield Finding("other_sql", OTHER_SQL)
    elif facts.revision in (None, facts.needed_revision):
        return
    elif not facts.revision:
        yield Finding("not_migrated", "The database is not migrated: run `wattline migrate`.")
    elif facts.revision > facts.needed_revision:
        yield Finding(
            "newer_database",
            f"The database is at revision {facts.revision}, made by a newer Wattline than this one, which knows "
            f"{facts.needed_revision}: update Wattline.",
        )
    else:
        yield Finding(
            "not_migrated",
            f"The database is at revision {facts.revision}, this version needs {facts.needed_revision}: run "
            "`wattline migrate`.",
        )


def _engine(facts: Facts) -> Iterator[Finding]:
    if facts.engine and facts.settings.engine not in ("auto", facts.engine):
        yield Finding(
            "other_engine",
            f"WATTLINE_ENGINE asks for '{facts.settings.engine}', but the database was migrated for '{facts.engine}', "
            f"which stays: unset it, or set it to '{facts.engine}'.",
        )


def _recorded(facts: Facts) -> Iterator[Finding]:
    for field, ours in facts.settings.recorded().items():
        variable, recorded = variable_of(field), facts.recorded.get(field, ours)
        if ours != recorded:
            yield Finding(
                "other_setting",
                f"{variable} is {ours:.15g} here, and {recorded:.15g} in the database's record: processes with "
                f"different values answer differently. Set it to {recorded:.15g}; or, if {ours:.15g} is right, run "
                "`wattline migrate` with that value, and restart all other processes with it.",
                variable,
            )


def _writable(facts: Facts) -> Iterator[Finding]:
    for fault in facts.store_faults:
        yield Finding(fault, STORE_FAULTS[fault])


def _durability(facts: Facts) -> Iterator[Finding]:
    for setting in facts.server.unsafe_settings if facts.server else ():
        yield Finding(
            "not_durable",
            f"{setting} is off: what was acknowledged may be lost when the machine fails. Set {setting} = on in "
            "postgresql.conf, for the role and for the database, and reload the server.",
            setting,
        )


def _connections(facts: Facts) -> Iterator[Finding]:
    needed = most_connections(facts.settings)
    if facts.server and needed > facts.server.connections_allowed:
        yield Finding(
            "too_few_connections",
            f"The service may open {needed} connections, the server allows {facts.server.connections_allowed}: raise "
            "max_connections, or lower WATTLINE_POOL_MAX_SIZE.",
        )


def _clock(facts: Facts) -> Iterator[Finding]:
    ahead = facts.clock_ahead_seconds
    if abs(ahead) > CLOCK_SECONDS:
        yield Finding(
            "clock_differs",
            f"The clock of the database is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's. "
            "Readings are judged by one and stamped by the other: set both by NTP.",
        )


def _disk(facts: Facts) -> Iterator[Finding]:
    if facts.disk:
        free, total = facts.disk
        if free < max(DISK_FREE_BYTES, total * DISK_FREE_SHARE):
            yield Finding(
                "disk_low",
                f"The disk under the data directory has {free / 2**30:.1f} GB free of {total / 2**30:.0f} GB: make "
                "room, or shorten retention in timescale/policies.toml and run `wattline policy apply`.",
            )


def _policies(facts: Facts) -> Iterator[Finding]:
    if facts.plan and (changes := facts.plan.changes):
        command = "migrate" if all(map(loses_nothing, changes)) else "policy plan`, then `wattline policy apply"
        more = f"; {len(changes) - 1} more are to come" if len(changes) > 1 else ""
        broken = f"; they break the rule that {'; and that '.join(facts.plan.broken)}" if facts.plan.broken else ""
        yield Finding(
            "destructive_drift" if broken else "policy_drift",
            f"The policies differ from timescale/policies.toml, which says: {changes[0].words}{more}{broken}. Run "
            f"`wattline {command}` to apply the file.",
            "; ".join(change.words for change in changes) + broken,
        )


def _partitions(facts: Facts) -> Iterator[Finding]:
    if facts.prepared_until and facts.now and facts.devices and facts.devices.reporting:
        midnight = facts.now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if facts.prepared_until < midnight + timedelta(days=2):
            yield Finding(
                "no_partitions",
                "Readings arrive, but tomorrow's partitions are missing: no service runs the maintenance loop, which "
                "also drops what is too old. Restart `wattline serve`, and look for maintenance_failed in its log.",
            )


def _broker(facts: Facts) -> Iterator[Finding]:
    if facts.broker_away:
        yield Finding(
            "broker_away", f"{facts.broker_away} See that it runs, and that the WATTLINE_MQTT_ settings are right."
        )
    grants = facts.grants
    if grants is None:
        return
    if grants.qos < 1:
        yield Finding(
            "broker_qos",
            "The broker takes no QoS 1: what is sent while no consumer is connected is lost. Use another broker.",
        )
    if grants.receive_maximum < LEAST_IN_FLIGHT:
        yield Finding(
            "broker_in_flight",
            f"The broker has at most {grants.receive_maximum} messages in flight, so that no large transactions come "
            "about: in mosquitto.conf, set max_inflight_messages 0.",
        )
    if facts.settings.mqtt_share_group and not grants.shares:
        yield Finding(
            "broker_shares",
            "The broker has no shared subscriptions: unset WATTLINE_MQTT_SHARE_GROUP, or use another broker.",
        )


def _silence(facts: Facts) -> Iterator[Finding]:
    if facts.devices and facts.devices.reported_today and not facts.devices.reporting:
        yield Finding(
            "no_device_reports",
            f"No device has reported for {REPORTING_MINUTES} minutes, {facts.devices.reported_today} have within a "
            "day: see that the service runs (GET /health/ready) and that the gateways reach it.",
        )


def _registry(facts: Facts) -> Iterator[Finding]:
    if rejected := dict(facts.rejected_today).get("too_many_new_devices"):
        yield Finding(
            "too_many_new_devices",
            f"{rejected} readings of new devices were rejected within a day, since too many devices were new within an "
            "hour: `wattline quarantine list --reason too_many_new_devices` shows the readings. If their devices are "
            "neither typos nor strangers, `redrive` lets them in, and WATTLINE_NEW_DEVICES_PER_HOUR sets the limit.",
        )


def _flood(facts: Facts) -> Iterator[Finding]:
    if flood := facts.flood:
        whose = f"of device {flood.device}" if flood.device else f"of devices that are not registered, as {flood.code}"
        option = f"--device '{flood.device}'" if flood.device else f"--reason {flood.code}"
        yield Finding(
            "quarantine_full",
            f"The quarantine is full, so that it drops readings. The largest part of the last day's, {flood.count}, "
            f"came over {flood.source} and is {whose}: `wattline quarantine list --source {flood.source} {option}` "
            "shows them. Mend their sender; `purge` then makes room.",
            f"{flood.source} {flood.device or flood.code}",
        )


def _topics(facts: Facts) -> Iterator[Finding]:
    if rejected := dict(facts.rejected_today).get("no_device_in_topic"):
        yield Finding(
            "no_device_in_topic",
            f"{rejected} readings over MQTT were rejected within a day, since neither they nor their topics name a "
            "device: `wattline quarantine list --reason no_device_in_topic` shows the readings. Write {id} in "
            "WATTLINE_MQTT_METER_TOPIC or WATTLINE_MQTT_VEHICLE_TOPIC for the level that does; with this setting, "
            "`redrive` stores them.",
        )


def _alike_ids(facts: Facts) -> Iterator[Finding]:
    if facts.alike_ids:
        named = "; ".join(f"{alike.stream}s {' and '.join(alike.ids)}" for alike in facts.alike_ids)
        more = facts.alike_ids[0].groups - len(facts.alike_ids)
        others = f"; and {more} more such group{'s' * (more > 1)}" if more else ""
        yield Finding(
            "ids_differ_in_case",
            f"Ids differ in upper and lower case only: {named}{others}. If they are one device, its energy is in two "
            "places: let it send one id, and retire the other (`wattline device retire`). Else rename one of them "
            "(`wattline device rename`).",
            named,
        )


def _implausible(facts: Facts) -> Iterator[Finding]:
    for devices in facts.implausible:
        more = devices.count - len(devices.names)
        named = ", ".join(devices.names) + (f" and {more} more" if more else "")
        yield Finding(
            "implausible_energy",
            f"Energy is more than a device can take, and {LOOKS_LIKE[devices.looks_like]}: {named}. "
            f"{TO_DO[devices.looks_like]} `wattline alerts list --open --kind implausible_energy` shows "
            "the readings.",
            devices.looks_like,
        )


_CHECKS = (
    _away,
    _versions,
    _migration,
    _engine,
    _recorded,
    _writable,
    _durability,
    _connections,
    _clock,
    _disk,
    _policies,
    check_jobs,
    _partitions,
    _broker,
    _silence,
    _registry,
    _flood,
    _topics,
    _alike_ids,
    _implausible,
)
