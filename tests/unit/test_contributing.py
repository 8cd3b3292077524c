"""CONTRIBUTING.md tells the truth: its rules are measured, and the tests and targets that it names exist."""

import ast
import re
import statistics
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in (ROOT / "app").rglob("*.py")}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# A docstring that begins with such a bare clause says less than a caller must know.
BARE_CLAUSES = ("What ", "Which ", "Who ")


def row(name: str) -> list[str]:
    """Returns the cells of a table's row, after its name."""
    found = re.search(rf"^ *\| {re.escape(name)} \| (.*) \|$", CONTRIBUTING, re.MULTILINE)
    assert found, f"CONTRIBUTING.md has no row `{name}`"
    return found[1].split(" | ")


def too_long(what: str, lengths: Iterable[tuple[int, str]]) -> list[str]:
    """Returns one sentence for each limit of CONTRIBUTING.md that is broken."""
    sizes, names = zip(*sorted(lengths), strict=True)
    measured = {
        "half of all": statistics.median(sizes),
        "nine of ten": statistics.quantiles(sizes, n=10)[-1],
        f"the longest, {names[-1]}": sizes[-1],
    }
    limits = map(int, row(f"lines of a {what}"))
    return [
        f"{which}: {size:g}, not {limit}"
        for (which, size), limit in zip(measured.items(), limits, strict=True)
        if size > limit
    ]


def test_functions_are_short() -> None:
    functions = (
        (node.end_lineno - node.lineno + 1, f"{name}:{node.name}")
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    )
    assert too_long("function", functions) == []


def test_modules_are_short() -> None:
    modules = ((source.count("\n"), name) for name, source in SOURCES.items() if source)
    assert too_long("module", modules) == []


def catches_all(handler: ast.ExceptHandler) -> bool:
    caught = [] if handler.type is None else [node for node in ast.walk(handler.type) if isinstance(node, ast.Name)]
    return handler.type is None or any(name.id in ("Exception", "BaseException") for name in caught)


def test_every_exception_is_caught_only_where_it_is_handed_on() -> None:
    catching = {
        name
        for name, tree in TREES.items()
        if any(isinstance(node, ast.ExceptHandler) and catches_all(node) for node in ast.walk(tree))
    }
    rule = re.search(r"`except Exception` stands only\s.*?\.\s", CONTRIBUTING, re.DOTALL)
    assert rule
    assert catching == {f"app/{name}" for name in re.findall(r"`([\w/]+\.py)`", rule[0])}


def test_docstrings_do_not_begin_with_a_bare_clause() -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    begin_so = [
        f"{name}: {said}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, documented) and (said := ast.get_docstring(node)) and said.startswith(BARE_CLAUSES)
    ]
    assert not begin_so, "\n".join(begin_so)


def test_every_test_that_holds_a_promise_exists() -> None:
    promises = CONTRIBUTING.partition("## Promises")[2].partition("\n## ")[0]
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", promises)
    assert len(re.findall(r"^\| \d ", promises, re.MULTILINE)) == 8
    assert len(named) >= 10
    for file, name in named:
        functions = ast.walk(ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8")))
        assert name in {getattr(node, "name", "") for node in functions}, f"{file} has no {name}"


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for document in DOCUMENTS:
        named = re.findall(r"(?:`|^ *)make ([a-z]+)\b(?=`|  | [A-Z]+=|$)", document.read_text("utf-8"), re.MULTILINE)
        assert set(named) <= targets, document.name
    assert targets - {"help"} <= set(re.findall(r"make ([a-z]+)", CONTRIBUTING))
