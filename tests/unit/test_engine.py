"""No Python asks which engine the database has: readers and writers use the functions that both engines offer."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Policies are the engine's own, and a data directory is made for one; the last three only report the recorded one.
MAY_ASK = ("app/policies/", "app/postgres/", "app/ops/doctor/", "app/ops/health.py", "app/migrate.py")
FILES = [
    file
    for path in sorted((ROOT / "app").rglob("*.py"))
    if not (file := path.relative_to(ROOT).as_posix()).startswith(MAY_ASK)
]
NAMES = {"engine", "timescale", "timescaledb", "plain"}
SQL = ("engine FROM installation", "pg_extension", "timescaledb_information")


def questions(source: str) -> list[int]:
    """Returns the lines that decide by the engine, or ask the database for it."""
    return sorted({line for node in ast.walk(ast.parse(source)) for line in _asked(node)})


def _asked(node: ast.AST) -> Iterator[int]:
    match node:
        case (
            ast.If(test=condition) | ast.IfExp(test=condition) | ast.While(test=condition) | ast.Assert(test=condition)
        ):
            decides: ast.AST = condition
        case ast.Match(subject=condition):
            decides = condition
        case ast.Compare() | ast.BoolOp():
            decides = node
        case ast.Constant(value=str(text), lineno=line) if any(part in text for part in SQL):
            yield line
            return
        case _:
            return
    for part in ast.walk(decides):
        match part:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.Constant(value=str(name)) if name in NAMES:
                yield node.lineno


@pytest.mark.parametrize("file", FILES)
def test_no_python_asks_which_engine_it_is(file: str) -> None:
    assert [f"{file}:{line}" for line in questions((ROOT / file).read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "source",
    [
        "if engine == 'timescale': pass",
        "x = 1 if ready['engine'] == wanted else 2",
        "match facts.engine:\n    case 'plain': pass",
        "y = settings.engine and 1",
        "is_plain = kind in ('plain',)",
        "z = 1 if server.timescaledb else 2",
        "text('SELECT engine FROM installation')",
    ],
)
def test_a_question_is_caught(source: str) -> None:
    assert questions(source)


@pytest.mark.parametrize(
    "source", ["migrate(url, engine=settings.engine)", "print(ready['engine'])", "engine = create_sync_engine(url)"]
)
def test_what_only_passes_the_engine_on_is_no_question(source: str) -> None:
    assert not questions(source)
