"""The page in Debian's chromium, at the width of a desk and of a phone, with nothing made up but hostile answers."""
# ruff: noqa: E402

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
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

from src.datamodules import ConversationDataModule
from src.models.generation import GenerationOptions
from src.serving.hosted import Hosted, Limits
from src.serving.page import Page as ServedPage
from src.serving.page_rows import PageRow
from src.serving.votes import VoteFile
from tests.serving.ports import Running, expected, running

pytestmark = pytest.mark.slow
expect = playwright.expect

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


@pytest.fixture(scope="module")
def site(served: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    models = {name: served.models[name] for name in ("gpt2", "t5")}
    models[ODD_NAME] = Hosted(ODD_NAME, served.models["templated"].finished, GenerationOptions(max_new_tokens=12))
    votes = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    with running(models, page=ServedPage(ROWS, VoteFile(votes))) as server:
        yield Site(server, votes)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium: Any) -> Iterator[Callable[..., Browsed]]:
    """Open tabs; in the end none of them has asked another host, complained, or run what was text."""
    tabs: list[Browsed] = []

    def start(width: int = 1280, **options: Any) -> Browsed:
        page = chromium.new_context(viewport={"width": width, "height": 800}, **options).new_page()
        page.set_default_timeout(20_000)
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
    from src.contracts import Turn

    [text] = expected(hosted, hosted.talk([Turn(**message) for message in messages]), **options)
    return text


def assert_fits(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


@pytest.mark.parametrize("width", WIDTHS)
def test_a_talk_streams_and_stops(width: int, site: Site, browse: Callable[..., Browsed]) -> None:
    tab = browse(width)
    talk = tab.open(site.server)
    tab.decode(max_tokens=400, min_tokens=400)
    before = site.server.engine.load.tokens
    say(talk, "Hello there")
    writing = talk.locator(".answer[aria-busy=true] .text")
    expect(writing).to_have_text(re.compile(r"\S"))
    first = writing.text_content()
    talk.get_by_role("button", name="Stop").click()
    expect(talk.locator(".answer")).to_contain_text("stopped")
    [text] = settled(talk, 1)
    assert text.startswith(first)
    assert site.server.until_idle()
    assert site.server.engine.load.tokens - before < 400
    expect(talk.get_by_role("button", name="Send")).to_be_visible()
    assert_fits(tab.page)


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

    talk.get_by_role("button", name="Edit").first.click()
    talk.locator(".mine textarea").fill("Another")
    talk.get_by_role("button", name="Ask again").click()
    settled(talk, 1)
    assert tab.bodies()[-1]["messages"] == [{"role": "user", "content": "Another"}]
    talk.get_by_role("button", name="Clear").click()
    expect(talk.locator(".exchange")).to_have_count(0)
    talk.get_by_role("button", name="Undo").click()
    expect(talk.locator(".mine")).to_have_text("Another")


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
    texts = settled(presets, 11)
    names = [name.partition(" ")[0] for name in presets.locator(".answer h2").all_text_contents()]
    assert list(dict.fromkeys(names)) == [
        "greedy", "beams-5", "beams-5-no-repeat", "beams-5-all", "sampling", "temperature", "top-k", "top-p",
        "top-k-top-p",
    ]  # fmt: skip
    found = dict(zip(reversed(names), reversed(texts), strict=True))  # of several answers the first
    asked = [{"role": "user", "content": "Hello"}]
    for name, options in {
        "greedy": {},
        "beams-5": {"num_beams": 5},
        "top-p": {"do_sample": True, "top_p": 0.92},
        "top-k-top-p": {"do_sample": True, "top_k": 50, "top_p": 0.95},
    }.items():
        assert found[name] == answer_of(site.server.models["gpt2"], asked, **options, seed=2), name
    assert_fits(tab.page)
    presets.get_by_role("button", name="The first is better").click()
    expect(presets.get_by_text("Written down: ")).to_be_visible()
    assert site.pairs[-1]["chosen_options"]["preset"] == "greedy"


def test_stop_stops_all_that_is_under_way_and_all_that_is_not_yet(site: Site, browse: Callable[..., Browsed]) -> None:
    tab = browse()
    presets = tab.open(site.server, "presets")
    tab.decode(max_tokens=400, min_tokens=400)
    presets.get_by_label("Prompt", exact=True).fill("Hello")
    presets.get_by_role("button", name="Ask in every way").click()
    expect(presets.locator(".answer .text").first).to_have_text(re.compile(r"\S"))
    presets.get_by_role("button", name="Stop").click()
    settled(presets, 11)
    expect(presets.locator(".answer", has_text="stopped")).not_to_have_count(0)
    expect(presets.locator(".trouble:visible")).to_have_count(0)
    expect(presets.get_by_role("button", name="Ask in every way")).to_be_visible()
    assert len(tab.bodies()) < 9
    assert site.server.until_idle(20)


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


@pytest.mark.parametrize("width", WIDTHS)
def test_hostile_text_is_text(width: int, site: Site, browse: Callable[..., Browsed]) -> None:
    """In what a user says, what a model says, what is in the data, what a model is called and what an error says."""
    tab = browse(width)
    talk = tab.open(site.server)
    tab.page.locator("#model").select_option(ODD_NAME)
    chunk = {"choices": [{"index": 0, "delta": {"content": HOSTILE + "x" * 500}, "finish_reason": "stop"}]}
    tab.page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            content_type="text/event-stream", body=f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        ),
    )
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
    tab.open(site.server)
    tab.page.reload()
    reached = []
    for _ in range(12):
        tab.page.keyboard.press("Tab")
        reached.append(tab.page.evaluate("document.activeElement.textContent || document.activeElement.tagName"))
        ring = tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring == "solid", reached
        if reached[-1] == "TEXTAREA":
            break
    assert reached[:4] == ["Talk", "Summarise", "Side by side", "Presets"]
    tab.page.keyboard.type("Hello")
    tab.page.keyboard.press("Enter")
    settled(tab.page.locator("#talk"), 1)
    assert tab.page.locator("#talk .answer").get_attribute("aria-live") == "polite"


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
