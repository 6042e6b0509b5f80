"""Validation of PPO: policy beside reference, their KL, the tables."""

import csv

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from src.callbacks import BeforeAfterTable
from src.callbacks.samples import SampleTable, run_directory
from src.metrics.diversity import Diversity
from src.metrics.toxicity import Toxicity
from src.models.generation import until_stop
from src.models.generation_options import GenerationOptions
from src.rewards import LengthReward
from src.rl.config import PPOConfig


@pytest.mark.slow
def test_validation_compares_with_the_reference_and_writes_the_table(make, tmp_path):
    module, data, trainer = make(
        iterations=2,
        reward=LengthReward(30, 30),
        trainer={
            "limit_val_batches": 2,
            "callbacks": [BeforeAfterTable()],
            "logger": CSVLogger(tmp_path / "logs"),
        },
    )
    trainer.fit(module, data)
    metrics = trainer.callback_metrics
    assert {"val/reward", "val/reward_reference", "val/kl", "val/rouge1", "val/rouge1_reference"} <= metrics.keys()
    assert "val/toxicity_mean" not in metrics
    files = list((run_directory(trainer) / "before_after").glob("*.csv"))
    rows = list(csv.DictReader(files[0].open()))
    assert list(rows[0])[:6] == [
        "query",
        "response_before",
        "response_after",
        "reward_before",
        "reward_after",
        "reward_diff",
    ]
    assert len(rows) == 16
    differences = [float(row["reward_diff"]) for row in rows]
    assert differences == sorted(differences, reverse=True)
    after = sum(float(row["reward_after"]) for row in rows) / len(rows)
    assert float(metrics["val/reward"]) == pytest.approx(after, abs=1e-5)


@pytest.mark.parametrize(
    "decoding",
    [
        {"min_new_tokens": 2, "bad_words": ["e"]},
        {"num_beams": 3, "min_new_tokens": 2},
        {"do_sample": True, "top_k": 4, "top_p": 0.8, "temperature": 2.0},
        {"do_sample": True, "top_p": 0.7, "seed": 3},
        {"stop_strings": ["a", "e"]},
    ],
    ids=str,
)
def test_validation_s_kl_is_never_negative(make, decoding):
    options = GenerationOptions(max_new_tokens=6, **decoding)
    module, data, trainer = make("t5-untied", generation=options, trainer={"limit_val_batches": 1})
    module.configure_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    trainer.validate(module, data, verbose=False)
    assert all(row.kl >= 0 for row in module.comparisons)
    assert sum(row.kl for row in module.comparisons) > 0.01


def test_validation_s_kl_leaves_out_an_eos_that_is_forbidden(make):
    found = []
    for least in (6, 0):
        options = GenerationOptions(max_new_tokens=6, min_new_tokens=least)
        module, data, trainer = make("t5-untied", generation=options, trainer={"limit_val_batches": 1})
        module.configure_model()
        with torch.no_grad():
            module.model.get_output_embeddings().weight[module.tokenizer.eos_token_id] *= -5
        trainer.validate(module, data, verbose=False)
        found.append(sum(row.kl for row in module.comparisons))
    assert found[0] == pytest.approx(0, abs=1e-5)
    assert found[1] > 1e-3


@pytest.mark.slow
def test_tables_stand_at_the_step_of_their_metrics(make, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "disabled")

    class Recorder(WandbLogger):
        def log_metrics(self, metrics, step=None):
            logged.append((step, "val/kl" in metrics))

        def log_table(self, key, columns=None, data=None, dataframe=None, step=None):
            tables.append((key, step))

    logged, tables = [], []
    module, data, trainer = make(
        iterations=2,
        ppo=PPOConfig(ppo_epochs=2),
        trainer={
            "limit_val_batches": 1,
            "max_epochs": 2,
            "callbacks": [BeforeAfterTable(), SampleTable()],
            "logger": Recorder(save_dir=str(tmp_path)),
        },
    )
    trainer.fit(module, data)
    wandb.finish()
    steps = [step for step, is_validation in logged if is_validation]
    assert len(set(steps)) == 2
    for key in ("before_after", "samples"):
        assert [step for name, step in tables if name == key] == steps


def test_validation_of_a_policy_that_stops_at_a_text(make):
    options = GenerationOptions(max_new_tokens=24, min_new_tokens=24)
    free, data, trainer = make("gpt2", iterations=2, trainer={"limit_val_batches": 1}, generation=options)
    trainer.fit(free, data)
    place, said = max(enumerate(row.response_after for row in free.comparisons), key=lambda row: len(row[1]))
    stop = "".join(said.split())[len("".join(said.split())) // 2]  # white space at an answer's ends is stripped
    options = GenerationOptions(max_new_tokens=24, min_new_tokens=24, stop_strings=[stop])
    module, data, trainer = make("gpt2", iterations=2, trainer={"limit_val_batches": 1}, generation=options)
    module.configure_model()
    module.load_state_dict(free.state_dict())
    module.reference = free.reference
    trainer.validate(module, data, verbose=False)
    for before, after in zip(free.comparisons, module.comparisons, strict=True):
        assert stop not in after.response_before + after.response_after
        assert after.response_after == until_stop(before.response_after, [stop]).strip()
        assert 0 < after.kl <= before.kl * 1.001
    assert module.comparisons[place].kl < 0.95 * free.comparisons[place].kl


def test_an_untrained_policy_answers_as_its_reference_does_also_when_sampling(make):
    pytest.importorskip("profanity_check")
    from src.rewards import ProfanityReward

    module, data, trainer = make(
        "gpt2",
        "lora",
        reward=ProfanityReward(),
        trainer={"limit_val_batches": 2},
        generation=GenerationOptions(do_sample=True, max_new_tokens=8),
        metrics={"toxicity": Toxicity(), "diversity": Diversity()},
    )
    trainer.validate(module, data, verbose=False)
    assert all(row.response_before == row.response_after for row in module.comparisons)
    metrics = trainer.callback_metrics
    assert float(metrics["val/kl"]) == pytest.approx(0, abs=1e-5)
    assert float(metrics["val/toxicity_mean"]) == float(metrics["val/toxicity_mean_reference"])
    assert float(metrics["val/toxicity_improvement"]) == 0
    assert 0 < float(metrics["val/distinct1"]) == float(metrics["val/distinct1_reference"])
    assert "val/rouge1" not in metrics
