"""What differs between a CPU and a GPU is in one place; the GPU here is a fake."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator

import pytest
import torch

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.device import NAMES, Device, PassedOverError, device_named
from benchmarks.options import parse, results_file
from benchmarks.results import FOLDER

MIB = 2**20


class FakeGPU:
    """What torch would say of a GPU that works for as long as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.clock = 100.0
        self.working = 0.0
        self.peak = 700 * MIB
        self.waited = 0
        given = {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "get_device_name": lambda: name,
            "synchronize": self.synchronize,
            "memory_allocated": lambda: 300 * MIB,
            "max_memory_allocated": lambda: self.peak,
            "reset_peak_memory_stats": self.reset,
        }
        for function, answer in given.items():
            monkeypatch.setattr(torch.cuda, function, answer)
        monkeypatch.setattr("benchmarks.device.time.perf_counter", lambda: self.clock)

    def synchronize(self) -> None:
        self.clock += self.working
        self.working = 0.0
        self.waited += 1

    def reset(self) -> None:
        self.peak = 300 * MIB


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGPU]:
    return FakeGPU(monkeypatch, "NVIDIA H200")


def test_the_clock_of_a_gpu_is_read_when_it_has_done_its_work(gpu):
    device = device_named("cuda")
    start = device.now()
    gpu.working = 2.5  # given to it, and not waited for by whoever gave it
    assert device.now() - start == 2.5


def test_the_clock_of_a_cpu_waits_for_no_gpu(gpu):
    device = device_named("cpu")
    gpu.working = 2.5
    assert device.now() == device.now() == 100.0
    device.processor_now()
    assert gpu.waited == 0


def test_memory_is_the_allocators_on_a_gpu_and_the_processs_on_a_cpu(gpu):
    on_gpu, on_cpu = device_named("cuda"), device_named("cpu")
    assert (on_gpu.held_mib(), on_gpu.peak_mib(), on_gpu.peak_of_stretch_mib()) == (300, 700, 700)
    on_gpu.forget_peak()
    assert on_gpu.peak_mib() == 300
    gpu.peak = 900 * MIB
    on_cpu.forget_peak()
    assert on_gpu.peak_mib() == 900
    assert on_cpu.peak_mib() >= on_cpu.held_mib() * 0.99 > 50
    assert on_cpu.peak_of_stretch_mib() is None


def test_what_others_are_told(gpu):
    on_gpu, on_cpu = device_named("cuda"), device_named("cpu")
    assert on_gpu.trainer_options() == {"accelerator": "gpu", "devices": 1, "precision": "bf16-mixed"}
    assert on_cpu.trainer_options("32-true") == {"accelerator": "cpu", "devices": 1, "precision": "32-true"}
    assert on_gpu.transformers_options == {"use_cpu": False}
    assert on_cpu.transformers_options == {"use_cpu": True}
    assert (on_gpu.recipe.name, on_cpu.recipe.name) == ("gpu.yaml", "cpu.yaml")
    assert on_gpu.recipe.is_file()
    assert on_cpu.recipe.is_file()
    assert (on_gpu.torch.type, on_cpu.torch.type) == NAMES[::-1]
    assert on_cpu.environment == {"CUDA_VISIBLE_DEVICES": ""}
    assert on_gpu.environment == {}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_is_of_gpus_that_are_known(monkeypatch, name, peak):
    FakeGPU(monkeypatch, name)
    assert device_named("cuda").peak_flops == peak
    assert device_named("cpu").peak_flops is None


def test_results_go_by_the_devices_name(gpu, tmp_path):
    assert results_file(None, device_named("cuda")) == FOLDER / "nvidia-h200.json"
    assert results_file(None, device_named("cpu")) is None
    assert results_file(tmp_path, device_named("cpu")) == tmp_path


def test_defaults_are_the_devices_and_what_is_given_stands(gpu):
    def parsed(*words: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser(prog="python -m benchmarks some")
        parser.add_argument("--layers", type=int, default=4)
        parser.add_argument("--rounds", type=int, default=3)
        return parse(parser, words, on_gpu={"layers": 12})

    assert (parsed().layers, parsed().rounds, parsed().device) == (4, 3, Device("cpu"))
    assert (parsed("--device", "cuda").layers, parsed("--device=cuda").rounds) == (12, 3)
    assert parsed("--layers", "2", "--device", "cuda").layers == 2
    assert parsed("--device", "cuda", "--results", "a", "--json", "--rounds", "1").command == (
        "python -m benchmarks some --device cuda --rounds 1"
    )


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_takes_a_device(name, capsys):
    with pytest.raises(SystemExit) as left:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert left.value.code == 0
    assert "--device cpu|cuda" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*BENCHMARKS, ""])
def test_an_unknown_device_is_refused_in_one_line(name, capsys):
    assert main([*([name] if name else []), "--device", "gpu"]) == 2
    said = capsys.readouterr()
    assert said.err == "python -m benchmarks: there is no device 'gpu'; choose one of: cpu, cuda.\n"
    assert said.out == ""


def test_a_gpu_that_is_not_there_is_said_to_be_absent(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["generation", "--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("python -m benchmarks: torch sees no NVIDIA GPU here; ")


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("strategies", "needs 2 GPUs, and there is 1"),
        ("loading", "needs 2 GPUs, and there is 1"),
        ("streaming", "measures the memory of the host; it needs --device cpu"),
    ],
)
def test_what_one_gpu_cannot_measure_is_passed_over(gpu, capsys, name, needs):
    assert main([name, "--device", "cuda"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{name} is passed over: it {needs}.\n"
    assert said.err == ""


def test_a_cpu_is_shared_by_processes(gpu):
    device_named("cpu").require(8)
    device_named("cpu").require_host()
    device_named("cuda").require(1)
    with pytest.raises(PassedOverError, match="needs 8 GPUs"):
        device_named("cuda").require(8)
