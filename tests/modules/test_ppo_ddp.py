"""Two processes: weights, controller and whitening are those of both together, and of one process alone."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import hashlib, json, sys
import torch
from lightning.pytorch import Trainer
from src.callbacks import BeforeAfterTable, RunLogger
from src.datamodules import DialogSumDataModule
from src.models.rollout import RolloutOptions
from src.modules import PPOModule
from src.modules.ppo_collector import RolloutCollector
from src.rewards import LengthReward
from src.rl.config import PPOConfig

base, sample, out, examples, devices, share = sys.argv[1:]

class Keeper(RolloutCollector):
    def measure(self, *args):
        self.module.last = super().measure(*args)
        return self.module.last

class Watched(PPOModule):
    def add_value_head_and_reference(self):
        super().add_value_head_and_reference()
        self.collector = Keeper(self)

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        digest = hashlib.sha256()
        for parameter in self.parameters():
            if parameter.requires_grad:
                digest.update(parameter.detach().numpy().tobytes())
        record = {
            "weights": digest.hexdigest(),
            "kl_coef": self.kl_controller.value,
            "moments": self.score_shaper.state_dict(),
            "rows": len(batch["prompt"]),
            "fillers": sum(batch["is_filler"]),
            "advantages": self.last.advantages[self.last.response_mask.bool()].tolist(),
            "logged": {name: float(value) for name, value in self.trainer.callback_metrics.items()
                       if not name.startswith("time/") and name != "ppo/policy/ratio_max"},
        }
        with open(f"{out}/rank{self.global_rank}.jsonl", "a") as stream:
            stream.write(json.dumps(record) + "\\n")


if __name__ == "__main__":
    torch.manual_seed(7)
    module = Watched(
        base, LengthReward(5), optimizer=lambda p: torch.optim.SGD(p, lr=0.3),
        ppo=PPOConfig(ppo_epochs=2, minibatch_size=int(share), use_score_scaling=True, horizon=50, whiten_rewards=True),
        rollout=RolloutOptions(min_new_tokens=2, output_min_length=4, output_max_length=8),
    )
    data = DialogSumDataModule(
        base, path=sample, train_split=f"train[:{examples}]", validation_split="validation[:3]",
        batch_size=8 // int(devices),
        max_source_length=24, max_target_length=8, cache_dir=out,
    )
    Trainer(
        accelerator="cpu", devices=int(devices), strategy="ddp" if int(devices) > 1 else "auto", max_epochs=1,
        enable_checkpointing=False,
        logger=RunLogger(out, name="run"), callbacks=[BeforeAfterTable()],
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    ).fit(module, data)
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    torch.save(trained, f"{out}/trained{module.global_rank}.pt")
"""


def run(path, base, sample, examples, devices, share):
    """Train in processes of their own; their records, by rank."""
    path.mkdir()
    script = path / "script.py"
    script.write_text(SCRIPT)
    words = [sys.executable, str(script), str(base), str(sample), str(path), str(examples), str(devices), str(share)]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    result = subprocess.run(words, cwd=path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    files = [path / f"rank{rank}.jsonl" for rank in range(devices)]
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["t5", "llama"])
def test_two_processes_learn_what_one_learns(tiny_base, sample, tmp_path, architecture):
    """Thirteen prompts: the last batch is three and two, with fillers or without."""
    base = tiny_base(architecture)
    (one,) = run(tmp_path / "one", base, sample, 13, devices=1, share=8)
    two, _ = run(tmp_path / "two", base, sample, 13, devices=2, share=4)
    trained = [torch.load(tmp_path / name / "trained0.pt") for name in ("one", "two")]
    for name, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][name], tensor, atol=2e-5, rtol=1e-3, msg=name)
    assert any(record["kl_coef"] != 0.2 for record in one)
    for alone, together in zip(one, two, strict=True):
        assert together["kl_coef"] == pytest.approx(alone["kl_coef"])
        assert together["moments"]["moments"] == pytest.approx(alone["moments"]["moments"])
        for name in ("objective/kl", "objective/entropy", "env/reward_mean", "tokens/responses_len_mean"):
            assert together["logged"][name] == pytest.approx(alone["logged"][name], abs=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("examples", [9, 13])  # the last batch: one row and a filler; three rows and two
def test_two_processes_stay_one(tiny_base, sample, tmp_path, examples):
    ranks = run(tmp_path / "two", tiny_base("t5"), sample, examples, devices=2, share=2)
    assert len(ranks[0]) == len(ranks[1]) == 2
    assert sum(row["rows"] - row["fillers"] for rank in ranks for row in rank) == examples
    for first, second in zip(*ranks, strict=True):
        for key in ("weights", "kl_coef", "moments"):
            assert first[key] == second[key]
        assert first["logged"] == pytest.approx(second["logged"], nan_ok=True)
        together = torch.tensor(first["advantages"] + second["advantages"])
        assert abs(float(together.mean())) < 1e-4
        assert float(together.var()) == pytest.approx(1, abs=1e-3)
    full = next(row for row, other in zip(*ranks, strict=True) if not row["fillers"] + other["fillers"])
    assert abs(float(torch.tensor(full["advantages"]).mean())) > 1e-4  # not whitened by itself
    assert ranks[0][0]["weights"] != ranks[0][1]["weights"]
    (table,) = tmp_path.glob("two/run/version_0/before_after/step-*.csv")
    with table.open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 3  # the validation split, once
