"""All processes of a run go on from one checkpoint, or none does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from src.callbacks.companions import refuse_other_checkpoints
from src.errors import ParleyError
from tests.parallel.two import on_two

CHECKPOINTS = [("a.ckpt", "a.ckpt"), (None, None), ("a.ckpt", "b.ckpt"), ("a.ckpt", None)]  # of either process


def refusals(rank: int, checkpoints: list[tuple[str | None, str | None]]) -> list[str | None]:
    """What a process says of each pair of checkpoints; None where it goes on."""
    said: list[str | None] = []
    for pair in checkpoints:
        trainer = SimpleNamespace(world_size=2, ckpt_path=pair[rank])
        try:
            refuse_other_checkpoints(trainer)  # type: ignore[arg-type]
            said.append(None)
        except ParleyError as error:
            said.append(str(error))
    return said


@pytest.mark.slow
def test_the_same_checkpoint_is_taken_and_others_are_refused_on_both(tmp_path: Path) -> None:
    said = on_two(refusals, tmp_path / "store", CHECKPOINTS)
    assert said[0] == said[1]
    same, none, another, none_on_one = said[0]
    assert same is None
    assert none is None
    assert "goes on from a.ckpt, and one on" in another
    assert "from b.ckpt;" in another
    assert "from no checkpoint;" in none_on_one
