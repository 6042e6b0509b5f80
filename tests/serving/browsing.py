"""The page in Debian's chromium: tabs that note what they ask for and complain of, and what tests do in them."""
# ruff: noqa: E402

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("openai", reason="OpenAI's client is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("chromium is not installed (apt-get install chromium)", allow_module_level=True)

from src.contracts import Turn
from src.serving.engine import Engine, Job
from src.serving.hosted import Hosted
from src.serving.page_rows import PageRow
from tests.serving.ports import Running, expected

PATIENCE = 30_000  # milliseconds; a machine may have other work
expect = playwright.expect
expect.set_options(timeout=PATIENCE)

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOSTILE = "<img src=x onerror=\"document.title='taken'\"></script><script>document.title='taken'</script><b>&amp;"
ODD_NAME = "<i>odd</i>"
ROWS = [PageRow("first", "Ann: Hi {dialogue} $& there.", ["A greeting."]), PageRow(HOSTILE, HOSTILE, [HOSTILE])]
TEMPLATE = "Summarize the following conversation.\n\n{}\n\nSummary: "
WIDTHS = [1280, 360]


@dataclass
class Site:
    """A server with the page, and where its votes go."""

    server: Running
    votes: Path

    @property
    def pairs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.votes.read_text("utf-8").splitlines()]


class Held(Engine):
    """Writes so many tokens, and then waits: however fast the machine is, an answer is then under way.

    Attributes:
        tokens: How many it may still write.
        given_up: Set when somebody no longer wants an answer.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = threading.Semaphore(tokens)
        self.given_up = threading.Event()

    def _step(self, batch: Any) -> None:
        self.tokens.acquire()
        super()._step(batch)

    def cancel(self, job: Job) -> None:
        super().cancel(job)
        self.given_up.set()

    def stop(self) -> None:
        self.let_go()
        super().stop()

    def let_go(self) -> None:
        self.tokens.release(100_000)


@dataclass
class Browsed:
    """A tab, and all that it asked for and complained of."""

    page: Any
    asked: list[Any] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self, server: Running, part: str = "talk") -> Any:
        self.page.goto(f"{server.url}/#{part}")
        expect(self.page.locator(f"#{part}")).to_be_visible()
        return self.page.locator(f"#{part}")

    def decode(self, **options: Any) -> None:
        panel = self.page.locator("#options")
        if panel.get_attribute("open") is None:
            panel.locator("summary").click()
        for name, value in options.items():
            panel.locator(f"[name={name}]").fill(str(value))

    def bodies(self, path: str = "completions") -> list[dict[str, Any]]:
        return [json.loads(each.post_data) for each in self.asked if each.method == "POST" and path in each.url]


@contextmanager
def launched() -> Iterator[Any]:
    """The browser, without windows."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def tabs_of(browser: Any) -> Iterator[Callable[..., Browsed]]:
    """Open tabs; in the end none of them has asked another host, complained, or run what was text."""
    tabs: list[Browsed] = []

    def start(width: int = 1280, **options: Any) -> Browsed:
        page = browser.new_context(viewport={"width": width, "height": 800}, **options).new_page()
        page.set_default_timeout(PATIENCE)
        tab = Browsed(page)
        page.on("request", lambda request: tab.asked.append(request))
        page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        page.on("console", lambda said: tab.complaints.append(said.text) if said.type == "error" else None)
        tabs.append(tab)
        return tab

    yield start
    for tab in tabs:
        hosts = {re.match(r"\w+:(//[\d.]+)?", each.url)[0] for each in tab.asked}  # type: ignore[index]
        assert hosts <= {"http://127.0.0.1", "data:", "blob:"}
        assert [said for said in tab.complaints if "Failed to load resource" not in said] == []
        assert tab.page.title() == "Parley"
        tab.page.context.close()


def say(talk: Any, text: str) -> None:
    area = talk.get_by_label("Your message (Enter")
    area.fill(text)
    area.press("Enter")


def settled(part: Any, count: int) -> list[str]:
    """The texts of so many answers, once all have ended."""
    expect(part.locator(".answer[aria-busy]")).to_have_count(count)
    expect(part.locator(".answer[aria-busy=false]")).to_have_count(count)
    return part.locator(".answer[aria-busy] .text").all_text_contents()


def answer_of(hosted: Hosted, messages: list[dict[str, str]], **options: Any) -> str:
    [text] = expected(hosted, hosted.talk([Turn(**message) for message in messages]), **options)
    return text


def assert_fits(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def fulfilled(page: Any, body: str) -> None:
    """Have the next questions answered with a stream of our own."""
    page.unroute("**/v1/chat/completions")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
