"""The feeder's output: its progress through the history, then some things to try."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from app.simulator.fleet import Fleet

_SECONDS_BETWEEN_LINES = 5

_OTHER_ENGINE = (
    "WATTLINE_ENGINE=timescale or plain, with a WATTLINE_DATA_DIR of its own; timescale needs "
    "PostgreSQL 16-18 with TimescaleDB Community, or docker compose up"
)

_console = Console(highlight=False, markup=False, soft_wrap=True)


@contextmanager
def showing_progress(hours: float) -> Iterator[Callable[[float, int], None]]:
    """Shows the progress of a history of so many hours; yields a function to call with each batch's hours and readings.

    A terminal shows a bar until the end; elsewhere, a line is printed now and then.
    """
    title, started, sent = f"Sending the last {hours:.0f} hours", time.monotonic(), 0
    rate, left = TextColumn("{task.fields[rate]:,.0f} readings/s,"), TextColumn("left")
    columns = TextColumn(title), BarColumn(), TaskProgressColumn(), rate, TimeRemainingColumn(), left
    next_line = started + _SECONDS_BETWEEN_LINES
    with Progress(*columns, console=_console, transient=True, disable=not _console.is_interactive) as progress:
        progress.add_task(title, total=hours, rate=0)
        (task,) = progress.tasks
        if progress.disable:
            _console.print(f"{title}; what is stored already is not stored twice.")

        def report(hours_done: float, readings: int) -> None:
            nonlocal sent, next_line
            sent += readings
            now = time.monotonic()
            progress.update(task.id, advance=hours_done, rate=sent / (now - started))
            if progress.disable and now > next_line:
                _console.print(f"{task.percentage:.0f} %, {sent / (now - started):,.0f} readings/s")
                next_line = now + _SECONDS_BETWEEN_LINES

        yield report
    if task.percentage > 99.9:
        _console.print(f"Sent {sent:,} readings in {time.monotonic() - started:.0f} s.")


def show_examples(ask: Callable[[str], Any], base_url: str, fleet: Fleet) -> None:
    """Prints the addresses to open, the engine, and some questions with their answers.

    `ask` takes a path and returns the answer, or None when the feeder has been stopped; then nothing is printed.
    """
    questions = _questions(fleet)
    ready, *answers = [ask(path) for path in ("/health/ready", *questions.values())]
    if None in (ready, *answers):
        return
    _console.print(f"\nWattline serves {len(fleet.chargers)} chargers at {base_url}.", style="bold")
    _console.print("Ctrl-C stops it; the next start goes on with the same data, after up to a day without a gap.\n")
    _console.print(f"  Dashboard         {base_url}/", style="bold")
    _console.print(f"  API description   {base_url}/schema")
    _console.print(f"  Fleet by hour     {base_url}/v1/analytics/fleet/series?hours=24&bucket=1h")
    _console.print(f"  Engine            {ready['engine']}, on PostgreSQL {ready['postgresql']}")
    _console.print(f"  The other engine  {_OTHER_ENGINE}")
    _console.print(f"  Failing chargers  those of {', '.join(fleet.failing()) or 'none'}")
    for (question, path), answer in zip(questions.items(), answers, strict=True):
        _console.print(f"\n  # {question}")
        _console.print(f"  curl '{base_url}{path}'", style="bold")
        _console.print(f"  {json.dumps(answer)}")
    _console.print()


def show(line: str) -> None:
    """Prints a line."""
    _console.print(line)


def _questions(fleet: Fleet) -> dict[str, str]:
    """Returns questions and their paths; a small fleet may have no vehicle for some of them."""
    charging, failing = fleet.charging(time.time_ns() // 1000), fleet.failing()
    performance = "/v1/analytics/performance/{}?hours=24"
    examples = {"A vehicle that is charging now: how much of the AC energy reached its battery": charging[:1]}
    examples["One at a failing charger, with the alert"] = failing[:1]
    questions = {
        question: performance.format(vehicle_id) for question, found in examples.items() for vehicle_id in found
    }
    return {**questions, "The fleet by hour, as columns for a chart": "/v1/analytics/fleet/series?hours=2&bucket=1h"}
