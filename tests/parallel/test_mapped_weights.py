"""What a process of a sharded run has of a model before it is cut: the system's cache of a file, and no copy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from src.datamodules import DialogSumDataModule
from src.models.fingerprint import base_record
from src.models.float32_files import half_precision_directory, write_in_float32
from src.models.generation_options import GenerationOptions
from src.models.loading import load_model
from src.models.rollout import RolloutOptions
from src.modules import PPOModule, Seq2SeqModule
from src.parallel.gathering import local, whole
from src.parallel.strategy import ShardedStrategy
from src.rewards import LengthReward
from src.rl.config import PPOConfig

STEPS = 2


def mapped_from_files(tensors: Iterable[torch.Tensor]) -> list[bool]:
    """Of each tensor, whether its memory is a file's."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    ranges = [re.match(r"(\w+)-(\w+) .*\.(?:safetensors|ckpt)( \(deleted\))?$", line) for line in lines]
    places = [(int(found[1], 16), int(found[2], 16)) for found in ranges if found]
    return [any(start <= tensor.data_ptr() < end for start, end in places) for tensor in tensors]


@pytest.fixture
def half(tiny_base, tmp_path):
    """From an architecture to its base with bfloat16 weights, some of them in a second file."""

    def make(architecture: str) -> Path:
        base, directory = tiny_base(architecture), tmp_path / f"half-{architecture}"
        if directory.exists():
            return directory
        directory.mkdir()
        for file in base.iterdir():
            if file.name != "model.safetensors":
                (directory / file.name).write_bytes(file.read_bytes())
        weights = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
        names = sorted(weights)
        parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
        for part, of_part in parts.items():
            save_file({name: weights[name] for name in of_part}, directory / part, metadata={"format": "pt"})
        where = {name: part for part, of_part in parts.items() for name in of_part}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
        return directory

    return make


@pytest.mark.parametrize("architecture", ["t5", "llama", "gpt2"])
def test_float32_files_are_the_half_precision_ones(half, tiny_base, tmp_path, architecture):
    directory, folder = half(architecture), tmp_path / "float32"
    folder.mkdir()
    assert half_precision_directory(tiny_base(architecture)) is None
    assert half_precision_directory(directory) == directory
    write_in_float32(directory, folder)
    expected = load_model(directory)
    model = load_model(directory, float32_files=folder)
    assert not any(mapped_from_files(expected.parameters()))
    assert all(mapped_from_files(model.parameters()))
    assert model.name_or_path == model.config.name_or_path == str(directory)
    assert base_record(model) == base_record(expected)
    state = model.state_dict()
    assert state.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(state[name], tensor), name
    assert model.generation_config == expected.generation_config


class Watched(Seq2SeqModule):
    """Notes of what was there just before it was cut."""

    mapped: tuple[bool, ...] = ()

    def sharded_roots(self):
        self.mapped = tuple(mapped_from_files(self.parameters()))
        return super().sharded_roots()


class WatchedPPO(PPOModule):
    """Notes of what was there just before it was cut, the reference's copies too."""

    mapped: tuple[bool, ...] = ()

    def sharded_roots(self):
        assert self.reference is not None
        self.mapped = tuple(mapped_from_files([*self.policy.parameters(), *self.reference.parameters()]))
        return super().sharded_roots()


@pytest.fixture
def run(half, tiny_base, sample, tmp_path, quiet_trainer):
    """Train, from a checkpoint where there is one, and write another."""

    def train(method, kind: str, strategy, steps: int, given: Path | None = None):
        base = str(half("t5") if kind == "half" else tiny_base("t5"))
        torch.manual_seed(0)
        options = {"generation": GenerationOptions(max_new_tokens=2), "speed_ups": False}
        options["optimizer"] = lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)
        if method is WatchedPPO:
            rollout = RolloutOptions(min_new_tokens=2, output_min_length=4, output_max_length=8)
            options |= {"reward": LengthReward(5), "rollout": rollout, "ppo": PPOConfig(ppo_epochs=1, minibatch_size=4)}
        else:
            options |= {"dropout": 0.0}
        module = method(base, **options)
        sizes = {"max_source_length": 48, "max_target_length": 16, "validation_split": "validation[:2]"}
        data = DialogSumDataModule(base, path=str(sample), batch_size=4, cache_dir=str(tmp_path / "cache"), **sizes)
        trainer = quiet_trainer(strategy, steps, limit_val_batches=0)
        trainer.fit(module, data, ckpt_path=given)
        path = tmp_path / f"step={steps:07d}.ckpt"
        trainer.save_checkpoint(path)
        trained = {name: whole(p.detach()).clone() for name, p in module.named_parameters() if p.requires_grad}
        return module, trained, path

    yield train
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind"), [(Watched, "half"), (WatchedPPO, "float32")])
def test_nothing_is_copied_before_it_is_cut(run, tmp_path, monkeypatch, method, kind):
    """Nor where a run goes on from a checkpoint; the weights are those of a run without shards."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    module, _, path = run(method, kind, ShardedStrategy(), STEPS)
    assert len(module.mapped) > 10
    assert all(module.mapped)
    module, trained, _ = run(method, kind, ShardedStrategy(), 2 * STEPS, path)
    assert all(module.mapped)
    moments = [local(value) for state in module.optimizers().state.values() for value in state.values()]
    assert len(moments) > 10
    assert not any(mapped_from_files(moments))
    assert not list((tmp_path / "tmp").iterdir())  # float32 files are gone
    _, expected, _ = run(method, kind, "auto", 2 * STEPS, path)
    assert trained.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(trained[name], tensor, atol=1e-4, rtol=0, msg=name)
