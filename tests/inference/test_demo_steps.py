"""The demo's commands: each is one that a person could type, before any of them runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.cli import main
from src.inference.demo import METHODS, Demo


def typed(demo: Demo) -> list[tuple[str, ...]]:
    """All commands, where every training left a checkpoint."""
    found = []
    for step in demo.steps():
        assert step.look.endswith(".")
        found.append(step.words)
        if step.words[0] == "fit":
            folder = Path(step.words[step.words.index("--trainer.default_root_dir") + 1])
            checkpoints = folder / "version_0" / "checkpoints"
            checkpoints.mkdir(parents=True)
            (checkpoints / "step=0000001.ckpt").touch()
    return found


@pytest.fixture
def all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)


@pytest.mark.parametrize("methods", [(), ("ppo",), METHODS], ids=len)
def test_the_road(methods: tuple[str, ...], tmp_path: Path, all_installed: None):
    commands = typed(Demo(tmp_path, methods))
    names = [words[0] for words in commands]
    assert names[:7] == ["init", "test", "fit", "test", "export", "fit", "export"]
    assert names.count("fit") == 2 + len(methods)
    assert names[-1] == "report"
    into = {words[words.index("--trainer.default_root_dir") + 1] for words in commands if words[0] in ("fit", "test")}
    assert {str(Path(run).parent) for run in commands[-1][1:-2]} == into  # the page is about every run
    assert ("prefer" in names) == ("dpo" in methods)
    assert (names[-2] == "compare") == bool(methods)
    assert len(set(commands)) == len(commands)


def test_without_the_rewards_packages_nothing_is_aligned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert Demo(tmp_path, METHODS).methods == ()


def test_an_earlier_demo_is_replaced(tmp_path: Path, all_installed: None):
    first = typed(Demo(tmp_path, METHODS))
    (tmp_path / "pairs.jsonl").touch()
    assert typed(Demo(tmp_path, METHODS)) == first
    assert not (tmp_path / "pairs.jsonl").exists()


def test_what_contradicts_itself_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["demo", "--all", "--no-align"]) == 2
    assert "--all and --no-align contradict each other" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("part", ["fit", "test"])
def test_every_command_of_the_trainer_s_is_understood(
    part: str, tmp_path: Path, all_installed: None, capsys: pytest.CaptureFixture[str], tiny_base
):
    """Each is parsed by `parley`, with all its settings, on a base that is there."""
    seen = 0
    for words in typed(Demo(tmp_path, METHODS)):
        if words[0] != part:
            continue
        with pytest.raises(SystemExit, match="0"):
            main([*words, "--print_config"])
        seen += 1
    assert seen == {"fit": 6, "test": 6}[part]
    capsys.readouterr()
