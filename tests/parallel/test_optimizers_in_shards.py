"""Every optimiser of torch that is taken in shards trains there, and goes on from whole state, as on one process."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer

from src.parallel.gathering import whole
from src.parallel.sharding import shard
from src.parallel.states import BEYOND_ROWS, gather_state, load_optimizer_state
from tests.parallel.two import on_two

OF_TORCH = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer
}
TAKEN = sorted(OF_TORCH.keys() - BEYOND_ROWS - {"SparseAdam"})  # which takes no dense gradient, in shards or not
ROWS = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 0], [1, 3, 5, 6], [2, 2, 4, 4]])


class Net(nn.Module):
    """Seven rows, three and one, which two processes have unequal shares of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(7, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.narrow = nn.Linear(6, 3)
        self.head = nn.Linear(3, 1)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.embeddings(rows)
        for layer in self.layers:
            hidden = layer(hidden).tanh()
        return self.head(self.narrow(hidden).tanh())


def steps(net: nn.Module, optimizer: Optimizer, rows: Tensor) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        (net(rows) - 1).square().mean().backward()
        optimizer.step()


def work(rank: int) -> dict[str, float]:
    mesh, mine = init_device_mesh("cpu", (2,)), ROWS[2 * rank : 2 * rank + 2]
    found = {}
    for name in TAKEN:
        make = OF_TORCH[name]
        alone = Net()
        of_alone = make(alone.parameters(), lr=0.01)
        steps(alone, of_alone, ROWS)
        first = Net()
        shard(first, mesh)
        of_first = make(first.parameters(), lr=0.01)
        steps(first, of_first, mine)
        state = copy.deepcopy(gather_state(of_first.state_dict(), keep=True))

        steps(alone, of_alone, ROWS)
        second = Net()
        shard(second, mesh)
        second.load_state_dict(first.state_dict())
        of_second = make(second.parameters(), lr=0.01)
        load_optimizer_state(of_second, state)
        steps(second, of_second, mine)
        pairs = zip(second.parameters(), alone.parameters(), strict=True)
        found[name] = max(float((whole(ours.detach()) - theirs.detach()).abs().max()) for ours, theirs in pairs)
    return found


@pytest.mark.slow
def test_two_processes_go_on_as_one(tmp_path):
    assert {"AdamW", "SGD", "NAdam"} <= set(TAKEN)
    for found in on_two(work, tmp_path / "store").values():
        assert found == pytest.approx(dict.fromkeys(TAKEN, 0), abs=1e-4)
