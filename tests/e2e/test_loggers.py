"""TensorBoard by one YAML file, and a W&B sweep whose parameters are options of the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from src.cli import main
from src.files import read_rows

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("beside_csv", [True, False], ids=["beside-csv", "alone"])
def test_tensorboard_has_the_curves(
    beside_csv: bool, tiny_base: Callable[..., Path], sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    configs = ["dialogsum_seq2seq", "trainer/cpu", *(["logger/csv"] if beside_csv else []), "logger/tensorboard"]
    words = [word for name in configs for word in ("-c", str(ROOT / "configs" / f"{name}.yaml"))]
    words += ["--model.init_args.model_name_or_path", str(tiny_base("t5")), "--data.init_args.path", str(sample)]
    words += ["--data.init_args.cache_dir", str(tmp_path / "cache"), "--trainer.log_every_n_steps", "1"]
    words += ["--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1"]
    assert main(["fit", *words, "--model.init_args.generation.max_new_tokens", "4"]) == 0
    [log] = (tmp_path / "runs" / "tensorboard" / "version_0").glob("events.*")
    events = EventAccumulator(str(log.parent)).Reload()
    assert {"train/loss", "val/loss", "val/rouge1"} <= set(events.Tags()["scalars"])
    losses = [event.value for event in events.Scalars("train/loss")]
    assert len(losses) == 3
    run = tmp_path / "runs" / ("version_0" if beside_csv else "tensorboard/version_0")
    assert list((run / "checkpoints").glob("*.ckpt"))
    if beside_csv:
        cells = [row.cells["train/loss"] for row in read_rows(run / "metrics.csv")]
        assert losses == pytest.approx([float(cell) for cell in cells if cell])


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda file: file.stem)
def test_a_sweeps_trials_are_commands_that_are_understood(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The words that W&B's own agent makes of the file, for the ends of every range."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    settings = yaml.safe_load(sweep.read_text(encoding="utf-8"))
    monkeypatch.chdir(ROOT)
    assert settings["metric"]["name"] == "val/rouge1"
    for end in (0, -1):
        chosen = {}
        for name, about in settings["parameters"].items():
            values = about.get("values") or ([about["value"]] if "value" in about else [about["min"], about["max"]])
            chosen[name] = values[end]
        made = create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})
        command = create_sweep_command(settings["command"])
        words = [part for word in command for part in (made["args"] if word == "${args}" else [word])]
        program = words.index("parley")
        with pytest.raises(SystemExit) as left:
            main([*words[program + 1 :], "--print_config"])
        assert left.value.code == 0
        config = yaml.safe_load(capsys.readouterr().out)
        for name, value in chosen.items():
            found = config
            for part in name.split("."):
                found = found.get(part, found.get("init_args", {}).get(part)) if isinstance(found, dict) else None
            assert found == value, name


def test_a_run_of_a_sweep_has_the_agents_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from src.callbacks import WandbRun

    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    assert WandbRun(save_dir=str(tmp_path), offline=True).version == "abc123"
    assert WandbRun(save_dir=str(tmp_path), offline=True, id="mine").version == "mine"
