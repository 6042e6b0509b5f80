"""`parley report` on a run that was really trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from src.cli import main

STEPS = 6


class Page(HTMLParser):
    """Which elements a page has, whether they are closed, and its text."""

    VOID = ("meta", "input", "br", "wbr", "path", "use", "rect", "circle", "line")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.elements.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.elements.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def runs(tiny_base: Callable[..., Path], sample: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two short runs with different learning rates."""
    root = tmp_path_factory.mktemp("report")
    for rate in ("0.01", "0.02"):
        settings = {
            "model.init_args.model_name_or_path": tiny_base("t5"),
            "model.init_args.optimizer": "torch.optim.AdamW",
            "model.init_args.optimizer.init_args.lr": rate,
            "model.init_args.generation.max_new_tokens": 4,
            "seed_everything": 1,
            "data.init_args.path": sample,
            "data.init_args.template": "{dialogue}<script>alert(1)</script>",
            "data.init_args.batch_size": 4,
            "trainer.max_steps": STEPS,
            "trainer.val_check_interval": 3,
            "trainer.num_sanity_val_steps": 0,
            "trainer.log_every_n_steps": 1,
            "trainer.accelerator": "cpu",
            "trainer.default_root_dir": root / "runs",
        }
        words = ["fit", "--model", "Seq2SeqModule", "--data", "DialogSumDataModule"]
        words += [f"--{name}={value}" for name, value in settings.items()]
        assert main(words) == 0
    return sorted((root / "runs").glob("version_*"))


def report(*words: object) -> Page:
    assert main(["report", *map(str, words), "--output", "pages/report.html"]) == 0
    return Page(Path("pages/report.html").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_one_run(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    page = report(runs[0])
    assert page.open == []
    again = f"parley fit -c {runs[0]}/config.yaml --ckpt_path "
    for part in (str(runs[0]), "parameters trained", again, "torch"):
        assert part in page.text
    for part in ("train/loss", "val/loss", "Last figures", "Answers", "Settings", "0.01"):
        assert part in page.text
    assert "<script>alert(1)</script>" in page.text  # as text: the prompts', not the page's
    assert page.elements.count("script") == 1  # the page's own, which its policy names
    assert page.elements.count("svg") >= page.elements.count("figure") >= 3
    assert not re.search(r"(?:src|href)=\"http", Path("pages/report.html").read_text(encoding="utf-8"))


def test_two_runs_side_by_side(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    page = report(*runs, "--examples", "2")
    assert "2 runs" in page.text
    assert "Settings that differ" in page.text
    assert "model.init_args.optimizer.init_args.lr" in page.text
    assert "data.init_args.template" not in page.text
    assert re.search(r"\([+−][\d.e-]+\)", page.text)  # a difference from the first run
    assert page.elements.count("article") == 2
    source = Path("pages/report.html").read_text(encoding="utf-8")
    assert all(f"stroke: var(--run-{number})" in source for number in (0, 1))


def test_a_directory_of_runs_stands_for_all_of_them(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    page = report(runs[0].parent.parent)
    assert "2 runs" in page.text
    for run in runs:
        assert f"parley fit -c {run}/config.yaml" in page.text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{run}", "{run}/"], "version_0 is given twice; leave one of them out."),
        (["{run}/checkpoints"], "checkpoints is no run and holds none"),
        (["nowhere"], "there is no run nowhere"),
        (["{run}", "--output", "report.pdf"], "name a file that ends in .html"),
        (["{run}", "--examples", "-1"], "--examples is -1; it must be 0 or more"),
        (["{run}", "--output", "{run}/metrics.csv/report.html"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line(words, said, runs, capsys):
    assert main(["report", *(word.format(run=runs[0]) for word in words)]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("parley report:")]
    assert said in line
