"""The files of the dashboard."""

import gzip

import pytest

from app.dashboard.assets import BASE, STATIC, compressed
from app.errors import NotFound


def test_paths_that_are_made_up_are_not_kept() -> None:
    assert gzip.decompress(compressed(f"{BASE}/style.css")) == (STATIC / "style.css").read_bytes()
    kept = compressed.cache_info().currsize
    for path in (f"{BASE}/{number}.css" for number in range(100)):
        with pytest.raises(NotFound):
            compressed(path)
    assert compressed.cache_info().currsize == kept
