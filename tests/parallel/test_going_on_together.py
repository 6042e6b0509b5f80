"""All processes of a run go on from one checkpoint, or none does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from src.callbacks.companions import refuse_other_checkpoints
from src.errors import ParleyError
from tests.parallel.two import on_two


def refusal(rank: int, checkpoints: list[str | None]) -> str | None:
    trainer = SimpleNamespace(world_size=2, ckpt_path=checkpoints[rank])
    try:
        refuse_other_checkpoints(trainer)  # type: ignore[arg-type]
    except ParleyError as error:
        return str(error)
    return None


@pytest.mark.parametrize("checkpoints", [["a.ckpt", "a.ckpt"], [None, None]], ids=["one", "none"])
def test_the_same_checkpoint_is_taken(checkpoints, tmp_path: Path) -> None:
    assert on_two(refusal, tmp_path / "store", checkpoints) == {0: None, 1: None}


@pytest.mark.parametrize("checkpoints", [["a.ckpt", "b.ckpt"], ["a.ckpt", None]], ids=["another", "none on one"])
def test_every_process_refuses_different_ones(checkpoints, tmp_path: Path) -> None:
    said = on_two(refusal, tmp_path / "store", checkpoints)
    assert said[0] == said[1]
    assert said[0] is not None
    assert "goes on from a.ckpt, and one on" in said[0]
    assert f"from {checkpoints[1] or 'no checkpoint'};" in said[0]
