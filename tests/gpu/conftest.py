"""What the tests of a real GPU share; their bodies also run on a CPU in one case, so that they are known to work."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Leave torch's settings as they were: `trainer.deterministic` changes them for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
