"""A directory that brings code of its own: nobody is asked, and nothing of it is run unless the user says so."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from src.cli import main
from src.errors import ParleyError
from src.models.config import load_config
from src.models.loading import load_model, load_tokenizer
from src.rewards import ClassifierReward

CODE = """
from pathlib import Path
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast
Path({mark!r}).touch()
class Config(GPT2Config):
    model_type = "strange"
class Model(GPT2LMHeadModel):
    config_class = Config
class Classifier(GPT2ForSequenceClassification):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def stranger(tiny_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model directory whose classes are its own, at a terminal where somebody always says yes."""
    directory = tmp_path / "stranger"
    shutil.copytree(tiny_base("gpt2"), directory)
    config = json.loads((directory / "config.json").read_text())
    classes = {
        "AutoConfig": "code.Config",
        "AutoModelForCausalLM": "code.Model",
        "AutoModelForSequenceClassification": "code.Classifier",
    }
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "strange", "auto_map": classes}))
    settings = {"tokenizer_class": "Strange", "auto_map": {"AutoTokenizer": [None, "code.Tokenizer"]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "code.py").write_text(CODE.format(mark=str(tmp_path / "was_run")))
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


def test_it_is_run_where_the_user_says_so(stranger: Path, tmp_path: Path) -> None:
    name = str(stranger)
    assert load_config(name, trust_remote_code=True).model_type == "strange"
    assert (tmp_path / "was_run").exists()
    assert type(load_model(name, trust_remote_code=True)).__module__.startswith("transformers_modules.")
    assert type(load_tokenizer(name, trust_remote_code=True)).__module__.startswith("transformers_modules.")
    weights = load_file(stranger / "model.safetensors")
    head = torch.zeros(2, load_config(name, trust_remote_code=True).hidden_size)
    save_file({**weights, "score.weight": head}, stranger / "model.safetensors", metadata={"format": "pt"})
    scores = ClassifierReward(name, label="LABEL_0", trust_remote_code=True)(["Hi"], ["there"])
    assert scores.shape == (1,)


def test_commands_run_it_where_they_are_told_to(
    stranger: Path, tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run on it, and each command that reads what the run wrote."""
    monkeypatch.chdir(tmp_path)
    marked = tmp_path / "was_run"
    words = [
        *("fit", "--model", "CausalLMModule", "--model.init_args.model_name_or_path", str(stranger)),
        *("--data", "DialogSumDataModule", "--data.init_args.path", str(sample), "--data.init_args.batch_size", "1"),
        *("--data.init_args.train_split", "train[:1]", "--data.init_args.max_source_length", "24"),
        *("--data.init_args.cache_dir", "cache", "--trainer.limit_val_batches", "0", "--trainer.max_epochs", "1"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    ]
    assert main(words) == 2
    assert "trust_remote_code: true" in capsys.readouterr().err
    assert not marked.exists()
    assert main([*words, "--model.init_args.trust_remote_code", "true"]) == 0
    [checkpoint] = Path("runs").rglob("step=*.ckpt")
    for command in (
        ["export", "--checkpoint", str(checkpoint), "--output", "exported"],
        ["generate", str(checkpoint), "--prompt", "Hi", "--max-new-tokens", "2"],
        ["generate", str(stranger), "--prompt", "Hi", "--max-new-tokens", "2"],
    ):
        marked.unlink(missing_ok=True)
        forget_imported_code()
        assert main(command) == 2
        assert "--trust-remote-code" in capsys.readouterr().err
        assert not marked.exists()
        assert main([*command, "--trust-remote-code"]) == 0
        assert marked.exists()


def forget_imported_code() -> None:
    for name in [name for name in sys.modules if name.startswith("transformers_modules.")]:
        del sys.modules[name]


def test_an_adapters_settings_do_not_have_it_run(
    stranger: Path, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    """PEFT loads a tokenizer as the settings say, `trust_remote_code` included, when the adapter is trained."""
    base = load_model(tiny_base("gpt2"))
    settings = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=2,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="Hi",
        tokenizer_name_or_path=str(tiny_base("gpt2")),
    )
    directory = tmp_path / "adapter"
    get_peft_model(base, settings).save_pretrained(directory)
    file = directory / "adapter_config.json"
    changes = {
        "tokenizer_name_or_path": str(stranger),
        "tokenizer_kwargs": {"trust_remote_code": True},
        "base_model_name_or_path": str(tiny_base("gpt2")),
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    for is_trainable in (True, False):
        with pytest.raises(ParleyError, match="code of its own"):
            load_model(directory, is_trainable=is_trainable)
    assert not (tmp_path / "was_run").exists()
