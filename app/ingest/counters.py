"""What this process has taken in since its start, for /metrics."""

from prometheus_client import Counter, Gauge

from app.ingest.receipt import Receipt

RECEIVED = Counter("wattline_readings_received", "Readings of batches that have a receipt.")
INSERTED = Counter("wattline_readings_inserted", "Readings stored.")
DUPLICATES = Counter("wattline_readings_duplicate", "Readings that were stored before.")
REJECTED = Counter("wattline_readings_rejected", "Readings refused.", ["code"])
WAITING = Gauge("wattline_readings_waiting", "Readings that wait for the writer.")


def count(receipt: Receipt) -> None:
    """Adds a receipt's readings."""
    RECEIVED.inc(receipt.received)
    INSERTED.inc(receipt.inserted)
    DUPLICATES.inc(receipt.duplicates)
    for rejection in receipt.rejected:
        REJECTED.labels(rejection.code).inc()
