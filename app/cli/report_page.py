"""The report on a month as a page to print: one file of HTML with its style, and without any script."""

from html import escape

from app.analytics.report import Report
from app.cli.report_text import Table, days_table, kwh, money, notes, percent, title, worst_tables


def page_of(made: Report) -> str:
    """Returns the page. Each text in it is escaped, and its policy allows no script and no other file."""
    heading, whole = escape(title(made)), made.whole
    figures = [("kWh AC", kwh(whole.ac_kwh)), ("kWh DC", kwh(whole.dc_kwh)), ("kWh lost", kwh(whole.loss_kwh))]
    if made.currency:
        figures.append((f"{made.currency} lost", money(whole.loss_cost)))
    figures += [("efficiency", percent(whole.efficiency_ratio)), ("sessions", f"{whole.sessions:,}")]
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures)
    tables = "\n".join(map(_table, [days_table(made), *worst_tables(made)]))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{heading}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{heading}</h1>
<dl>{shown}</dl>
{tables}
{"".join(f"<p>{escape(note)}</p>" for note in notes(made))}
</body>
</html>
"""


def _table(table: Table) -> str:
    headings, rows = table
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in headings)
    body = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


# A month of 31 days with eight devices of each kind fits on a sheet of A4, and on one of US Letter, unless names of
# more than 50 characters need a second line.
_STYLE = """
@page { margin: 10mm }
body { font: 8.5pt/1.2 system-ui, sans-serif; color: #1a1a1a; max-width: 190mm; margin: 1em auto }
h1 { font-size: 14pt; margin: 0 0 2mm; overflow-wrap: anywhere }
dl { display: flex; flex-wrap: wrap; gap: 2mm 6mm; margin: 0 0 2mm }
dt, p { color: #555 }
dd { margin: 0; font-size: 13pt; font-weight: 600 }
table { border-collapse: collapse; width: 100%; margin-bottom: 2mm; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: 0 1mm; border-bottom: 0.2mm solid #ddd; font-weight: 400; white-space: nowrap }
thead th, table:first-of-type tr:last-child > * { font-weight: 600 }
th:first-child { text-align: left }
table + table th:first-child { white-space: normal; overflow-wrap: anywhere }
p { margin: 0 0 1mm }
tr { break-inside: avoid }
@media print { body { margin: 0; max-width: none } }
"""
