"""The page at `/` and its files."""

import gzip
from html import escape
from pathlib import PurePosixPath
from typing import Annotated

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath, HeaderParameter

from app import __version__
from app.dashboard.assets import BASE, CHARTS, MEDIA_TYPES, STATIC, compressed
from app.settings import Settings

# The chart library sets styles of its own, also in elements; only scripts from our files run.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FOR_GOOD = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}


@get("/", include_in_schema=False, media_type="text/html")
async def get_page(settings: NamedDependency[Settings]) -> Response[str]:
    """Returns the dashboard."""
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    values = {"base": BASE, "charts": CHARTS, "version": __version__, "low_efficiency": str(settings.low_efficiency)}
    for name, value in values.items():
        page = page.replace("{{" + name + "}}", escape(value))
    return Response(page, headers={"Cache-Control": "no-cache", "Content-Security-Policy": _POLICY})


@get("/dashboard/{folder:str}/{name:str}", include_in_schema=False, sync_to_thread=True)
def get_asset(
    folder: FromPath[str],
    name: FromPath[str],
    accept_encoding: Annotated[str, HeaderParameter(name="Accept-Encoding")] = "",
) -> Response[bytes]:
    """Returns a file of the page."""
    body = compressed(f"/dashboard/{folder}/{name}")
    media_type = MEDIA_TYPES[PurePosixPath(name).suffix]
    if "gzip" in accept_encoding:
        return Response(body, headers={"Content-Encoding": "gzip", **_FOR_GOOD}, media_type=media_type)
    return Response(gzip.decompress(body), headers=_FOR_GOOD, media_type=media_type)
