"""The page for everybody: hostile texts, the key, the keyboard, contrast."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")

from src.serving.page import Page as ServedPage
from tests.serving.browsing import (
    HOSTILE,
    ODD_NAME,
    WIDTHS,
    Browsed,
    Site,
    assert_fits,
    expect,
    fulfilled,
    say,
    settled,
)
from tests.serving.ports import running

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("width", WIDTHS)
def test_hostile_text_is_text(width: int, site: Site, browse: Callable[..., Browsed]) -> None:
    """In what a user says, what a model says, what is in the data, what a model is called and what an error says."""
    tab = browse(width)
    talk = tab.open(site.server)
    tab.page.locator("#model").select_option(ODD_NAME)
    chunk = {"choices": [{"index": 0, "delta": {"content": HOSTILE + "x" * 500}, "finish_reason": "stop"}]}
    fulfilled(tab.page, f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n")
    say(talk, HOSTILE)
    assert settled(talk, 1) == [HOSTILE + "x" * 500]
    expect(talk.locator(".mine")).to_have_text(HOSTILE)
    assert_fits(tab.page)
    tab.page.unroute("**/v1/chat/completions")
    error = {"error": {"message": HOSTILE, "type": "x", "param": None, "code": None}}
    tab.page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, json=error))
    say(talk, "More")
    expect(talk.locator(".answer").last).to_contain_text(HOSTILE)
    tab.page.unroute("**/v1/chat/completions")
    tab.page.get_by_role("link", name="Summarise").click()
    summarise = tab.page.locator("#summarise")
    summarise.get_by_role("button", name="Next").click()
    expect(summarise.get_by_text(f"Row 1 ({HOSTILE})")).to_be_visible()
    summarise.get_by_role("button", name="Summarise").click()
    settled(summarise, 1)
    expect(summarise.locator(".answer").last).to_contain_text(HOSTILE)
    assert tab.page.locator("img, b, i, script:not([src])").count() == 0
    assert_fits(tab.page)


def test_the_key_is_asked_for_once(site: Site, browse: Callable[..., Browsed]) -> None:
    with running(site.server.models, page=ServedPage(), key="s3cret") as server:
        tab = browse()
        tab.page.goto(server.url)
        dialog = tab.page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        for wrong in ("wrong", "ключ"):
            dialog.get_by_label("Key").fill(wrong)
            tab.page.keyboard.press("Enter")
            expect(dialog.get_by_text("That was not it.")).to_be_visible()
        dialog.get_by_label("Key").fill("s3cret")
        tab.page.keyboard.press("Enter")
        expect(tab.page.locator("#talk")).to_be_visible()
        expect(dialog).to_be_hidden()
        talk = tab.open(server)
        tab.page.reload()
        say(talk, "Hello")
        settled(talk, 1)
        expect(dialog).to_be_hidden()
        other = browse()
        other.page.goto(server.url)
        expect(other.page.get_by_role("dialog")).to_be_visible()


def test_everything_has_a_name_and_is_reached_by_keyboard(site: Site, browse: Callable[..., Browsed]) -> None:
    tab = browse(360)
    for part in ("talk", "summarise", "beside", "presets"):
        tab.open(site.server, part)
        tab.decode()
        assert_fits(tab.page)
        nameless = tab.page.evaluate(
            """() => [...document.querySelectorAll("input, select, textarea, button")].filter((each) =>
              !((each.labels?.length ?? 0) || each.ariaLabel || (each.tagName === "BUTTON" && each.textContent)))
              .map((each) => each.outerHTML)"""
        )
        assert nameless == []
    presets = tab.page.locator("#presets")
    expect(presets.get_by_role("combobox", name="The prompt is", exact=True)).to_be_visible()
    expect(presets.get_by_role("spinbutton", name="Row, 0 to 1", exact=True)).to_be_visible()
    tab = browse(360)
    tab.page.goto(site.server.url)
    expect(tab.page.locator("#talk")).to_be_visible()
    assert tabbed_to_the_text(tab)[:4] == ["Talk", "Summarise", "Side by side", "Presets"]
    tab.page.keyboard.type("Hello")
    tab.page.keyboard.press("Enter")
    settled(tab.page.locator("#talk"), 1)
    assert tab.page.locator("#talk .answer").get_attribute("aria-live") == "polite"


def test_a_part_s_address_leads_the_keyboard_past_what_is_above_it(site: Site, browse: Callable[..., Browsed]) -> None:
    tab = browse()
    tab.open(site.server)
    assert tabbed_to_the_text(tab) == ["TEXTAREA"]


def tabbed_to_the_text(tab: Browsed) -> list[str]:
    """What the key Tab reaches, one after another, up to the text to write; each is seen to have the focus."""
    reached: list[str] = []
    while "TEXTAREA" not in reached and len(reached) < 12:
        tab.page.keyboard.press("Tab")
        reached.append(tab.page.evaluate("document.activeElement.textContent || document.activeElement.tagName"))
        assert tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", reached
    return reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(scheme: str, site: Site, browse: Callable[..., Browsed]) -> None:
    """By WCAG 2.2's contrast of 4.5 for text."""
    tab = browse(color_scheme=scheme)
    tab.open(site.server)
    tab.decode()
    pairs = tab.page.evaluate(
        """() => {
          const behind = (each) => {
            for (; each; each = each.parentElement) {
              const color = getComputedStyle(each).backgroundColor;
              if (color !== "rgba(0, 0, 0, 0)") return color;
            }
          };
          return [...document.querySelectorAll("a, p, h1, summary, summary span, label, button:enabled, input, select")]
            .filter((each) => each.checkVisibility())
            .map((each) => [getComputedStyle(each).color, behind(each), each.outerHTML.slice(0, 80)]);
        }"""
    )

    def luminance(color: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert len(pairs) > 20
    for ink, paper, what in pairs:
        darker, lighter = sorted((luminance(ink), luminance(paper)))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, what
