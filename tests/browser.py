"""A real browser for pages: Chromium without a window, and everything a page must not do written down."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, sync_playwright

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
NAMES = ("/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome")
PHONE = (360, 740)
DESK = (1280, 900)


@contextmanager
def launched() -> Iterator[Browser]:
    """Chromium; the test is skipped where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield browser
        browser.close()


@dataclass
class Seen:
    """A page and what happened on it."""

    page: Page
    dialogs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def dismiss(self, dialog: Dialog) -> None:
        """Note a dialog and close it."""
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def hear(self, said: ConsoleMessage) -> None:
        """Note what the console complains of."""
        if said.type in ("error", "warning"):
            self.errors.append(said.text)

    @property
    def quiet(self) -> bool:
        """No dialog, no error or warning, and nothing asked for but the page itself."""
        return not self.dialogs and not self.errors and len(self.requests) == 1

    def text(self, selector: str) -> str:
        """What stands in the first element."""
        return self.page.locator(selector).first.inner_text()

    def widest(self) -> int:
        """Pixels that the page is wide, scrolling included."""
        return int(self.page.evaluate("document.documentElement.scrollWidth"))


@contextmanager
def opened(
    browser: Browser, address: str | Path, size: tuple[int, int] = DESK, scheme: str = "light", touch: bool = False
) -> Iterator[Seen]:
    """A page that has drawn itself."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
        has_touch=touch,
    )
    page = context.new_page()
    seen = Seen(page)
    page.on("dialog", seen.dismiss)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("console", seen.hear)
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(address.absolute().as_uri() if isinstance(address, Path) else address)
    page.wait_for_selector("#summary-title")
    page.wait_for_timeout(150)
    yield seen
    context.close()
