"""Summaries, two models side by side, every preset, and the votes between answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")

from src.contracts import Turn
from src.serving.page import Page as ServedPage
from src.serving.page_rows import PageRow
from src.serving.votes import VoteFile
from tests.serving.browsing import ROWS, TEMPLATE, WIDTHS, Browsed, Held, Site, answer_of, assert_fits, expect, settled
from tests.serving.ports import expected, running

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("better", ["A", "B"])
def test_two_models_blind(width: int, better: str, site: Site, browse: Callable[..., Browsed]) -> None:
    tab = browse(width)
    beside = tab.open(site.server, "beside")
    tab.page.locator("#beside").get_by_label("Blind").check()
    beside.get_by_label("Prompt", exact=True).fill("Will you?")
    beside.get_by_role("button", name="Ask both").click()
    texts = dict(zip("AB", settled(beside, 2), strict=True))
    assert beside.locator(".answer h2").all_text_contents() == ["A", "B"]
    beside.get_by_role("button", name=f"{better} is better").click()
    expect(beside.get_by_text("Written down")).to_be_visible()
    names = dict(text.split(": ", 1) for text in beside.locator(".answer h2").all_text_contents())
    assert set(names.values()) == {"gpt2", "t5"}
    asked = [{"role": "user", "content": "Will you?"}]
    assert all(texts[side] == answer_of(site.server.models[names[side]], asked) for side in "AB")
    pair = site.pairs[-1]
    assert (pair["prompt"], pair["chosen_model"]) == (asked, names[better])
    assert pair["chosen"][0]["content"] == texts[better].strip()
    assert_fits(tab.page)


def test_the_same_is_not_written(site: Site, browse: Callable[..., Browsed]) -> None:
    beside = browse().open(site.server, "beside")
    beside.get_by_label("Prompt", exact=True).fill("Well?")
    beside.get_by_label("Prompt", exact=True).press("Enter")
    settled(beside, 2)
    before = site.votes.read_bytes() if site.votes.exists() else b""
    beside.get_by_role("button", name="The same").click()
    expect(beside.get_by_text("Nothing was written")).to_be_visible()
    assert site.votes.read_bytes() == before


def test_a_text_that_goes_on_is_no_talk(site: Site, browse: Callable[..., Browsed]) -> None:
    beside = browse().open(site.server, "beside")
    beside.get_by_label("The prompt is").select_option("text")
    beside.get_by_label("Second model").select_option("gpt2")
    beside.get_by_label("Second decoding").select_option("beams-5-no-repeat")
    beside.get_by_label("Prompt", exact=True).fill("Once upon")
    beside.get_by_role("button", name="Ask both").click()
    greedy, beams = settled(beside, 2)
    gpt2 = site.server.models["gpt2"]
    ids = gpt2.text("Once upon")
    assert [greedy.strip()] == expected(gpt2, ids)
    assert [beams.strip()] == expected(gpt2, ids, num_beams=5, no_repeat_ngram_size=2)
    expect(beside.locator(".votes")).to_have_count(0)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_preset(width: int, site: Site, browse: Callable[..., Browsed]) -> None:
    tab = browse(width)
    presets = tab.open(site.server, "presets")
    tab.decode(seed=2)
    presets.get_by_label("Prompt", exact=True).fill("Hello")
    presets.get_by_role("button", name="Ask in every way").click()
    texts = settled(presets, 15)
    names = [name.partition(" ")[0] for name in presets.locator(".answer h2").all_text_contents()]
    assert list(dict.fromkeys(names)) == [
        "greedy", "beams-5", "beams-5-no-repeat", "beams-5-all", "sampling", "temperature", "top-k", "top-p",
        "top-k-top-p",
    ]  # fmt: skip
    found = dict(zip(reversed(names), reversed(texts), strict=True))  # of several answers the first
    asked, gpt2 = [{"role": "user", "content": "Hello"}], site.server.models["gpt2"]
    for name, options in {
        "greedy": {},
        "beams-5": {"num_beams": 5},
        "top-p": {"do_sample": True, "top_p": 0.92},
        "top-k-top-p": {"do_sample": True, "top_k": 50, "top_p": 0.95},
    }.items():
        assert found[name] == answer_of(gpt2, asked, **options, seed=2), name
    asked_ids = gpt2.talk([Turn("user", "Hello")])
    beams = expected(gpt2, asked_ids, num_beams=5, no_repeat_ngram_size=2, num_return_sequences=5)
    assert [text for name, text in zip(names, texts, strict=True) if name == "beams-5-all"] == beams
    assert_fits(tab.page)
    presets.get_by_role("button", name="The first is better").click()
    expect(presets.get_by_text("Written down: ")).to_be_visible()
    assert site.pairs[-1]["chosen_options"]["preset"] == "greedy"


def test_stop_stops_all_that_is_under_way_and_all_that_is_not_yet(site: Site, browse: Callable[..., Browsed]) -> None:
    held = Held(20)
    with running(site.server.models, held, page=ServedPage()) as server:
        tab = browse()
        presets = tab.open(server, "presets")
        tab.decode(max_tokens=100, min_tokens=100)
        presets.get_by_label("Prompt", exact=True).fill("Hello")
        presets.get_by_role("button", name="Ask in every way").click()
        expect(presets.locator(".answer .text").first).to_have_text(re.compile(r"\S"))
        presets.get_by_role("button", name="Stop").click()
        settled(presets, 15)
        expect(presets.locator(".answer", has_text="greedy")).to_contain_text("stopped")
        expect(presets.locator(".answer", has_text="top-k-top-p 3")).to_contain_text("stopped")
        expect(presets.locator(".trouble:visible")).to_have_count(0)
        expect(presets.get_by_role("button", name="Ask in every way")).to_be_visible()
        assert len(tab.bodies()) < 9
        assert held.given_up.wait(20)
        held.let_go()
        assert server.until_idle(20)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_of_the_data_is_summarised(width: int, site: Site, browse: Callable[..., Browsed]) -> None:
    tab = browse(width)
    summarise = tab.open(site.server, "summarise")
    tab.page.locator("#model").select_option("t5")
    summarise.get_by_role("button", name="Take it").click()
    expect(summarise.get_by_role("textbox", name="Dialogue")).to_have_value(ROWS[0].text)
    summarise.get_by_role("button", name="Summarise").click()
    [text] = settled(summarise, 1)
    asked = [{"role": "user", "content": TEMPLATE.format(ROWS[0].text)}]
    assert tab.bodies()[-1]["messages"] == asked
    assert text == answer_of(site.server.models["t5"], asked)
    expect(summarise.get_by_text("A greeting.")).to_be_visible()
    assert_fits(tab.page)


def test_a_dialogue_of_the_data_is_asked_in_a_template_everywhere(
    site: Site, browse: Callable[..., Browsed], tmp_path: Path
) -> None:
    votes = VoteFile(tmp_path / "votes.jsonl")
    rows = [PageRow("talk", "Ann: Hi {dialogue}.", ["A greeting."], is_dialogue=True), PageRow("ask", "Well?")]
    with running(site.server.models, page=ServedPage(rows, votes)) as server:
        tab = browse()
        beside = tab.open(server, "beside")
        beside.get_by_role("button", name="Take it").click()
        kind = beside.get_by_label("The prompt is")
        expect(kind).to_have_value("template summarize")
        beside.get_by_role("button", name="Ask both").click()
        settled(beside, 2)
        asked = [{"role": "user", "content": TEMPLATE.format(rows[0].text)}]
        assert [body["messages"] for body in tab.bodies()] == [asked, asked]
        beside.get_by_role("button", name="A is better").click()
        expect(beside.get_by_text("Written down")).to_be_visible()
        assert json.loads(votes.path.read_text("utf-8"))["prompt"] == asked
        beside.get_by_role("button", name="Next").click()
        expect(kind).to_have_value("message")
        kind.select_option("text")  # which a row does not change any more
        beside.get_by_role("button", name="Previous").click()
        expect(beside.get_by_role("textbox", name="Prompt")).to_have_value(rows[0].text)
        expect(kind).to_have_value("text")


def test_what_was_asked_of_another_row_is_not_left_there(site: Site, browse: Callable[..., Browsed]) -> None:
    summarise = browse().open(site.server, "summarise")
    summarise.get_by_role("button", name="Take it").click()
    expect(summarise.get_by_text("Row 0 (first)")).to_be_visible()
    summarise.get_by_role("button", name="Summarise").click()
    settled(summarise, 1)
    number = summarise.get_by_role("spinbutton", name="Row, 0 to 1", exact=True)
    number.fill("9999")
    summarise.get_by_role("button", name="Take it").click()
    expect(summarise.get_by_text("There is no row 9999; rows are 0 to 1.")).to_be_visible()
    expect(summarise.locator(".answer")).to_have_count(2)
    number.fill("1")
    summarise.get_by_role("button", name="Take it").click()
    expect(summarise.locator(".answer")).to_have_count(0)


def test_a_vote_that_cannot_be_written_may_be_cast_again(
    site: Site, browse: Callable[..., Browsed], tmp_path: Path
) -> None:
    votes = tmp_path / "votes.jsonl"
    with running(site.server.models, page=ServedPage(votes=VoteFile(votes))) as server:
        beside = browse().open(server, "beside")
        beside.get_by_role("textbox", name="Prompt").fill("Well?")
        beside.get_by_role("button", name="Ask both").click()
        settled(beside, 2)
        votes.unlink()
        votes.mkdir()
        beside.get_by_role("button", name="A is better").click()
        expect(beside.locator(".votes .trouble")).to_contain_text("votes.jsonl cannot be written")
        votes.rmdir()
        beside.get_by_role("button", name="A is better").click()
        expect(beside.get_by_text("Written down")).to_be_visible()
    assert len(votes.read_text("utf-8").splitlines()) == 1


def test_without_votes_there_are_no_buttons_for_them(site: Site, browse: Callable[..., Browsed]) -> None:
    with running(site.server.models, page=ServedPage()) as server:
        beside = browse().open(server, "beside")
        beside.get_by_label("Blind").check()
        beside.get_by_label("Prompt", exact=True).fill("Well?")
        beside.get_by_role("button", name="Ask both").click()
        settled(beside, 2)
        expect(beside.locator(".votes")).to_have_count(0)
        expect(beside.get_by_text("Row,")).to_have_count(0)
        beside.get_by_role("button", name="Show the names").click()
        assert {text.split(": ", 1)[1] for text in beside.locator(".answer h2").all_text_contents()} == {"gpt2", "t5"}
