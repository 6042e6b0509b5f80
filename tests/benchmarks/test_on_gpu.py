"""The benchmarks run on a GPU, at the size of a toy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import causal, checkpoints, resume, seq2seq
from benchmarks.__main__ import main
from benchmarks.device import device_named
from benchmarks.results import read

pytestmark = pytest.mark.gpu
TOY = "--hidden-size 32 --layers 1 --heads 2 --feed-forward-size 64 --vocab-size 400 --padded-vocabulary 512"
ROWS = {
    "seq2seq": "--examples 8 --epochs 1 --batch-size 2 --rounds 1",
    "causal": "--examples 8 --rounds 1 --pack-length 512 --packed-rows 2 --key-value-heads 1",
    "generation": "--prompts 4 --new-tokens 3 --rounds 1 --batch-size 2",
    "ppo": "--iterations 1 --rounds 1 --batch-size 4 --minibatch-size 2",
    "grpo": "--iterations 1 --rounds 1 --prompts 2 --minibatch-size 4 --tokens 4",
    "memory": "--batch-size 4 --batches 1 --tokens 8",
    "dpo": "--steps 2 --rounds 1 --batch-size 2",
    "packing": "--examples 64 --rounds 1",
    "scaling": "--lengths 16 32 --length 16 --batch-sizes --batch-size 2 --widths 32 64 --steps 1",
    "profile": "--length 16 --batch-size 2 --steps 1 --new-tokens 2",
    "checkpoints": "--checkpoints 1",
    "resume": "--rounds 1",
}


@pytest.mark.parametrize("name", ROWS)
def test_a_benchmark_runs_on_a_gpu(name, capsys, monkeypatch, tmp_path, sample: Path):
    for module in (seq2seq, causal, checkpoints, resume):
        monkeypatch.setattr(module, "find_data", lambda: sample / "train.jsonl")
    file = tmp_path / "gpu.json"
    words = [name, "--device", "cuda", *TOY.split(), *ROWS[name].split(), "--json", "--results", str(file)]
    assert main(words) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    device, (outcome,) = read(file)
    assert device == torch.cuda.get_device_name()
    assert outcome.rows == json.loads(out[out.index("[\n") :])


def test_the_clock_waits_for_the_gpu():
    device = device_named("cuda")
    large = torch.ones(8192, 8192, device=device.torch)
    device.synchronize()
    start = device.now()
    for _ in range(20):
        large = large @ large * 1e-4
    event = torch.cuda.Event()
    event.record()
    assert device.now() > start
    assert event.query()


def test_the_peak_is_that_of_a_stretch():
    device = device_named("cuda")
    device.forget_peak()
    before = device.held_mib()
    some = torch.ones(64 * 2**20 // 4, device=device.torch)
    del some
    assert device.peak_mib() - before >= 64
    device.forget_peak()
    assert device.peak_mib() - before < 64
