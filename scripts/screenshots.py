"""Pictures of the page for the documentation: `python scripts/screenshots.py STORE QUERY --out docs/serving`.

Needs Chromium and the package playwright (`make browser`, the extra `test`). Writes results and a document, on a
phone and a desktop, light and dark.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import sync_playwright

SHOTS = (
    ("results", "desktop", 1280, 900, "light"),
    ("results", "phone", 390, 844, "dark"),
    ("document", "desktop", 1280, 900, "dark"),
    ("document", "phone", 390, 844, "light"),
)
PORT = 8765


def main() -> None:
    """Start a server of the store, take the pictures, and stop it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("query")
    parser.add_argument("--out", type=Path, default=Path("docs/serving"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{PORT}"
    with subprocess.Popen([sys.executable, "-m", "m2bert", "serve", options.store, "--port", str(PORT)]) as server:
        try:
            wait_for(url)
            take(url, options.query, options.out)
        finally:
            server.terminate()


def wait_for(url: str) -> None:
    """Until the server answers."""
    while True:
        try:
            with urllib.request.urlopen(url + "/health"):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)


def take(url: str, query: str, out: Path) -> None:
    """All pictures."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for what, name, width, height, scheme in SHOTS:
            viewport = {"width": width, "height": height}
            page = browser.new_page(viewport=viewport, color_scheme=scheme, base_url=url)
            page.goto("/?" + urlencode({"q": query}))
            if what == "document":
                page.locator(".peak[data-passage='1']").first.click()
                page.wait_for_selector("mark:target")
            file = out / f"{what}-{name}-{scheme}.png"
            page.screenshot(path=file)
            print(f"{file}: {file.stat().st_size / 1000:.0f} kB")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
