"""What cannot work is said in one line, with the setting's name, and where it can be, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.cli import main
from src.commands.settings import RANGES, Range, check_settings
from src.errors import ParleyError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OPTIMIZER, SCHEDULE = "model.init_args.optimizer", "model.init_args.lr_scheduler"
UNSEEN = {"trainer.check_val_every_n_epoch": 9}  # no validation but the sanity check at the start
PLATEAU, ACCUMULATION = "lightning.pytorch.cli.ReduceLROnPlateau", "GradientAccumulationScheduler"
ONE_CYCLE = {SCHEDULE: "torch.optim.lr_scheduler.OneCycleLR", f"{SCHEDULE}.init_args.max_lr": "0.1"}


@pytest.fixture
def fit(tiny_base, sample, tmp_path, monkeypatch, capfd):
    """Trains two steps with these settings over a recipe; gives the exit status and the last line that was said."""

    def run(settings, recipe="dialogsum_seq2seq"):
        monkeypatch.chdir(tmp_path)
        small = {
            "model.init_args.model_name_or_path": tiny_base("t5"),
            "model.init_args.generation.max_new_tokens": 4,
            "data.init_args.path": sample,
            "data.init_args.batch_size": 2,
            "trainer.accelerator": "cpu",
            "trainer.limit_train_batches": 2,
            "trainer.limit_val_batches": 1,
            "trainer.enable_progress_bar": "false",
        }
        words = [word for name, value in (small | settings).items() for word in (f"--{name}", str(value))]
        status = main(["fit", "-c", str(CONFIGS / f"{recipe}.yaml"), *words])
        return status, next(reversed(capfd.readouterr().err.strip().splitlines()), "")

    return run


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trainer.val_check_interval": 50}, "`val_check_interval` (50) must be less than or equal to"),
        (
            UNSEEN | {"trainer.callbacks": "EarlyStopping", "trainer.callbacks.monitor": "val/nothing"},
            "EarlyStopping watches 'val/nothing', which validation does not report; it reports val/",
        ),
        (
            UNSEEN | {"trainer.callbacks": "Checkpoints", "trainer.callbacks.monitor": "val/nothing"},
            "Checkpoints watches 'val/nothing', which validation does not report; it reports val/",
        ),
        (
            {"trainer.callbacks": "EarlyStopping", "trainer.callbacks.monitor": "loss"},
            "conditioned on metric `loss` which is not available",
        ),
        (
            UNSEEN | {SCHEDULE: PLATEAU, f"{SCHEDULE}.init_args.monitor": "val/nothing"},
            "ReduceLROnPlateau watches 'val/nothing', which validation does not report; it reports val/",
        ),
        (
            {f"{OPTIMIZER}.init_args.betas": "null"},
            "model.init_args.optimizer.init_args.betas is null; it must be a list, 0 or more and below 1 (its default",
        ),
        (
            ONE_CYCLE | {f"{SCHEDULE}.init_args.max_lr": "null"},
            "model.lr_scheduler: max_lr must be given to it; `parley fit --help`",
        ),
        ({"trainer.callbacks": ACCUMULATION}, "scheduling must be given to GradientAccumulationScheduler"),
        (
            {"trainer.callbacks": ACCUMULATION, "trainer.callbacks.scheduling": "{0: 0}"},
            f"trainer.callbacks.{ACCUMULATION}.scheduling is 0; it must be 1 or more.",
        ),
        (
            {"trainer.callbacks": ACCUMULATION, "trainer.callbacks.scheduling": "{-1: 2}"},
            f"trainer.callbacks.{ACCUMULATION}.scheduling's epoch is -1; it must be 0 or more.",
        ),
        ({"trainer.barebones": "true"}, "trainer.barebones leaves out"),
        ({"trainer.enable_checkpointing": "false"}, "trainer.enable_checkpointing is false"),
        ({"trainer.devices": -3}, "`devices`"),
        (
            ONE_CYCLE | {f"{SCHEDULE}.init_args.total_steps": 2, "trainer.max_epochs": 3},
            "OneCycleLR has 2 steps and is stepped 3 times",
        ),
        (ONE_CYCLE, f"{SCHEDULE}: You must define either total_steps"),
        ({OPTIMIZER: "torch.optim.LBFGS"}, f"{OPTIMIZER}: LBFGS doesn't support per-parameter options"),
        ({OPTIMIZER: "torch.optim.SparseAdam"}, f"{OPTIMIZER}: SparseAdam does not support dense gradients"),
        ({OPTIMIZER: "torch.optim.Muon"}, f"{OPTIMIZER}: Muon only supports 2D parameters"),
        ({"seed_everything": 10**20}, f"seed_everything is {10**20}; it must be 0 or more and below 2**32."),
        ({"data.init_args.seed": 10**20}, f"data.init_args.seed is {10**20}; it must be 0 or more and below 2**63."),
        ({"model.init_args.generation.seed": -1}, "model.init_args.generation.seed is -1"),
        ({f"{OPTIMIZER}.init_args.lr": ".nan"}, f"{OPTIMIZER}.init_args.lr is nan; it must be 0 or more."),
        ({"trainer.accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches is 0; it must be 1 or more."),
        ({"trainer.check_val_every_n_epoch": 0}, "trainer.check_val_every_n_epoch is 0"),
        ({"trainer.gradient_clip_val": -1}, "trainer.gradient_clip_val is -1"),
        ({"model.init_args.label_smoothing": 2}, "label_smoothing is 2.0; it must be 0 or more and below 1."),
        ({"model.init_args.dropout": ".nan"}, "model.init_args.dropout is nan"),
        ({"data.init_args.num_workers": -1}, "data.init_args.num_workers is -1"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, str) else "",
)
def test_a_setting_that_cannot_work_is_one_line(fit, settings, said):
    status, line = fit(settings)
    assert status == 2
    assert line.startswith("parley fit: ")
    assert said in line
    assert "configs/trainer/cpu.yaml" not in line


@pytest.mark.parametrize(
    ("setting", "recipe", "said"),
    [
        (
            "model.init_args.rlo.beta",
            "demo/dialogsum_rloo",
            "model: RLOOModule has no setting rlo; the nearest is rloo",
        ),
        ("model.init_args.rloo.betta", "demo/dialogsum_rloo", "RLOOConfig has no setting betta; the nearest is beta"),
        (
            "model.init_args.dropuot",
            "dialogsum_seq2seq",
            "Seq2SeqModule has no setting dropuot; the nearest is dropout",
        ),
        ("data.init_args.batchsize", "dialogsum_seq2seq", "has no setting batchsize; the nearest is batch_size"),
        (f"{OPTIMIZER}.init_args.lrr", "dialogsum_seq2seq", "AdamW has no setting lrr; the nearest is lr"),
        ("model.init_args.colour", "dialogsum_seq2seq", "model: Seq2SeqModule has no setting colour; `parley"),
    ],
)
def test_a_misspelt_setting_is_answered_with_the_nearest(fit, setting, recipe, said):
    status, line = fit({setting: 0.1}, recipe)
    assert status == 2
    assert said in line


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("trainer: {max_epoch: 1}", "the trainer has no setting max_epoch; the nearest is max_epochs; `parley"),
        ("sed_everything: 3", "a recipe has no sed_everything; the nearest is seed_everything; `parley"),
        (
            "modell: {init_args: {dropout: 0.1}}",
            "a recipe has no modell.init_args.dropout; the nearest is model; `parley",
        ),
        ("colour: 3", "a recipe has no colour; `parley"),
    ],
)
def test_a_misspelt_key_of_a_file_is_answered_with_the_nearest(fit, tmp_path, recipe, said):
    (tmp_path / "typo.yaml").write_text(recipe)
    status, line = fit({"config": tmp_path / "typo.yaml"})
    assert status == 2
    assert said in line


@pytest.mark.parametrize("watcher", ["EarlyStopping", "Checkpoints", "ReduceLROnPlateau"])
@pytest.mark.parametrize("monitor", ["train/loss", "train/los"])
def test_a_metric_of_training_is_missed_after_a_step(fit, caplog, watcher, monitor):
    if watcher == "ReduceLROnPlateau":
        settings = {SCHEDULE: PLATEAU, f"{SCHEDULE}.init_args.monitor": monitor}
    else:
        settings = {"trainer.callbacks": watcher, "trainer.callbacks.monitor": monitor}
    status, _ = fit(settings | {"trainer.max_epochs": 1, "trainer.num_sanity_val_steps": 1})
    warned = [
        record for record in caplog.messages if f"{watcher} watches 'train/los', which this step has not" in record
    ]
    assert (status, len(warned)) == ((0, 0) if monitor == "train/loss" else (2, 1))
    assert all("; the nearest is train/loss;" in warning for warning in warned)


def test_a_logger_that_is_not_installed_is_one_line(fit, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    status, line = fit({"trainer.logger": "TensorBoardLogger", "trainer.logger.save_dir": "runs"})
    assert status == 2
    assert "TensorBoardLogger cannot be used: Neither `tensorboard` nor `tensorboardX` is available" in line


@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there_is_told_of_the_cpu(accelerator, fit):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    status, line = fit({"trainer.accelerator": accelerator})
    assert status == 2
    assert line.endswith("(`-c configs/trainer/cpu.yaml` runs on a CPU)")


def test_a_setting_whose_names_have_cuda_in_them_says_nothing_of_cpus(fit):
    """Lightning's line lists `cuda_time` among what a profiler sorts by."""
    profiler = "lightning.pytorch.profilers.PyTorchProfiler"
    status, line = fit({"trainer.profiler": profiler, "trainer.profiler.init_args.sort_by_key": "nothing"})
    assert status == 2
    assert "cuda_time" in line
    assert "cpu.yaml" not in line


