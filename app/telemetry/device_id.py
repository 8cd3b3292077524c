"""The form of a device's own name: its id in readings, in paths of URLs and in file names."""

import re

MAX_ID_CHARACTERS = 64
ID_FORM = f"[A-Za-z0-9._:-]{{1,{MAX_ID_CHARACTERS}}}"
"""`.` and `..` have this form but are no ids: no path of a URL ends with them, since they stand for a folder."""

ID_SCHEMA_PATTERN = rf"^(?!\.\.?$){ID_FORM}$"
"""The pattern for JSON Schema."""

ID_PATTERN = rf"\A(?!\.\.?\Z){ID_FORM}\Z"
"""The pattern for Python, where `$` would also match before a newline at the end."""

is_id = re.compile(ID_PATTERN).match
