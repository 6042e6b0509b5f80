"""The host's waits for a pretended GPU, training step by training step."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from tests.every_method import parley
from tests.pretended.gpu import PretendedGPU
from tests.pretended.waits import Wait


def waits_of_batches(file: Path) -> list[list[Wait]]:
    """Train, and sort the waits by Lightning's batches, each with what is done until the next one is fetched.

    Args:
        file: The run's settings.
    """
    starts: list[int] = []
    whole = _TrainingEpochLoop.advance
    with PretendedGPU() as gpu:

        def advance(loop: Any, *given: Any) -> None:
            starts.append(len(gpu.waits))
            whole(loop, *given)

        with patch.object(_TrainingEpochLoop, "advance", advance):
            parley("fit", "-c", file)
    ends = [*starts[1:], len(gpu.waits)]
    return [gpu.waits[start:end] for start, end in zip(starts, ends, strict=True)]
