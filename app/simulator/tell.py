"""What the feeder tells the user: how far the history is, and then what to try."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from app.simulator.fleet import Fleet

_SECONDS_BETWEEN_LINES = 5

_console = Console(highlight=False, markup=False, soft_wrap=True)


@contextmanager
def reporting(hours: float) -> Iterator[Callable[[float, int], None]]:
    """Shows how far a history of so many hours is; what it yields is told of each batch's hours and readings.

    A bar, which goes away at the end; where the output is no terminal, a line now and then.
    """
    what, started, sent = f"Sending the last {hours:.0f} hours", time.monotonic(), 0
    rate, left = TextColumn("{task.fields[rate]:,.0f} readings/s,"), TextColumn("left")
    columns = TextColumn(what), BarColumn(), TaskProgressColumn(), rate, TimeRemainingColumn(), left
    next_line = started + _SECONDS_BETWEEN_LINES
    with Progress(*columns, console=_console, transient=True, disable=not _console.is_interactive) as progress:
        progress.add_task(what, total=hours, rate=0)
        (task,) = progress.tasks
        if progress.disable:
            _console.print(f"{what}; what is stored already is not stored twice.")

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


def say_what_to_try(ask: Callable[[str], Any], base_url: str, fleet: Fleet) -> None:
    """Prints what to open, the engine, and some questions with their answers. `ask` answers None when it must end."""
    questions = _questions(fleet)
    ready, *answers = [ask(path) for path in ("/health/ready", *questions.values())]
    if None in (ready, *answers):
        return
    _console.print(f"\nWattline serves {len(fleet.chargers)} chargers at {base_url}.", style="bold")
    _console.print("Ctrl-C stops it; the next start goes on with the same data, after up to a day without a gap.\n")
    _console.print(f"  Dashboard         {base_url}/", style="bold")
    _console.print(f"  API description   {base_url}/schema")
    _console.print(f"  Fleet by hour     {base_url}/v1/analytics/fleet/series?hours=24&bucket=1h")
    for line in _engine_lines(ready):
        _console.print(line)
    _console.print(f"  Failing chargers  those of {', '.join(fleet.failing()) or 'none'}")
    for (what, path), answer in zip(questions.items(), answers, strict=True):
        _console.print(f"\n  # {what}")
        _console.print(f"  curl '{base_url}{path}'", style="bold")
        _console.print(f"  {json.dumps(answer)}")
    _console.print()


def say(line: str) -> None:
    """Prints a line."""
    _console.print(line)


def _questions(fleet: Fleet) -> dict[str, str]:
    """Paths worth asking, by what they show; a small fleet may have no vehicle to show it."""
    charging, failing = fleet.charging(time.time_ns() // 1000), fleet.failing()
    performance = "/v1/analytics/performance/{}?hours=24"
    shown = {"A vehicle that is charging now: how much of the AC energy reached its battery": charging[:1]}
    shown["One at a failing charger, with the alert"] = failing[:1]
    asked = {what: performance.format(vehicle_id) for what, vehicles in shown.items() for vehicle_id in vehicles}
    return {**asked, "The fleet by hour, as columns for a chart": "/v1/analytics/fleet/series?hours=2&bucket=1h"}


def _engine_lines(ready: dict[str, Any]) -> tuple[str, str]:
    """The engine that it runs on, and how to get the other one, which takes a database of its own."""
    if ready["engine"] == "timescale":
        running = f"TimescaleDB {ready['timescaledb']} on PostgreSQL {ready['postgresql']}"
        other = "plain PostgreSQL: WATTLINE_ENGINE=plain WATTLINE_DATA_DIR=.wattline-plain make demo"
    else:
        running = f"plain PostgreSQL {ready['postgresql']}"
        other = (
            "TimescaleDB: WATTLINE_DATA_DIR=.wattline-timescale make demo, "
            "with PostgreSQL 16-18 and TimescaleDB Community installed; or docker compose up"
        )
    return f"  Engine            {running}", f"  The other engine  {other}"
