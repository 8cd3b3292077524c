"""A load test from beginning to end: it sends, counts lost readings, and shows the result."""

import asyncio
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

from app.load.count import Count, count_lost
from app.load.display import console, progress, show_table, showing
from app.load.mqtt import Broker
from app.load.run import Run, Tally
from app.load.service import CONNECTIONS, Service
from app.load.source import Batch
from app.settings import Settings

# A reading that a simulated network held back is two hours old at most when it arrives.
_OLDEST = timedelta(hours=3)


async def measure(
    url: str,
    broker: Settings | None,
    batches: Callable[[str, int], Iterator[Batch]],
    *,
    mappings: Sequence[tuple[str, str]] = (),
    connections: int = CONNECTIONS,
) -> str | None:
    """Sends a run's batches, shows the progress, then the result as a table; returns a sentence on what is wrong.

    `batches` is called with the run's name and its start in microseconds since 1970. With settings of a `broker`, it
    sends through the broker. Ctrl-C ends the sending, a second one the counting. Raises SetupError when the service or
    the broker cannot be reached.
    """
    name, tally = f"load-{secrets.token_hex(4)}", Tally()
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(Service(url))
        publisher = None if broker is None else await stack.enter_async_context(Broker(broker, name))
        for vehicle_id, meter_id in mappings:
            await service.register(f"{name}-{vehicle_id}", f"{name}-{meter_id}")
        run, started, start_s = (
            Run((publisher or service).send, tally, connections=connections),
            datetime.now(UTC),
            time.monotonic(),
        )
        console.print(f"Sending as {name}. Ctrl-C ends it early.")
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, run.stop)
        async with showing(lambda: progress(tally, time.monotonic() - start_s)):
            await run.send_all(batches(name, int(started.timestamp() * 1_000_000)))
        seconds, retries = time.monotonic() - start_s, service.retries
        count = await _counted(service, tally, started - _OLDEST)
    show_table(tally, count, retries, seconds, has_receipts=broker is None)
    return _faults(tally, count)


async def _counted(service: Service, tally: Tally, since: datetime) -> Count | None:
    counted = 0

    def report(devices: int) -> None:
        nonlocal counted
        counted = devices

    counting = asyncio.ensure_future(count_lost(service, tally.of_device, since, tally.committed_at, report))
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, counting.cancel)
    async with showing(lambda: f"Asking what is stored: {counted:,} of {len(tally.of_device):,} devices"):
        try:
            return await counting
        except asyncio.CancelledError:
            return None


def _faults(tally: Tally, count: Count | None) -> str | None:
    faults = [] if tally.sent else ["nothing was sent"]
    if tally.rejected:
        faults.append(f"{tally.rejected.total():,} readings were rejected")
    if tally.unanswered:
        faults.append(f"{tally.unanswered:,} readings were not answered")
    if count is None:
        faults.append("lost readings were not counted")
    elif count.lost:
        faults.append(f"{count.lost:,} of {tally.of_device.total():,} acknowledged readings are lost")
        if count.unsettled:
            faults.append(
                f"{count.unsettled:,} of them may still come: the service does not say that it has counted all"
            )
    return "; ".join(faults) + "." if faults else None
