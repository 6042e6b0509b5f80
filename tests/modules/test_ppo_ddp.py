"""Two processes: weights, controller and whitening are those of both together."""

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

base, sample, out, examples = sys.argv[1:]

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
        base, LengthReward(5), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
        ppo=PPOConfig(ppo_epochs=2, minibatch_size=2, use_score_scaling=True, horizon=50),
        rollout=RolloutOptions(min_new_tokens=2, output_min_length=4, output_max_length=8),
    )
    data = DialogSumDataModule(
        base, path=sample, train_split=f"train[:{examples}]", validation_split="validation[:3]", batch_size=4,
        max_source_length=24, max_target_length=8, cache_dir=out,
    )
    Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, enable_checkpointing=False,
        logger=RunLogger(out, name="run"), callbacks=[BeforeAfterTable()],
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    ).fit(module, data)
"""


@pytest.mark.slow
@pytest.mark.parametrize("examples", [9, 13])  # the last batch: one row and a filler; three rows and two
def test_two_processes_stay_one(tiny_base, sample, tmp_path, examples):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = [sys.executable, str(script), str(tiny_base("t5")), str(sample), str(tmp_path), str(examples)]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    ranks = [
        [json.loads(line) for line in (tmp_path / f"rank{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)
    ]
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
    (table,) = tmp_path.glob("run/version_0/before_after/step-*.csv")
    with table.open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 3  # the validation split, once
