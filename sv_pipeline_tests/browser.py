"""A page of a real browser, for tests that look at what people see."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sv_pipeline.testing.fixtures import need


@contextmanager
def browser_page(width: int, height: int, *options: str) -> Iterator[Any]:
    """Open a page of headless Chromium with some pixels and command-line options; without Chromium, skip the test."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    need(chromium, "no Chromium on the PATH")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        need(None, "playwright is not installed")
        raise
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", *options])
        yield browser.new_page(viewport={"width": width, "height": height})
        browser.close()
