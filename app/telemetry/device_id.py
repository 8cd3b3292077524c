"""The form of a device's own name: its id in readings, in paths of URLs and in file names."""

import re

MAX_ID_CHARACTERS = 64
ID_FORM = f"[A-Za-z0-9._:-]{{1,{MAX_ID_CHARACTERS}}}"
"""Without what is excluded besides: no path of a URL ends with `.` or `..`, which stand for a folder."""

ID_SCHEMA_PATTERN = rf"^(?!\.\.?$){ID_FORM}$"
"""For JSON Schema."""

ID_PATTERN = rf"\A(?!\.\.?\Z){ID_FORM}\Z"
"""For Python, where `$` would also match before a newline at the end."""

is_id = re.compile(ID_PATTERN).match
