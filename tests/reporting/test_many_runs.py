"""A page about a dozen runs of several kinds: each is told apart, and only like is compared with like."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import pytest

from src.reporting.page import render
from src.reporting.runs import Run, read_run

PATIENCE = 240_000  # milliseconds; a machine may have other work
MODULES = {"fit": "Seq2SeqModule", "lora": "Seq2SeqModule", "dpo": "DPOModule"}
TRAINED = [*MODULES, *(f"sweep-{number}" for number in range(9))]


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Twelve that trained, of two kinds, and a test of one of them."""
    for number, name in enumerate(TRAINED):
        directory = tmp_path / name / "version_0"
        (directory / "checkpoints").mkdir(parents=True)
        (directory / "checkpoints" / "step=0000002.ckpt").touch()
        rows = [f"0,{step},{number + step / 4}" for step in range(3)]
        (directory / "metrics.csv").write_text("\n".join(["epoch,step,train/loss", *rows]) + "\n")
        (directory / "config.yaml").write_text(
            f"seed_everything: {number}\n"
            f"model: {{class_path: src.modules.{MODULES.get(name, 'Seq2SeqModule')}, init_args: {{lr: {number}.5}}}}\n"
            "data: {class_path: src.datamodules.DialogSumDataModule, init_args: {path: sample}}\n"
        )
        (directory / "hparams.yaml").write_text(
            "parameters: 10\ntrainable_parameters: 5\nenvironment: {torch: '2.13', python: '3.11'}\n"
        )
    tested = tmp_path / "dpo-test" / "version_0"
    tested.mkdir(parents=True)
    long = [f"test/a_metric_with_a_long_name_{number}" for number in range(12)]
    (tested / "metrics.csv").write_text(f"epoch,step,{','.join(long)}\n0,1{',0.123456' * 12}\n")
    checkpoint = tmp_path / "dpo" / "version_0" / "checkpoints" / "step=0000002.ckpt"
    (tested / "config.yaml").write_text(
        f"ckpt_path: {checkpoint}\nmodel: {{class_path: src.modules.DPOModule}}\n"
        "data: {init_args: {path: sample}}\n"
    )
    (tested / "before_after.csv").write_text(
        "query,response_before,response_after,reward_before,reward_after\nWhy?,No.,So.,0.25,0.75\n"
    )
    return [read_run(tmp_path / name / "version_0") for name in (*TRAINED, "dpo-test")]


@pytest.fixture
def page(runs: list[Run]) -> str:
    return render(runs, 20)


def figures_of(page: str, metric: str) -> list[str]:
    return re.findall(rf"<figure[^>]*><figcaption>{metric}</figcaption>.*?</figure>", page, re.DOTALL)


def text_of(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def test_every_run_has_a_style_of_its_own(page: str):
    overview = page[page.index('<div class="overview">') : page.index("</section>\n</div>")]
    styles = re.findall(r'<path d="M0 4H26" style="([^"]*)"/>', overview)
    assert len(styles) == len(set(styles)) == 13


def test_losses_of_two_kinds_have_a_picture_each_with_legends_and_names_to_read_off(page: str):
    supervised, preferences = figures_of(page, "train/loss")
    assert [text_of(each) for each in re.findall(r"<li>.*?</li>", supervised)] == [
        name for name in TRAINED if name != "dpo"
    ]
    assert [text_of(each) for each in re.findall(r"<li>.*?</li>", preferences)] == ["dpo"]
    assert "Seq2SeqModule" in text_of(supervised)
    assert "DPOModule" in text_of(preferences)
    marks = json.loads(html.unescape(re.search(r"data-marks='([^']*)'", supervised)[1]))
    assert [name for name, _, _ in marks] == [name for name in TRAINED if name != "dpo"]  # though two share a colour
    assert marks[0][2][0][2] == "step 0: 0"


def test_only_figures_of_a_kind_have_a_difference(page: str):
    table = re.search(r"<h3>Training</h3>.*?</table>", page, re.DOTALL)[0]
    rows = {}
    for row in re.findall(r"<tr data-row>(.*?)</tr>", table):
        name, loss = (text_of(cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row))
        rows[name] = loss
    assert rows["fit"] == "0.5"
    assert rows["lora"] == "1.5 (+1)"
    assert rows["dpo"] == "2.5"
    assert rows["sweep-0"] == "3.5 (+3)"
    assert 'title="difference from fit"' in table


def test_a_run_is_a_row_and_what_is_long_is_folded(page: str):
    folded = re.findall(r"<details><summary>(.*?)</summary>", page)
    assert [text_of(each) for each in folded] == [
        *("What each was made with", "1 answer, the greatest rise in reward first"),
        *("12 others", "5", *TRAINED),
    ]
    assert page.count('<table class="sticky">') == 3  # made with, training's figures, the test's others
    assert page.count('class="hint"') == page.count('class="wide"') == 4


def test_numbers_before_and_after_are_labelled(page: str):
    [trio] = re.findall(r'<dl class="trio">.*?</dl>', page)
    assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", trio) == [
        ("before", "0.25"),
        ("after", "0.75"),
        ("change", "+0.5"),
    ]


def test_a_test_names_its_checkpoint_and_every_export_a_directory(page: str):
    words = text_of(page)
    assert "Test of the checkpoint step=0000002.ckpt of dpo by DPOModule on sample" in words
    assert re.findall(r"--output (models/\S+)", words) == [f"models/{name}" for name in TRAINED]


def test_what_all_runs_share_is_said_once(page: str):
    assert text_of(page).count("torch 2.13 · python 3.11") == 1


@pytest.mark.slow
def test_it_fits_a_phone_and_reads_off_by_name(page: str, tmp_path: Path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = started.chromium.launch(executable_path=chromium, args=flags, timeout=PATIENCE)
        tab = browser.new_page(viewport={"width": 390, "height": 800})
        tab.set_default_timeout(PATIENCE)
        tab.goto(file.as_uri())
        tab.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        tab.wait_for_selector(".wide.more")
        wider = "each => each.querySelector('.wide').scrollWidth > each.querySelector('.wide').clientWidth + 1"
        places = [place for place in tab.query_selector_all(".scroller") if place.evaluate(wider)]
        assert places
        for place in places:
            assert place.query_selector(".hint").is_visible()
            name = place.query_selector("tbody tr:first-child th")
            before = name.bounding_box()
            assert before["width"] < 390 / 3
            place.query_selector(".wide").evaluate("each => { each.scrollLeft = 10000; }")
            assert name.bounding_box()["x"] == before["x"]  # it stays
        tab.locator("figure svg:not(.key)").first.hover()
        read = tab.locator(".read:visible").inner_text().splitlines()
        assert len(read) == 11
        assert read[0].startswith("fit: step ")
        browser.close()
