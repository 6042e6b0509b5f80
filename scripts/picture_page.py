"""Pictures of the page of `parley serve` for docs/, in Debian's chromium; needs `make smollm2`.

python -m scripts.picture_page
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scripts.load_serve import ROOT, server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SMOLLM2 = ("--name", f"SmolLM2={ROOT / '.assets' / 'smollm2'}", "--gguf-file", "SmolLM2-135M-Instruct.Q4_1.gguf")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
PATIENCE = 240_000  # milliseconds, of which a small machine needs some for an answer


def opened(
    browser: Browser, address: str, *, width: int, scheme: Literal["light", "dark"], sharpness: float = 1
) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": 700}, color_scheme=scheme, device_scale_factor=sharpness
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.locator("main section:visible").wait_for()
    return page


def decode(page: Page, **options: str) -> None:
    page.locator("#options summary").click()
    for name, value in options.items():
        page.locator(f"#options [name={name}]").fill(value)


def save(page: Page, file: Path) -> None:
    """As much of the page as there is, without a bar that keeps to the bottom in the middle of it."""
    width, height = page.evaluate("[innerWidth, document.body.scrollHeight]")
    page.set_viewport_size({"width": width, "height": height})
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=file, full_page=True)
    print(f"{file}: {file.stat().st_size:,} bytes")


def talk(browser: Browser, address: str, file: Path) -> None:
    page = opened(browser, f"{address}/#talk", width=1080, scheme="light")
    decode(page, answers="2", seed="11", max_tokens="80", temperature="0.7")
    page.get_by_label("Your message").fill("What is a lighthouse for?")
    page.keyboard.press("Enter")
    page.locator(".votes").wait_for()
    page.get_by_role("button", name="Answer 1 is better").click()
    page.get_by_text("Written down").wait_for()
    page.locator("#options summary").click()
    save(page, file)


def beside(browser: Browser, address: str, file: Path) -> None:
    page = opened(browser, f"{address}/#beside", width=360, scheme="dark", sharpness=1.5)
    decode(page, seed="3", max_tokens="60")
    page.locator("#options summary").click()
    part = page.locator("#beside")
    part.get_by_label("First decoding").select_option("greedy")
    part.get_by_label("Second decoding").select_option("top-p")
    part.get_by_label("Blind").check()
    part.get_by_role("textbox", name="Prompt").fill("Suggest a name for a small bookshop by the sea, and say why.")
    page.keyboard.press("Enter")
    page.locator("#beside .votes").wait_for()
    save(page, file)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images", metavar="DIR")
    args = parser.parse_args(argv)
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as place, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        with server(*SMOLLM2, "--votes", str(Path(place) / "votes.jsonl")) as (host, port, _):
            talk(browser, f"http://{host}:{port}", args.output / "page-talk.png")
            beside(browser, f"http://{host}:{port}", args.output / "page-beside.png")
        browser.close()


if __name__ == "__main__":
    main()
