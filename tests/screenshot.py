"""The picture in the README: `python -m tests.screenshot http://127.0.0.1:8000 docs/dashboard.png`, of `make demo`."""

import sys
from pathlib import Path

from playwright.sync_api import Browser

from tests.fixtures.browser import chromium, drawn, opened


def take_screenshot(browser: Browser, address: str, path: Path) -> None:
    """Takes a picture of the fleet's last day, with the least efficient vehicles first."""
    with opened(browser, f"{address}/#/fleet?sort=efficiency", size=(1440, 1160)) as page:
        drawn(page)
        page.wait_for_selector("tr[data-id]")
        page.screenshot(path=path)


if __name__ == "__main__":
    with chromium() as browser:
        take_screenshot(browser, sys.argv[1], Path(sys.argv[2]))
