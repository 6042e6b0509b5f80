"""What the documentation tells people to type works, and what it links to is there.

The quick commands of the README run; the others (minutes, a GPU, the hub) are parsed by the command itself.
"""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from src.cli import COMMANDS, TRAINER_COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
QUICK = "## Play with what the demo made"
GIVEN_BY_SLURM = ("-c", "configs/trainer/gpu.yaml", "-c", "configs/trainer/slurm.yaml")  # by the script


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def shell_lines(text: str) -> list[str]:
    """The lines of the fenced blocks that are for a shell (or say nothing), continued lines joined."""
    blocks = re.findall(r"^```(?:sh|bash)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def typed(text: str, program: str) -> list[list[str]]:
    """The words after a program's name, wherever a shell line runs it."""
    found = []
    for line in shell_lines(text):
        for part in re.split(r"&&|\|\||;|(?<!\\)\|(?=\s)", line):
            words = re.sub(r"^(\w+=\S* )+", "", part.strip())
            words = re.sub(r"^torchrun .* --no-python +(?=parley )", "", words)
            words = re.sub(r"^sbatch .*scripts/slurm.sbatch ", f"parley fit {' '.join(GIVEN_BY_SLURM)} ", words)
            if words.startswith(f"{program} "):
                found.append(shlex.split(re.sub(r"\s>\s*\S+$", "", words), comments=True)[1:])
    return found


def typed_on(*pages: Path) -> list[object]:
    return [
        pytest.param(words, id=f"{name(page)}: {' '.join(words)[:90]}")
        for page in pages
        for words in typed(page.read_text(encoding="utf-8"), "parley")
    ]


def test_checkpoints_have_names_that_runs_give_them():
    texts = [*PAGES, *RECIPES, *(ROOT / "src").rglob("*.py")]
    whole = "\n".join(text.read_text(encoding="utf-8") for text in texts)
    named = set(re.findall(r"checkpoints/([^\s{}*]+)\.ckpt", whole))
    assert "best" in named
    assert not [each for each in named if not re.fullmatch(r"best|step=\d{7}|…", each)]


@pytest.mark.parametrize("words", typed_on(*PAGES))
def test_what_a_page_tells_to_type_is_understood(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    if words[0] in TRAINER_COMMANDS:
        with pytest.raises(SystemExit) as left:
            main([*words, "--print_config"])
        assert left.value.code == 0, capsys.readouterr().err
    elif words[0] in COMMANDS:
        parsed = []
        monkeypatch.setattr(importlib.import_module(f"src.commands.{words[0]}"), "run", parsed.append)
        assert main(words) == 0, capsys.readouterr().err
        assert len(parsed) == 1
    else:
        assert words in (["--help"], ["--version"], ["COMMAND", "--help"])


@pytest.mark.parametrize(
    "words", [words for page in PAGES for words in typed(page.read_text("utf-8"), "make")], ids=" ".join
)
def test_what_a_page_tells_to_make_is_in_the_makefile(words):
    made = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


@pytest.fixture(scope="module")
def after_a_demo(tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the repository as `make demo` leaves it, but for the training."""
    clone = tmp_path_factory.mktemp("clone")
    for each in ("configs", "src"):
        (clone / each).symlink_to(ROOT / each)
    demo = clone / "runs" / "demo"
    demo.mkdir(parents=True)
    for each in ("base", "model", "ppo-model"):
        (demo / each).symlink_to(tiny_base("t5"))
    (demo / "after" / "version_0").mkdir(parents=True)
    rows = [
        "id,prompt,reference1,prediction",
        "1,Hello?,Ann says hello.,Ann says hello.",
        "2,Bye?,Bob leaves.,Ann leaves.",
    ]
    (demo / "after" / "version_0" / "predictions.csv").write_text("\n".join(rows), encoding="utf-8")
    return clone


def quick_commands() -> list[list[str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index(QUICK) :]
    return typed(section[: section.index("\n## ", 1)], "parley")


def test_the_readme_has_quick_commands():
    assert {words[0] for words in quick_commands()} == {"generate", "compare", "score", "test"}


@pytest.mark.parametrize("words", quick_commands(), ids=lambda words: words[0])
def test_a_quick_command_runs(words, after_a_demo, monkeypatch, capsys):
    monkeypatch.chdir(after_a_demo)
    assert main(words) == 0
    assert capsys.readouterr().out.strip()


def test_the_datamodule_that_contributing_shows(tmp_path, monkeypatch, tiny_base):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (tmp_path / "mail_data.py").write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], encoding="utf-8")
    rows = ["mail,subject", *(f"See you on day {day}.,Day {day}" for day in range(4))]
    (tmp_path / "mails.csv").write_text("\n".join(rows), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--model", "Seq2SeqModule", "--model.init_args.model_name_or_path", str(tiny_base("t5"))]
    words += ["--data", "mail_data.MailDataModule", "--data.init_args.path", "mails.csv"]
    words += ["--data.init_args.template", "{mail} Subject: ", "--trainer.accelerator", "cpu"]
    assert main([*words, "--trainer.fast_dev_run", "1"]) == 0


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{name(page)} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{name(page)} links to {target}"


SPEAKING = [*PAGES, *map(ROOT.joinpath, ("Makefile", ".ci/run", "pyproject.toml")), *RECIPES]
SPEAKING += [*(ROOT / "scripts").glob("*.*"), *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "src").rglob("*.py")]


@pytest.mark.parametrize("file", SPEAKING, ids=name)
def test_files_that_are_named_are_there(file):
    """`make test-floors` once named a test that had moved."""
    named = re.findall(
        r"(?<![\w./-])(?:\.\./)?((?:benchmarks|configs|docs|scripts|src|tests)/[\w./-]*\w)", file.read_text("utf-8")
    )
    assert not [path for path in named if not (ROOT / path).exists() and not Path(path).stem.isupper()]


@pytest.mark.parametrize("command", [*TRAINER_COMMANDS, *COMMANDS])
def test_every_command_is_documented(command):
    assert any(f"parley {command}" in page.read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_every_recipe_is_in_the_configuration_page(recipe):
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert f"`{recipe.relative_to(ROOT / 'configs').as_posix()}`" in text


def test_configurations_say_how_they_are_run():
    """The commands in the recipes' own comments are understood as well."""
    for recipe in RECIPES:
        for line in re.findall(r"^# +(parley .*)$", recipe.read_text(encoding="utf-8"), re.MULTILINE):
            for named in re.findall(r"configs/\S+\.yaml", line):
                assert (ROOT / named).is_file(), f"{name(recipe)} names {named}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_page_holds_a_path_of_the_writers_machine(page):
    assert not re.search(r"(?<![\w.])/(work|root|home|tmp)/", page.read_text(encoding="utf-8"))


def parameters(*modules: object) -> set[str]:
    """What the classes of these packages, and of those that they inherit from, take."""
    classes = [getattr(module, name) for module in modules for name in module.__all__]
    bases = {base for each in classes if isinstance(each, type) for base in each.__mro__}
    return {name for base in bases for name in getattr(base.__init__, "__annotations__", {})}


def test_the_settings_that_pages_name_are_there():
    import src.datamodules
    import src.modules

    known = {"data": parameters(src.datamodules), "model": parameters(src.modules)}
    named = [
        (page.name, *match)
        for page in PAGES
        for match in re.findall(r"`-{0,2}(data|model)\.init_args\.(\w+)", page.read_text(encoding="utf-8"))
    ]
    assert len(named) > 20
    assert not [each for each in named if each[2] not in known[each[1]]]
