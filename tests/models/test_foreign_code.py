"""A directory that brings code of its own: nobody is asked, and nothing of it is run."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from src.cli import main
from src.errors import ParleyError
from src.models.loading import load_config, load_model, load_tokenizer
from src.rewards import ClassifierReward


@pytest.fixture
def stranger(tiny_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model directory whose classes are its own, at a terminal where somebody always says yes."""
    directory = tmp_path / "stranger"
    shutil.copytree(tiny_base("gpt2"), directory)
    config = json.loads((directory / "config.json").read_text())
    classes = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoModelForSequenceClassification": "code.Model"}  # noqa: E501  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "strange", "auto_map": classes}))
    settings = {"tokenizer_class": "Strange", "auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "code.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w').close()\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 50))
    return directory


@pytest.mark.parametrize(
    "read",
    [load_config, load_model, lambda name: ClassifierReward(name)([""], [""])],
    ids=["config", "model", "classifier"],
)
def test_it_is_refused_in_one_line(stranger: Path, tmp_path: Path, read: Callable[[str], object]) -> None:
    with pytest.raises(ParleyError) as refused:
        read(str(stranger))
    assert "\n" not in str(refused.value)
    assert "code" in str(refused.value)
    assert not (tmp_path / "was_run").exists()


def test_a_tokenizer_is_read_from_its_file_without_its_code(stranger: Path, tmp_path: Path) -> None:
    assert load_tokenizer(str(stranger))("Hello there").input_ids
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("words", [["generate", "--prompt", "Hi"], ["chat"]], ids=" ".join)
def test_no_command_asks(stranger: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command, *rest = words
    assert main([command, str(stranger), *rest]) == 2
    said = capsys.readouterr()
    assert "brings code of its own" in said.err
    assert "[y/N]" not in said.out + said.err
    assert not (tmp_path / "was_run").exists()
