"""The report on a month in words, for a terminal and for the page to print."""

from collections.abc import Iterator
from typing import TypeAlias

from app.analytics.efficiency.ranking import Ranked
from app.analytics.report import Report, Sums
from app.csv_rows import stamp

Table: TypeAlias = tuple[list[str], list[list[str]]]
"""The headings and the rows."""


def title(made: Report) -> str:
    """Returns the month, where it was, and whose days these are."""
    return f"{made.month:%B %Y}, {made.site or 'all sites'}, days of {made.zone}"


def days_table(made: Report) -> Table:
    """Returns a row for each day, and one for the month; a day of which no hour has been judged has dashes."""
    headings = ["day", "kWh AC", "kWh DC", *_lost(made), "efficiency", "all kWh DC", "sessions", "session kWh"]
    rows = [[f"{day}", *(_cells(sums, made) if sums else ["-"] * (len(headings) - 1))] for day, sums in made.days]
    return headings, [*rows, ["month", *_cells(made.whole, made)]]


def worst_tables(made: Report) -> Iterator[Table]:
    """Yields a table of the worst meters and one of the worst vehicles, if there are any."""
    for name, worst in ("worst meters", made.meters), ("worst vehicles", made.vehicles):
        if worst:
            yield [name, "efficiency", "kWh AC", *_lost(made), "status"], [_ranked(one, made) for one in worst]


def notes(made: Report) -> Iterator[str]:
    """Yields sentences on what the numbers mean."""
    whole = made.whole
    if whole.total_dc_kwh:
        share = percent(whole.dc_kwh / whole.total_dc_kwh)
        yield f"AC, DC and losses are those of paired time, in which {share} of all DC energy flowed."
    yield "A session counts on the day on which it began."
    if made.price_per_kwh is not None:
        yield f"What is lost costs {made.price_per_kwh:g} {made.currency} per kWh, which is today's price."
    if made.judged_to is None:
        yield "No hour has been judged yet, so nothing is known."
    elif made.judged_to < made.end:
        yield f"The hours before {stamp(made.judged_to)} are in this report; the others have not been judged yet."


def kwh(energy: float) -> str:
    """Returns an energy with a decimal."""
    return f"{energy:,.1f}"


def money(cost: float | None) -> str:
    """Returns a cost with two decimals."""
    return "-" if cost is None else f"{cost:,.2f}"


def percent(ratio: float | None) -> str:
    """Returns a ratio in percent."""
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def _lost(made: Report) -> list[str]:
    return ["kWh lost", *([f"{made.currency} lost"] if made.currency else [])]


def _cells(sums: Sums, made: Report) -> list[str]:
    lost = [kwh(sums.loss_kwh), *([money(sums.loss_cost)] if made.currency else [])]
    paired = [kwh(sums.ac_kwh), kwh(sums.dc_kwh), *lost, percent(sums.efficiency_ratio)]
    return [*paired, kwh(sums.total_dc_kwh), f"{sums.sessions:,}", kwh(sums.sessions_dc_kwh)]


def _ranked(one: Ranked, made: Report) -> list[str]:
    lost = [kwh(one.loss_kwh), *([money(one.loss_cost)] if made.currency else [])]
    return [one.id, percent(one.efficiency_ratio), kwh(one.ac_kwh), *lost, one.status.replace("_", " ")]
