"""The names that devices give themselves."""

import re

MAX_ID_CHARACTERS = 64

# No path of a URL ends with `.` or `..`: clients take them for this folder and the one above.
ID_PATTERN = rf"(?!\.\.?$)[A-Za-z0-9._:-]{{1,{MAX_ID_CHARACTERS}}}"

is_id = re.compile(ID_PATTERN).fullmatch
