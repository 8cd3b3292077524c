"""The output of a load test: its progress, and its table."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from app.load.count import Count
from app.load.run import Tally

_SECONDS_BETWEEN_LINES = 5
_SECONDS_BETWEEN_UPDATES = 0.25

console = Console(highlight=False, markup=False, soft_wrap=True)


@asynccontextmanager
async def showing(line: Callable[[], str]) -> AsyncIterator[None]:
    """Shows the line until the end of the context: updated on a terminal, printed every 5 seconds elsewhere."""

    async def update(live: Live) -> None:
        next_line_s = time.monotonic() + _SECONDS_BETWEEN_LINES
        while True:
            await asyncio.sleep(_SECONDS_BETWEEN_UPDATES)
            if console.is_interactive:
                live.update(line(), refresh=True)
            elif time.monotonic() > next_line_s:
                console.print(line())
                next_line_s += _SECONDS_BETWEEN_LINES

    with Live("", console=console, auto_refresh=False, transient=True) as live:
        updating = asyncio.ensure_future(update(live))
        try:
            yield
        finally:
            updating.cancel()


def progress(tally: Tally, seconds: float) -> str:
    """Returns the progress so far, in a line."""
    p50, p95 = (_milliseconds(tally.latencies.percentile_s(percent)) for percent in (50, 95))
    return (
        f"{seconds:.0f} s: sent {tally.sent:,}, acknowledged {tally.acknowledged:,}, "
        f"{tally.acknowledged / seconds:,.0f} readings/s, latency p50 {p50}, p95 {p95}"
    )


def show_table(tally: Tally, count: Count | None, retries: int, seconds: float, *, has_receipts: bool) -> None:
    """Prints the result. `count` is None when the service could not be asked."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_row("sent", f"{tally.sent:,}")
    if has_receipts:
        table.add_row("inserted", f"{tally.inserted:,}")
        table.add_row("duplicates", f"{tally.duplicates:,}")
    else:
        table.add_row("acknowledged by the broker", f"{tally.acknowledged:,}")
    table.add_row("rejected", f"{tally.rejected.total():,}")
    for code, readings in sorted(tally.rejected.items()):
        table.add_row(f"  {code}", f"{readings:,}")
    table.add_row("unanswered", f"{tally.unanswered:,}")
    table.add_row("distinct, acknowledged", f"{tally.of_device.total():,}")
    table.add_row("of these in the service", "not counted" if count is None else f"{count.stored:,}")
    table.add_row("lost", "not counted" if count is None else f"{count.lost:,}")
    table.add_row("batches sent again", f"{retries:,}")
    table.add_row("throughput", f"{tally.acknowledged / seconds:,.0f} readings/s over {seconds:,.1f} s")
    for percent in (50, 95, 99):
        table.add_row(f"latency p{percent}", _milliseconds(tally.latencies.percentile_s(percent)))
    table.add_row("latency max", _milliseconds(tally.latencies.greatest_s))
    console.print(table)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.1f} ms"
