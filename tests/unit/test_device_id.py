"""A device's id has one form, the same everywhere."""

import re
from pathlib import Path

import pytest
from sqlalchemy import CheckConstraint, Table

from app.tables import meter, vehicle
from app.telemetry.device_id import ID_PATTERN, ID_SCHEMA_PATTERN, is_id

ROOT = Path(__file__).resolve().parents[2]

GOOD = [
    "a",
    "Z9",
    "a:b.c-d_e",
    "x" * 64,
    "DE*ABC*E1234*1",
    "AA:BB:CC:DD:EE:FF",
    "BoxCS-0000AAAA00001",
    "100001",
    "urn:dev:mac:0024befffe804ff1",
    "user@site",
    "NL-ABC-E1+2",
    "7~",
]
BAD = ["", "x" * 65, "a b", "a/b", "a\n", ".\n", "é", "\uff41", "a\0", "shelly#e4b323#1", "{3f2504e0}", " pad"]
# A URL takes the first two for folders, and a spreadsheet some of the others for formulas.
BAD += [".", "..", ".a", "-", "-1", "_", "+a", "+1*2", "@a", "=a", "*a", "~a", ":a"]


@pytest.mark.parametrize("name", GOOD + BAD)
def test_every_pattern_agrees(name: str) -> None:
    is_good = name in GOOD
    assert bool(is_id(name)) == is_good
    assert bool(re.search(ID_PATTERN, name)) == is_good
    # In JSON Schema's dialect, `$` is the very end.
    assert bool(re.search(ID_SCHEMA_PATTERN.replace("$", r"\Z"), name)) == is_good


@pytest.mark.parametrize("table", [meter, vehicle], ids=lambda table: table.name)
def test_the_migration_has_the_same_check(table: Table) -> None:
    checks = (each for each in table.constraints if isinstance(each, CheckConstraint))
    (check,) = (each for each in checks if "external_id" in str(each.sqltext))
    migrations = [path.read_text(encoding="utf-8") for path in (ROOT / "migrations" / "versions").glob("*.py")]
    assert [str(check.sqltext) in text for text in migrations].count(True) == 1


def test_the_form_stands_once_in_app() -> None:
    found = [path.name for path in (ROOT / "app").rglob("*.py") if "A-Za-z0-9" in path.read_text()]
    assert sorted(found) == ["device_id.py", "logging.py"]  # the latter's is a request's id