def test_a_schedule_that_watches_nothing_says_nothing_of_cpus(fit):
    watching = {SCHEDULE: "lightning.pytorch.cli.ReduceLROnPlateau", f"{SCHEDULE}.init_args.monitor": "val/nothing"}
    status, line = fit(watching)
    assert status == 2
    assert "val/nothing" in line
    assert "cpu.yaml" not in line


def test_a_reward_that_raises_is_named_with_the_response(fit, tmp_path, monkeypatch):
    pytest.importorskip("profanity_check")
    (tmp_path / "brittle.py").write_text(
        "from src.rewards import Reward\n\n\nclass Brittle(Reward):\n"
        "    def __call__(self, prompts, responses):\n        return [1 / 0 for _ in prompts]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    status, line = fit({"model.init_args.reward": "brittle.Brittle"}, "demo/dialogsum_ppo")
    assert status == 2
    assert "Brittle failed on the response " in line
    assert "ZeroDivisionError: division by zero" in line


def test_an_error_of_ours_is_still_a_traceback(fit, monkeypatch):
    def broken(self, batch, batch_idx):
        raise ValueError("a fault of the program's")

    monkeypatch.setattr("src.modules.Seq2SeqModule.training_step", broken)
    with pytest.raises(ValueError, match="a fault of the program's"):
        fit({})


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -1.5])
def test_no_setting_takes_these(name, value):
    if RANGES[name].holds(value):  # any finite number
        assert value == -1.5
        return
    nested: dict = {name.split(".")[-1]: value}
    for key in reversed(name.split(".")[:-1]):
        nested = {key: nested}
    with pytest.raises(ParleyError, match=f"^{name} is "):
        check_settings(nested)


def test_a_range_says_what_it_holds():
    assert str(Range(0, 1)) == "0 or more and below 1"
    assert [Range(0, 1).holds(value) for value in (-1e-9, 0, 0.999, 1)] == [False, True, True, False]
    assert [Range(0, above=True).holds(value) for value in (0, 1e-9, 1e9)] == [False, True, True]
    assert str(Range(0, above=True)) == "above 0"


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("dpo", "--model.init_args.dpo.rpo_alpha"),  # a number in the recipe
        ("ppo", "--model.init_args.reward ClassifierReward --model.init_args.reward.init_args.label"),
    ],
)
def test_null_is_null_on_the_command_line_too(recipe, words, capsys):
    """jsonargparse 4.53 makes the text `None` of one that is two classes deep."""
    recipe = CONFIGS / "demo" / f"dialogsum_{recipe}.yaml"
    with pytest.raises(SystemExit) as exited:
        main(["fit", "-c", str(recipe), *words.split(), "null", "--print_config"])
    assert exited.value.code == 0
    assert f" {words.rpartition('.')[-1]}: null\n" in capsys.readouterr().out
