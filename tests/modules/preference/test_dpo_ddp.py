"""Two processes learn and measure what one does, fillers and all; the cached reference is dealt over both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from src.callbacks import BeforeAfterTable, RunLogger
from src.datamodules import PreferenceDataModule
from src.models.generation_options import GenerationOptions
from src.modules import DPOModule
from src.rl.preferences import DPOConfig
from tests.forks import in_processes


def train(base, pairs, out, devices, rate, config):
    """Train on one process of so many; what it has at the end."""
    torch.manual_seed(7)
    module = DPOModule(
        str(base), DPOConfig(**config), optimizer=lambda p: torch.optim.SGD(p, lr=rate),
        generation=GenerationOptions(max_new_tokens=4),
    )  # fmt: skip
    data = PreferenceDataModule(
        str(base), path=str(pairs), train_split="train[:11]", validation_split="train[11:]", batch_size=8 // devices,
        max_source_length=24, max_target_length=8, cache_dir=str(out / "cache"),
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=2,
        enable_checkpointing=False, logger=RunLogger(str(out), name="run"), callbacks=[BeforeAfterTable()],
        log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)
    found = {
        "weights": {name: p.detach() for name, p in module.named_parameters()},
        "figures": {name: float(value) for name, value in trainer.callback_metrics.items() if "second" not in name},
        "table": {} if "train" not in module._tables else dict(enumerate(module._tables["train"].tolist())),
        "answers": [(each.query, each.response_before, each.response_after) for each in module.comparisons],
    }
    torch.save(found, out / f"rank{module.global_rank}.pt")


def run(path: Path, base, devices, rate, config):
    """Train in processes of their own; what each has at the end."""
    path.mkdir()
    pairs = path / "pairs.jsonl"
    rows = [
        {"prompt": f"Why {n}{' so' * (n % 5)}?", "chosen": f"{n} it is.", "rejected": "No" * n} for n in range(1, 15)
    ]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    in_processes(devices, train, base, pairs, path, devices, rate, config)
    return [torch.load(path / f"rank{rank}.pt", weights_only=True) for rank in range(devices)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rate", "config"),
    [  # IPO's gradients are large: at 0.3 it diverges
        ("t5", 0.3, {}),
        ("gpt2", 0.003, {"reference": "cached", "loss_type": "ipo"}),
        ("gpt2", 0.3, {"loss_type": "simpo"}),
    ],
)
def test_two_processes_are_one(tiny_base, tmp_path, kind, rate, config):
    base = tiny_base(kind)
    [one] = run(tmp_path / "one", base, 1, rate, config)
    first, second = run(tmp_path / "two", base, 2, rate, config)
    for name, tensor in one["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(
            first["weights"][name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert first["answers"] == second["answers"]
    assert first["answers"] == one["answers"]
    assert len(one["answers"]) == 3
    assert one["figures"].keys() == first["figures"].keys()
    for name, figure in one["figures"].items():
        assert first["figures"][name] == pytest.approx(figure, rel=1e-3, abs=1e-4), name
    assert bool(one["table"]) == ("reference" in config)
    for row, figures in one["table"].items():
        assert first["table"][row] == pytest.approx(figures, rel=1e-4)
