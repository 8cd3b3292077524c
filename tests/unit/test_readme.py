"""The README agrees with the code."""

import re
from pathlib import Path

import msgspec

from app.settings import Settings, variable_of

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_table_of_settings_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (none|`[^`]*`) \|", README, flags=re.MULTILINE)
    defaults = {
        variable_of(field): "none" if default is None else f"`{default}`"
        for field, default in msgspec.structs.asdict(Settings()).items()
    }
    assert dict(rows) == defaults
