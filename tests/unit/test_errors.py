"""The error tree: complete, documented, and every leaf in use."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import app.errors
from app.errors import ServiceError, SetupError, WattlineError

APP = Path(app.errors.__file__).parent


def subclasses(of: type[WattlineError]) -> Iterator[type[WattlineError]]:
    for child in of.__subclasses__():
        yield child
        yield from subclasses(child)


ALL: list[type[WattlineError]] = [WattlineError, *subclasses(WattlineError)]
LEAVES = [error for error in ALL if issubclass(error, ServiceError) and error is not ServiceError]


def used_names(tree: ast.AST) -> Iterator[str]:
    """Yields the names that are raised, returned as an error, constructed for a problem document, or in a table."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name):
            yield node.exc.id
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id
        if isinstance(node, ast.Dict):
            yield from (value.id for value in node.values if isinstance(value, ast.Name))


def used_in_app() -> set[str]:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in APP.rglob("*.py"))
    return {name for tree in trees for name in used_names(tree)}


@pytest.mark.parametrize("error", LEAVES)
def test_a_leaf_has_a_code_a_status_and_a_public_sentence(error: type[ServiceError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", error.code)
    assert error.code == re.sub(r"(?<!^)(?=[A-Z])", "_", error.__name__).lower()
    assert 400 <= error.status <= 599
    assert re.fullmatch(r"[A-Z][^\n]+\.", error.title())


@pytest.mark.parametrize("error", LEAVES)
def test_a_leaf_makes_a_problem_document(error: type[ServiceError]) -> None:
    assert error().problem() == {
        "type": f"urn:wattline:problem:{error.code}",
        "title": error.title(),
        "status": error.status,
        "code": error.code,
        "detail": error.title(),
    }
    told = error("What was wrong.", headers={"Retry-After": "1"}, vehicleId="V1")
    assert (str(told), told.problem()["detail"], told.problem()["vehicleId"]) == ("What was wrong.",) * 2 + ("V1",)
    assert told.headers == {"Retry-After": "1"}


def test_codes_are_unique() -> None:
    codes = [error.code for error in LEAVES]
    assert len(set(codes)) == len(codes)


def test_every_leaf_is_used() -> None:
    used = used_in_app()
    assert {SetupError.__name__, *(error.__name__ for error in LEAVES)} - used == set()


def test_the_module_docstring_lists_the_tree() -> None:
    listed: dict[str, int | None] = {}
    for line in (app.errors.__doc__ or "").splitlines():
        if found := re.match(r" {4,}([A-Z]\w+(?:, [A-Z]\w+)*)(?: +(\d{3}|\S.*))?$", line):
            status = int(found[2]) if (found[2] or "").isdigit() else None
            listed |= dict.fromkeys(found[1].split(", "), status)
    assert listed == {error.__name__: getattr(error, "status", None) for error in ALL}


def test_every_class_has_a_docstring_of_its_own() -> None:
    assert [error.__name__ for error in ALL if not error.__dict__.get("__doc__")] == []
