"""An operation's time goes to the kind that its name or its caller says, and what nobody took is the host's."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.device import Device
from benchmarks.profile import COLUMNS, HOST, OTHERS, kind_of, share_of

CPU, CUDA = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA


@dataclass
class Fake:
    """What the profiler says of an operation, in microseconds."""

    name: str
    cpu_parent: Fake | None = None
    self_cpu_time_total: float = 0.0
    self_device_time_total: float = 0.0
    device_type: torch.autograd.DeviceType = CPU
    is_user_annotation: bool = False


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["aten::addmm"], "matrix products"),
        (["aten::mm", "MmBackward0", "autograd::engine::evaluate_function: MmBackward0"], "matrix products"),
        (["aten::bmm", "aten::scaled_dot_product_attention"], "attention"),
        (["aten::_scaled_dot_product_flash_attention_backward"], "attention"),
        (["aten::_softmax"], "softmax, cross-entropy"),
        (["aten::nll_loss_forward"], "softmax, cross-entropy"),
        (["aten::lerp_", "update", "Optimizer.step#AdamW.step"], "optimiser"),
        (["aten::_fused_adamw_"], "optimiser"),
        (["aten::mm", "Optimizer.step#AdamW.step"], "matrix products"),  # the pass is within the step
        (["aten::copy_", "aten::_to_copy", "aten::to"], "copies"),
        (["aten::embedding_dense_backward"], "embedding, indexing"),
        (["aten::native_layer_norm"], "normalisation"),
        (["aten::gelu"], OTHERS),
        (["Optimizer.step#AdamW.step"], None),
        (["autograd::engine::evaluate_function: MmBackward0"], None),
        (["cudaLaunchKernel"], None),
    ],
)
def test_the_kind_of_an_operation(names, kind):
    event = None
    for name in reversed(names):
        event = Fake(name, event)
    assert kind_of(event) == kind


def test_what_nobody_took_is_the_hosts():
    events = [
        Fake("aten::mm", self_cpu_time_total=10.0, self_device_time_total=3000.0),
        Fake("aten::gelu", self_cpu_time_total=20.0, self_device_time_total=1000.0),
        Fake("ampere_bf16_gemm", self_device_time_total=3000.0, device_type=CUDA),  # the first one's kernel
        Fake("gelu_kernel", self_device_time_total=1000.0, device_type=CUDA),
        Fake("triton_of_somebody", self_device_time_total=400.0, device_type=CUDA),
        Fake("update", self_device_time_total=9000.0, device_type=CUDA, is_user_annotation=True),
        Fake("Optimizer.step#AdamW.step", self_cpu_time_total=7000.0),
    ]
    on_gpu = share_of(events, seconds=0.010, steps=2, device=Device("cuda"))
    assert on_gpu.wall == 5.0
    assert (on_gpu.by_kind["matrix products"], on_gpu.by_kind[OTHERS], on_gpu.by_kind[HOST]) == (1.5, 0.7, 2.8)
    on_cpu = share_of(
        [event for event in events if event.device_type == CPU], seconds=0.010, steps=2, device=Device("cpu")
    )
    assert on_cpu.by_kind["matrix products"] == 0.005
    assert on_cpu.by_kind[HOST] == pytest.approx(5.0 - 0.015)
    assert set(on_cpu.by_kind) == set(COLUMNS)


def test_a_toy_is_profiled(capsys):
    sizes = "--hidden-size 16 --layers 1 --heads 1 --vocab-size 400 --length 16 --batch-size 2 --steps 1"
    assert main(["profile", *sizes.split(), "--new-tokens", "2", "--json"]) == 0
    out = capsys.readouterr().out
    rows = {row["where"]: row for row in json.loads(out[out.index("[\n") :])}
    assert list(rows) == [*COLUMNS, "step"]
    for step in ("training ms", "decoding ms"):
        parts = sum(rows[kind][step] for kind in COLUMNS)
        assert parts == pytest.approx(rows["step"][step], rel=0.05)
        assert rows["matrix products"][step] > 0
    assert rows["optimiser"]["training ms"] > 0
    assert rows["optimiser"]["decoding ms"] == 0
