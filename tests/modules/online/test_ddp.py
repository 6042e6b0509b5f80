"""Two processes: weights, controller and whitening are those of both together, and of one process alone."""

import csv
import hashlib
import json

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from src.callbacks import BeforeAfterTable, RunLogger
from src.datamodules import DialogSumDataModule
from src.models.rollout import RolloutOptions
from src.modules import GRPOModule, PPOModule, RLOOModule
from src.modules.online.grpo import GRPOConfig
from src.modules.online.rloo import RLOOConfig
from src.rewards import LengthReward
from src.rl.config import PPOConfig
from tests.forks import in_processes


def module_of(method, base, size):
    """A method's Module, with minibatches of so many responses to a prompt."""
    rollout = RolloutOptions(min_new_tokens=2, output_min_length=4, output_max_length=8)
    given = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.3), "rollout": rollout}
    if method == "ppo":
        config = PPOConfig(ppo_epochs=2, minibatch_size=2 * size, use_score_scaling=True, horizon=50)
        return PPOModule(base, LengthReward(5), ppo=config, **given)
    shared = {"num_iterations": 2, "num_generations": 4, "minibatch_size": 8 * size, "beta": 0.1}
    if method == "rloo":
        return RLOOModule(base, LengthReward(5), rloo=RLOOConfig(**shared), **given)
    return GRPOModule(base, LengthReward(5), grpo=GRPOConfig(**shared), **given)


class Watch(Callback):
    """Writes down what each process has after each step."""

    def __init__(self, out):
        self.out = out

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        digest = hashlib.sha256()
        for parameter in module.parameters():
            if parameter.requires_grad:
                digest.update(parameter.detach().numpy().tobytes())
        rollout = module.buffer.rollout
        record = {
            "place": module.buffer.place,
            "weights": digest.hexdigest(),
            "state": module.state(),
            "own": [index for index, filler in zip(batch["index"], batch["is_filler"], strict=True) if not filler],
            "fillers": sum(batch["is_filler"]),
            "index": rollout.index.tolist(),
            "advantages": [
                row[mask.bool()].tolist() for row, mask in zip(rollout.advantages, rollout.response_mask, strict=True)
            ],
            "logged": {
                name: float(value) for name, value in trainer.callback_metrics.items() if not name.startswith("time/")
            },
        }
        with (self.out / f"rank{module.global_rank}.jsonl").open("a") as stream:
            stream.write(json.dumps(record) + "\n")


def train(base, sample, out, examples, devices, method, accumulate):
    """Train on one process of so many, which share a global batch."""
    torch.manual_seed(7)
    # Minibatches hold twice as much where there are half as many.
    module = module_of(method, str(base), 2 // (devices * accumulate))
    data = DialogSumDataModule(
        str(base), path=str(sample), train_split=f"train[:{examples}]", validation_split="validation[:3]",
        batch_size=8 // devices, max_source_length=24, max_target_length=8, cache_dir=str(out),
    )  # fmt: skip
    Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=1,
        accumulate_grad_batches=accumulate, enable_checkpointing=False,
        logger=RunLogger(str(out), name="run"), callbacks=[BeforeAfterTable(), Watch(out)], log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    ).fit(module, data)  # fmt: skip
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    torch.save(trained, out / f"trained{module.global_rank}.pt")


def run(path, base, sample, examples, devices, method="ppo", accumulate=1):
    """Train in processes of their own; their records, by rank."""
    path.mkdir()
    in_processes(devices, train, base, sample, path, examples, devices, method, accumulate)
    files = [path / f"rank{rank}.jsonl" for rank in range(devices)]
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo"])
@pytest.mark.parametrize("architecture", ["t5", "llama"])
def test_two_processes_learn_what_one_learns(tiny_base, sample, tmp_path, architecture, method):
    """Thirteen prompts: one process accumulates two minibatches; the last batch is three and two prompts."""
    base = tiny_base(architecture)
    (one,) = run(tmp_path / "one", base, sample, 13, devices=1, method=method, accumulate=2)
    two, _ = run(tmp_path / "two", base, sample, 13, devices=2, method=method)
    alone, together = (torch.load(tmp_path / name / "trained0.pt") for name in ("one", "two"))
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, atol=2e-5, rtol=1e-3, msg=name)
    assert len({row["weights"] for row in two}) > 4  # they moved
    for first, second in zip(one[1::2], two, strict=True):
        assert second["index"] == first["index"]
        for mine, other in zip(first["advantages"], second["advantages"], strict=True):
            assert other == pytest.approx(mine, abs=1e-3)
        for name in ("objective/kl", "objective/entropy", "env/reward_mean", "tokens/responses_len_mean"):
            assert second["logged"][name] == pytest.approx(first["logged"][name], abs=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo"])
def test_two_processes_log_what_one_logs(tiny_base, sample, tmp_path, method):
    """One process has minibatches twice as large; the last five prompts are three and two, of several lengths."""
    base = tiny_base("t5")
    (one,) = run(tmp_path / "one", base, sample, 13, devices=1, method=method)
    two, _ = run(tmp_path / "two", base, sample, 13, devices=2, method=method)
    assert len(one) == len(two)
    for first, second in zip(one, two, strict=True):
        mine, other = (
            {n: v for n, v in row["logged"].items() if n.startswith(f"{method}/")} for row in (first, second)
        )
        assert len(mine) > 3
        assert other == pytest.approx(mine, rel=1e-3, abs=2e-5, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("examples", [9, 13])  # the last batch: one row and a filler; three rows and two
def test_two_processes_stay_one(tiny_base, sample, tmp_path, examples):
    ranks = run(tmp_path / "two", tiny_base("t5"), sample, examples, devices=2)
    assert [row["place"] for row in ranks[0]] == 2 * [1, 2, 3, 4]  # two iterations of two passes of two minibatches
    for first, second in zip(*ranks, strict=True):
        for key in ("place", "weights", "state", "index", "advantages"):
            assert first[key] == second[key]
        assert first["logged"] == pytest.approx(second["logged"], nan_ok=True)
    assert len({row["weights"] for row in ranks[0]}) == (6 if examples == 9 else 8)  # one row is not for four steps
    seen = []
    for place in (0, 4):
        first, second = ranks[0][place], ranks[1][place]
        assert len(first["own"]) + len(second["own"]) == len(first["index"])
        assert first["index"][::2] == first["own"]  # in the order of the global batch
        assert first["index"][1::2] == second["own"]
        seen += first["index"]
        together = torch.tensor([each for row in first["advantages"] for each in row])
        assert abs(float(together.mean())) < 1e-4
        assert float(together.var()) == pytest.approx(1, abs=1e-3)
        if not first["fillers"] + second["fillers"]:
            own = torch.tensor([each for row in first["advantages"][::2] for each in row])
            assert abs(float(own.mean())) > 1e-4  # not whitened by itself
    assert sorted(seen) == list(range(examples))
    (table,) = tmp_path.glob("two/run/version_0/before_after/step-*.csv")
    with table.open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 3  # the validation split, once
