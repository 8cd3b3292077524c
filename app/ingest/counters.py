"""Counts of the readings that this process has taken in since its start, for /metrics."""

from collections.abc import Iterable

from prometheus_client import Counter, Gauge

from app.ingest.batch import Dropped, Receipt, Source

RECEIVED = Counter("wattline_readings_received", "Readings of batches that have a receipt.")
INSERTED = Counter("wattline_readings_inserted", "Readings stored.")
DUPLICATES = Counter("wattline_readings_duplicate", "Readings that were stored before.")
CONFLICTING = Counter(
    "wattline_readings_conflicting", "Duplicates that came with other values than are stored.", ["source"]
)
REJECTED = Counter("wattline_readings_rejected", "Readings rejected.", ["code"])
DROPPED = Counter(
    "wattline_members_dropped", "Optional members dropped of readings that were stored.", ["field", "code"]
)
WAITING = Gauge("wattline_readings_waiting", "Readings that wait for the writer.")

# Without the label, a process that has no consumer would look as if its consumer were disconnected.
MQTT_CONNECTED = Gauge("wattline_mqtt_connected", "1 while every topic is subscribed at the broker.", ["broker"])
MQTT_STORE_WAITS = Gauge(
    "wattline_mqtt_store_waits",
    "1 after a failed store, for example while the database is away, until the next store that succeeds.",
    ["broker"],
)
MQTT_MESSAGES = Counter("wattline_mqtt_messages", "Messages stored or put in quarantine.", ["broker"])
MQTT_QUARANTINED = Counter(
    "wattline_mqtt_messages_quarantined", "Messages of which something went to quarantine.", ["broker"]
)


def count_warnings(warnings: Iterable[Dropped]) -> None:
    """Adds dropped members to the counts."""
    for dropped in warnings:
        DROPPED.labels(dropped.field, dropped.code).inc()


def count(receipt: Receipt, source: Source) -> None:
    """Adds a receipt's readings to the counts."""
    RECEIVED.inc(receipt.received)
    INSERTED.inc(receipt.inserted)
    DUPLICATES.inc(receipt.duplicates)
    if receipt.conflicts:
        CONFLICTING.labels(source).inc(receipt.conflicts)
    for rejection in receipt.rejected:
        REJECTED.labels(rejection.code).inc()
