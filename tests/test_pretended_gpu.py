"""The pretended GPU refuses what a GPU refuses, notes what makes the host wait, and computes what a CPU computes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.pretended.gpu import PretendedGPU

HERE = "tests/test_pretended_gpu.py"


@pytest.fixture
def gpu():
    with PretendedGPU() as pretended:
        yield pretended


MIXED = {
    "add": lambda gpu, cpu: gpu + cpu,
    "add in place": lambda gpu, cpu: gpu.add_(cpu),
    "cat": lambda gpu, cpu: torch.cat([gpu, cpu]),
    "cat of a number": lambda gpu, cpu: torch.stack([gpu[0], cpu[0]]),
    "matmul": lambda gpu, cpu: gpu @ cpu,
    "where": lambda gpu, cpu: torch.where(gpu > 0, gpu, cpu),
    "embedding": lambda gpu, cpu: F.embedding(torch.ones(2, dtype=torch.long), gpu[None]),
    "gather": lambda gpu, cpu: gpu.gather(0, torch.zeros(2, dtype=torch.long)),
    "index by the GPU's": lambda gpu, cpu: cpu[torch.zeros(2, dtype=torch.long, device="cuda")],
    "values of the CPU": lambda gpu, cpu: gpu.index_put_((torch.arange(3),), cpu),
    "generator": lambda gpu, cpu: torch.rand(2, device="cuda", generator=torch.Generator()),
    "generator of the GPU": lambda gpu, cpu: torch.rand(2, generator=torch.Generator("cuda")),
    "numpy": lambda gpu, cpu: gpu.numpy(),
}


@pytest.mark.parametrize("operation", MIXED.values(), ids=MIXED.keys())
def test_refuses_two_devices_in_one_operation(gpu, operation):
    with pytest.raises((RuntimeError, TypeError), match=r"device|generator"):
        operation(torch.ones(3, device="cuda"), torch.ones(3))


def test_takes_a_number_of_the_cpu(gpu):
    ones = torch.ones(3, device="cuda")
    assert (ones * torch.tensor(2.0) + torch.tensor(1)).tolist() == [3, 3, 3]
    assert torch.where(ones > 2, ones, torch.tensor(5.0)).tolist() == [5, 5, 5]


WAITING = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool((x > 0).all()),
    "int": lambda x: int(x[0]),
    "float": lambda x: float(x[0]),
    "if": lambda x: 1 if x.any() else 0,
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu", non_blocking=True),
    "copy_": lambda x: torch.zeros(3).copy_(x),
    "from pageable memory": lambda x: torch.zeros(3).to("cuda", non_blocking=True),
    "from pinned memory": lambda x: torch.zeros(3).pin_memory().to("cuda"),
    "tensor": lambda x: torch.tensor([1, 2], device="cuda"),
    "tensor of one": lambda x: torch.tensor(1, device=x.device),
    "list as index": lambda x: x[[0, 1]],
    "mask as index": lambda x: x[x > 0],
    "write by mask": lambda x: x.__setitem__(x > 0, 1.0),
    "index of the cpu": lambda x: x[torch.tensor([0, 1])],
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long()),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "multinomial": lambda x: x.multinomial(1),
    "print": lambda x: str(x),
    "synchronize": lambda x: torch.cuda.synchronize(),
}
PASSING = {
    "arithmetic": lambda x: ((x + 1) * 2).softmax(0).sum(),
    "fill": lambda x: x.new_full((), 3),
    "zeros": lambda x: torch.zeros(4, device=x.device),
    "arange": lambda x: torch.arange(4, device="cuda"),
    "index": lambda x: x[torch.arange(2, device="cuda")],
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > 0, 1.0),
    "slice": lambda x: x[1:],
    "repeat": lambda x: x.repeat_interleave(2),
    "repeat to a size": lambda x: x.repeat_interleave(x.long(), output_size=3),
    "dropout": lambda x: F.dropout(x, 0.5),
    "to itself": lambda x: x.to("cuda"),
    "another dtype": lambda x: x.to("cuda", torch.bfloat16),
    "from pinned memory": lambda x: torch.zeros(3).pin_memory().to("cuda", non_blocking=True),
    "cpu's own": lambda x: torch.ones(3).sum().item(),
}


@pytest.mark.parametrize("operation", WAITING.values(), ids=WAITING.keys())
def test_notes_where_the_host_waits(gpu, operation):
    x = torch.ones(3, device="cuda")
    gpu.waits.clear()
    operation(x)
    assert gpu.waits
    assert all(wait.inner.startswith(HERE) and not wait.place for wait in gpu.waits)


@pytest.mark.parametrize("operation", PASSING.values(), ids=PASSING.keys())
def test_notes_nothing_else(gpu, operation):
    x = torch.ones(3, device="cuda")
    gpu.waits.clear()
    operation(x)
    assert not gpu.waits


def test_names_our_line_that_waited(gpu):
    from src.rl.masked import masked_mean
    from src.rl.rollout import _columns

    mask = torch.ones(2, 3, device="cuda")
    gpu.waits.clear()
    masked_mean(mask, mask)
    assert not gpu.waits
    _columns(mask)
    assert {wait.place.partition(":")[0] for wait in gpu.waits} == {"src/rl/rollout.py"}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_learns_what_a_cpu_learns(dtype):
    """Forward, backward and optimiser; tied weights stay tied."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids):
            return self.head(F.layer_norm(self.embedding(ids), (4,)))

    def train(model, device):
        ids = torch.arange(7).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(3):
            with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
                logits = model(ids)
            assert logits.dtype == (dtype or torch.float32)
            F.cross_entropy(logits.float(), ids.flip(0)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.head.weight.detach().to("cpu")

    torch.manual_seed(0)
    model = Tied()
    other = copy.deepcopy(model)
    expected = train(model, "cpu")
    with PretendedGPU():
        other.to("cuda")
        assert other.head.weight is other.embedding.weight
        assert other.head.weight.device == torch.device("cuda:0")
        found = train(other, "cuda")
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if dtype is None else 0.02)


def test_has_random_numbers_of_its_own(gpu):
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first = torch.rand(2, device="cuda").cpu()
    assert torch.equal(torch.rand(2), expected)  # which the GPU's draw has not changed
    state = torch.cuda.get_rng_state()
    then = torch.rand(2, device="cuda").cpu()
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(2, device="cuda").cpu(), then)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(2, device="cuda").cpu(), first)


def test_leaves_nothing_behind():
    before = (torch.tensor, torch.Generator, torch.Tensor.pin_memory, torch.cuda.is_available())
    with PretendedGPU():
        assert torch.cuda.is_available()
        torch.ones(1, device="cuda", requires_grad=True).sum().backward()
    assert (torch.tensor, torch.Generator, torch.Tensor.pin_memory, torch.cuda.is_available()) == before
    assert torch.accelerator.current_accelerator() is None
    with pytest.raises((AssertionError, RuntimeError)):
        torch.ones(1, device="cuda")
