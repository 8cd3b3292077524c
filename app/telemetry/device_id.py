"""The form of a device's own name: its id in readings, in paths of URLs and in file names."""

import re

MAX_ID_CHARACTERS = 64
ID_FORM = f"[A-Za-z0-9][A-Za-z0-9._:*+@~-]{{0,{MAX_ID_CHARACTERS - 1}}}"
"""The first character is a letter or a digit: no spreadsheet takes such an id for a formula, no URL for a folder."""

ID_RULE = (
    f"An id is 1 to {MAX_ID_CHARACTERS} of the characters A-Z, a-z, 0-9 and . _ : - * + @ ~; the first one is a letter "
    "or a digit."
)

ID_SCHEMA_PATTERN = f"^{ID_FORM}$"
"""The pattern for JSON Schema."""

ID_PATTERN = rf"\A{ID_FORM}\Z"
"""The pattern for Python, where `$` would also match before a newline at the end."""

is_id = re.compile(ID_PATTERN).match
