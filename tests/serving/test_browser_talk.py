"""A talk on the page: streamed, stopped, remembered, edited, decoded as the options say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")

from src.datamodules import ConversationDataModule
from src.models.generation_options import GenerationOptions
from src.serving.hosted import Hosted, Limits
from src.serving.page import Page as ServedPage
from tests.serving.browsing import WIDTHS, Browsed, Held, Site, answer_of, assert_fits, expect, fulfilled, say, settled
from tests.serving.ports import running

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("width", WIDTHS)
def test_a_talk_streams_and_stops(width: int, site: Site, browse: Callable[..., Browsed]) -> None:
    held = Held(20)
    with running(site.server.models, held, page=ServedPage()) as server:
        tab = browse(width)
        talk = tab.open(server)
        tab.decode(max_tokens=400, min_tokens=400)
        say(talk, "Hello there")
        writing = talk.locator(".answer[aria-busy=true] .text")
        expect(writing).to_have_text(re.compile(r"\S"))
        first = writing.text_content()
        talk.get_by_role("button", name="Stop").click()
        expect(talk.locator(".answer")).to_contain_text("stopped")
        [text] = settled(talk, 1)
        assert text.startswith(first)
        expect(talk.get_by_role("button", name="Send")).to_be_visible()
        assert_fits(tab.page)
        assert held.given_up.wait(20)
        held.let_go()
        assert server.until_idle()
        assert held.load.tokens < 30


def test_a_talk_remembers_retries_and_is_edited(site: Site, browse: Callable[..., Browsed], tmp_path: Path) -> None:
    tab = browse()
    talk = tab.open(site.server)
    gpt2 = site.server.models["gpt2"]
    say(talk, "First\tquestion")
    said = [{"role": "user", "content": "First\tquestion"}]
    [first] = settled(talk, 1)
    assert first == answer_of(gpt2, said)
    talk.get_by_label("Your message").press_sequentially("Second")
    tab.page.keyboard.press("Shift+Enter")
    tab.page.keyboard.type("line")
    tab.page.keyboard.press("Enter")
    said += [{"role": "assistant", "content": first}, {"role": "user", "content": "Second\nline"}]
    assert settled(talk, 2)[1] == answer_of(gpt2, said)
    assert tab.bodies()[-1]["messages"] == said

    talk.get_by_role("button", name="Retry").click()
    settled(talk, 2)
    assert tab.bodies()[-1]["messages"] == said
    with tab.page.expect_download() as download:
        talk.get_by_role("button", name="Download").click()
    download.value.save_as(tmp_path / "talk.jsonl")
    [read] = ConversationDataModule("", path=str(tmp_path / "talk.jsonl"), test_split="test").last_turns("test")
    assert [turn.content for turn in read.turns] == ["First\tquestion", first, "Second\nline"]

    talk.get_by_label("Your message").fill("A draft")
    tab.page.reload()
    expect(talk.get_by_label("Your message")).to_have_value("A draft")
    assert settled(talk, 2)[0] == first
    talk.get_by_role("button", name="Retry").click()
    settled(talk, 2)
    assert tab.bodies()[-1]["messages"] == said

    talk.get_by_role("button", name="Edit").first.click()
    talk.locator(".mine textarea").fill("Another")
    talk.get_by_role("button", name="Ask again").click()
    settled(talk, 1)
    assert tab.bodies()[-1]["messages"] == [{"role": "user", "content": "Another"}]
    talk.get_by_role("button", name="Clear").click()
    expect(talk.locator(".exchange")).to_have_count(0)
    talk.get_by_role("button", name="Undo").click()
    expect(talk.locator(".mine")).to_have_text("Another")


def test_a_reload_costs_neither_the_options_nor_the_vote(site: Site, browse: Callable[..., Browsed]) -> None:
    tab = browse()
    talk = tab.open(site.server)
    tab.page.locator("#model").select_option("t5")
    tab.decode(temperature=1.5, seed=3, answers=2)
    say(talk, "Hello")
    texts = settled(talk, 2)
    assert texts[0] != texts[1]
    tab.page.reload()
    assert settled(talk, 2) == texts
    assert tab.page.locator("#model").input_value() == "t5"
    expect(tab.page.locator("#options summary")).to_contain_text("temperature 1.5, seed 3, 2 answers")
    talk.get_by_role("button", name="Answer 2 is better").click()
    expect(talk.get_by_text("Written down")).to_be_visible()
    pair = site.pairs[-1]
    assert (pair["chosen"][0]["content"], pair["chosen_model"]) == (texts[1].strip(), "t5")
    assert pair["chosen_options"]["temperature"] == 1.5
    tab.page.reload()
    settled(talk, 2)
    expect(talk.locator(".votes")).to_have_count(0)


def test_the_options_are_the_requests(site: Site, browse: Callable[..., Browsed]) -> None:
    tab = browse()
    talk = tab.open(site.server)
    options = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "max_tokens": 9, "seed": 4, "repetition_penalty": 1.2}
    tab.decode(**options, stop="END\n\\n\\n")
    say(talk, "Hello")
    [text] = settled(talk, 1)
    sent = tab.bodies()[-1]
    assert {name: sent[name] for name in options} == options
    assert sent["stop"] == ["END", "\n\n"]
    decoding = {"max_new_tokens" if name == "max_tokens" else name: value for name, value in options.items()}
    messages = [{"role": "user", "content": "Hello"}]
    gpt2 = site.server.models["gpt2"]
    assert text == answer_of(gpt2, messages, **decoding, do_sample=True, stop_strings=["END", "\n\n"])
    tab.decode(temperature=3)
    say(talk, "More")
    assert len(tab.bodies()) == 1
    assert talk.get_by_label("Your message").input_value() == "More"


@pytest.mark.parametrize("width", WIDTHS)
def test_candidates_are_voted_on_and_the_better_goes_on(width: int, site: Site, browse: Callable[..., Browsed]) -> None:
    tab = browse(width)
    talk = tab.open(site.server)
    tab.decode(answers=3, seed=width, max_tokens=8, min_tokens=8)
    assert tab.page.locator("[name=temperature]").input_value()  # without it all three would be one
    say(talk, "Which one?")
    texts = settled(talk, 3)
    talk.get_by_label("vote between").select_option(label="Answer 3")
    talk.get_by_label("against").select_option(label="Answer 1")
    before = len(site.votes.read_text("utf-8").splitlines())
    talk.get_by_role("button", name="The first is better").click()
    expect(talk.get_by_text("Written down: Answer 3 over Answer 1.")).to_be_visible()
    assert_fits(tab.page)
    pair = site.pairs[-1]
    assert len(site.pairs) == before + 1
    assert pair["prompt"] == [{"role": "user", "content": "Which one?"}]
    assert [pair[side][0]["content"] for side in ("chosen", "rejected")] == [texts[2].strip(), texts[0].strip()]
    assert pair["chosen_options"]["seed"] == width
    tab.decode(answers=1)
    say(talk, "And then?")
    settled(talk, 4)
    assert tab.bodies()[-1]["messages"][1] == {"role": "assistant", "content": texts[2]}


def test_a_talk_that_is_too_long_loses_its_oldest_part(site: Site, browse: Callable[..., Browsed]) -> None:
    finished = site.server.models["gpt2"].finished
    short = Hosted("short", finished, GenerationOptions(max_new_tokens=4), Limits(prompt_tokens=60))
    with running({"short": short}, page=ServedPage()) as server:
        tab = browse()
        talk = tab.open(server)
        for number in range(1, 4):
            say(talk, f"{number}" * 25)
            settled(talk, number)
        expect(talk.get_by_text("The model was not shown the first")).to_be_visible()
        assert tab.bodies()[-1]["messages"][-1]["content"] == "3" * 25
        assert tab.bodies()[-1]["messages"][0]["content"] != "1" * 25
        expect(talk.locator(".trouble:visible")).to_have_count(0)


def test_an_answer_that_breaks_off_keeps_what_there_is_of_it(site: Site, browse: Callable[..., Browsed]) -> None:
    tab = browse()
    talk = tab.open(site.server)
    chunk = {"choices": [{"index": 0, "delta": {"content": "Half a word"}, "finish_reason": None}]}
    said = "the answer failed: no memory."
    failure = {"error": {"message": said, "type": "server_error", "param": None, "code": None}}
    for rest, line in (("", "The server went away before the answer was whole."), (failure, said)):
        fulfilled(tab.page, f"data: {json.dumps(chunk)}\n\n" + (f"data: {json.dumps(rest)}\n\n" if rest else ""))
        say(talk, "Hello")
        expect(talk.locator(".answer .trouble").last).to_have_text(line)
        expect(talk.locator(".answer .text").last).to_have_text("Half a word")


def test_a_server_that_went_away_says_so_and_nothing_is_lost(site: Site, browse: Callable[..., Browsed]) -> None:
    tab = browse()
    with running(site.server.models, page=ServedPage()) as server:
        talk = tab.open(server)
        say(talk, "First")
        [first] = settled(talk, 1)
    say(talk, "Second")
    expect(talk.get_by_text("The server does not answer")).to_be_visible()
    assert settled(talk, 2) == [first, ""]
    assert talk.locator(".mine").all_text_contents() == ["First", "Second"]
    expect(talk.get_by_role("button", name="Retry")).to_be_enabled()


def test_what_the_server_refuses_is_one_line_at_its_place(site: Site, browse: Callable[..., Browsed]) -> None:
    tab = browse()
    talk = tab.open(site.server)
    tab.decode(max_tokens=900_000)
    say(talk, "Hello")
    expect(talk.locator(".answer .trouble")).to_have_text(re.compile(r"^max_tokens is 900,000, [^\n]*$"))
    tab.decode(max_tokens=5)
    talk.get_by_role("button", name="Retry").click()
    assert settled(talk, 1)[0]
