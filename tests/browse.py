"""MLflow's pages in a real browser, for tests and for the pictures in docs/.

python tests/browse.py ADDRESS OUT.png      a picture of a page, once its charts or table are drawn
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

PATIENCE = 300_000
"""Milliseconds for a page to be drawn, on a slow machine."""

_TIME_TO_DRAW = 20_000

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # Without these the browser looks for services on the internet, which a page on this machine does not need.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# At a browser's first visit MLflow opens an assistant over a quarter of the page.
_NO_ASSISTANT = """
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
"""

_DRAWN = """([plot, lines]) => plot.data
    && (plot.data.filter(line => line.name).length >= lines || plot.data.some(line => line.type === 'bar'))"""


@contextmanager
def browser_page() -> Iterator[Any]:
    """Open a page of a headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS, timeout=PATIENCE)
        page = browser.new_context(viewport={"width": 1700, "height": 1300}).new_page()
        page.set_default_timeout(PATIENCE)
        page.add_init_script(_NO_ASSISTANT)
        try:
            yield page
        finally:
            browser.close()


def first_charts(page: Any, count: int, lines: int) -> list[dict[str, Any]]:
    """Return charts, once each is drawn: the title, and what Plotly drew, as its own `data` and `layout` have it.

    Args:
        page: of the browser.
        count: of charts.
        lines: that a chart of lines has when it is complete.
    """
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    found = []
    for number in range(count):
        card = cards.nth(number)
        plot = card.locator(".js-plotly-plot")
        plot.wait_for(state="attached")
        page.wait_for_function(_DRAWN, arg=[plot.element_handle(), lines])
        drawn = plot.evaluate("plot => JSON.parse(JSON.stringify({data: plot.data, layout: plot.layout}))")
        found.append({"title": card.inner_text().partition("\n")[0], **drawn})
    return found


def main() -> None:
    """Take the picture."""
    address, picture = sys.argv[1:]
    with browser_page() as page:
        page.goto(address)
        page.wait_for_timeout(_TIME_TO_DRAW)  # the page never stops asking the server for news
        page.screenshot(path=picture)


if __name__ == "__main__":
    main()
