"""The tree is the data flow: each part of app/ imports only the parts that come before it.

The rule that matters most: `ingest` and `analytics` never import each other; the database is their only interface.
"""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "app").rglob("*.py"))

DATABASE = {"errors", "faults", "problem_answers", "settings", "database", "tables"}

# part of app/ -> the parts that it may import, besides itself
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "parameters": {"errors"},
    "faults": set(),
    "problem_answers": {"database", "errors", "faults", "parameters"},
    "heads": set(),
    "loops": set(),
    "telemetry": set(),
    "tables": {"telemetry"},
    "csv_rows": set(),
    "settings": {"errors"},
    "database": {"errors", "faults", "settings"},
    "broker": {"errors", "loops", "settings"},
    "postgres": {"errors", "loops", "settings"},
    "simulator": {"telemetry"},
    "load": {"broker", "errors", "loops", "settings", "simulator"},
    "fleet": {*DATABASE, "csv_rows", "telemetry"},
    "ingest": {*DATABASE, "broker", "loops", "telemetry", "fleet"},
    "browsers": {"errors", "ingest", "problem_answers", "settings"},
    "analytics": {*DATABASE, "csv_rows", "loops", "telemetry", "fleet"},
    "policies": {*DATABASE, "telemetry"},
    "migrate": {*DATABASE, "policies"},
    "ops": {*DATABASE, "analytics", "broker", "fleet", "loops", "migrate", "policies"},
    "webhooks": {*DATABASE, "analytics", "loops"},
    "dashboard": {*DATABASE, "telemetry", "fleet", "analytics", "ops"},
}
# Where the parts meet.
ALLOWED["main"] = set(ALLOWED)
ALLOWED["cli"] = set(ALLOWED)


def part(module: str) -> str | None:
    """Returns the part of app/ that contains a dotted name: `app.ingest.store.writer` -> `ingest`, `httpx` -> None."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] or None if package == "app" else None


def imported(source: str, file: str) -> list[tuple[int, str]]:
    """Returns line and full name of everything that the source imports, inside functions too."""
    package = file.removesuffix(".py").split("/")[:-1]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            stem = ".".join(filter(None, [*base, node.module]))
            found += [(node.lineno, f"{stem}.{alias.name}") for alias in node.names]
    return found


def forbidden(source: str, file: str) -> list[str]:
    """Returns one sentence for each import that the table does not allow."""
    here = part(file.removesuffix(".py").replace("/", "."))
    if here is None or here == "__init__":  # app/__init__.py comes before everything
        here, allowed = "app/__init__.py", set[str]()
    elif here in ALLOWED:
        allowed = ALLOWED[here] | {here}
    else:
        return [f"{file}: `{here}` has no line in ALLOWED ({Path(__file__).name})"]
    return [
        f"{file}:{line}: `{here}` may not import `{there}` (allowed: {', '.join(sorted(allowed)) or 'nothing of app'})"
        for line, name in imported(source, file)
        if (there := part(name)) and there not in {*allowed, "__version__"}
    ]


@pytest.mark.parametrize("file", FILES)
def test_imports_follow_the_data_flow(file: str) -> None:
    violations = forbidden((ROOT / file).read_text(encoding="utf-8"), file)
    assert not violations, "\n".join(violations)


def test_the_table_has_no_circle() -> None:
    order = list(TopologicalSorter(ALLOWED).static_order())
    assert order[-2:] == ["main", "cli"]


def test_writing_and_reading_meet_only_in_the_database() -> None:
    assert "analytics" not in ALLOWED["ingest"]
    assert "ingest" not in ALLOWED["analytics"]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("app/ingest/store/writer.py", "import app.analytics.series"),
        ("app/ingest/store/writer.py", "from app import analytics"),
        ("app/ingest/store/writer.py", "from app.analytics import series"),
        ("app/ingest/store/writer.py", "from ...analytics.series import fetch_series"),
        ("app/ingest/__init__.py", "from .. import analytics"),
        ("app/analytics/series.py", "def late():\n    from app.ingest import store"),
        ("app/telemetry/reading.py", "import app.errors"),
        ("app/fleet/registry.py", "import app.main"),
        ("app/main.py", "from app.cli import main"),
        ("app/__init__.py", "from app.main import create_app"),
        ("app/helpers.py", "import json"),
    ],
)
def test_a_forbidden_import_is_caught(file: str, source: str) -> None:
    assert len(forbidden(source, file)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("app/ingest/store/writer.py", "import asyncio, httpx\nfrom app.telemetry import Stream\nfrom . import decode"),
        ("app/ingest/store/writer.py", "from ..decode import decode_batch\nfrom ...errors import Busy"),
        ("app/cli/serve.py", "from app.main import from_environ\nimport app.ingest, app.analytics"),
    ],
)
def test_an_allowed_import_passes(file: str, source: str) -> None:
    assert forbidden(source, file) == []
