"""The dashboard's files, under paths that change with their content, so that browsers keep them for good."""

import gzip
import hashlib
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from app.errors import NotFound

STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

_CONTENT = b"".join(path.read_bytes() for path in sorted(STATIC.iterdir()))
BASE = f"/dashboard/{hashlib.sha256(_CONTENT).hexdigest()[:12]}"
"""The path of the files of static/, whose modules import one another by relative paths."""
CHARTS = f"/dashboard/plotly-{version('plotly')}/plotly.min.js"
"""The path of the chart library, which stays in the browsers when the dashboard changes."""


_FILES = {f"{BASE}/{file.name}": file for file in STATIC.iterdir() if file.suffix in MEDIA_TYPES}


@cache
def compressed(path: str) -> bytes:
    """Returns the file at a path, compressed by gzip. Raises NotFound, which is not cached.

    The chart library's 4.8 MB become 1.5 MB, which takes 0.2 s, once.
    """
    if path == CHARTS:
        # Importing the package would take longer than reading its file.
        return gzip.compress(files("plotly.package_data").joinpath("plotly.min.js").read_bytes(), 6)
    if path not in _FILES:
        raise NotFound
    return gzip.compress(_FILES[path].read_bytes(), 9)
