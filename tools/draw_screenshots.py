"""Takes the documentation's screenshots: the web app with the shipped model, and a comparison's report.

python tools/draw_screenshots.py docs/pictures
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

REPORT = Path(__file__).parents[1] / "docs" / "results" / "compare-photos" / "comparison.html"
START = 120
"""Seconds in which the web app must answer."""


def shoot(page: Page, path: Path, height: int) -> None:
    """Writes the top of a page as a PNG of 256 colours."""
    page.set_viewport_size({"width": 1280, "height": height})
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def draw(folder: Path) -> None:
    """Writes app.png and report.png."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = subprocess.Popen([sys.executable, "-m", "ldmae", "app", "--port", str(port)])
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(REPORT.as_uri())
            shoot(page, folder / "report.png", 900)
            until = time.monotonic() + START
            while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < until:
                time.sleep(1)
            page.goto(f"http://127.0.0.1:{port}")
            page.locator("#generate-pictures img").nth(7).wait_for(timeout=90_000)
            shoot(page, folder / "app.png", 900)
            browser.close()
    finally:
        app.terminate()
        app.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the PNG files go")
    draw(parser.parse_args().folder)
