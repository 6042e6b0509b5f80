"""How often a training step makes the host wait for the GPU, counted on a pretended one."""

from __future__ import annotations

import pytest

import src.commands.trainer  # noqa: F401  (imports what reads torch's devices, before one is pretended)
from src.modules.breakdown import PATIENCE
from tests.every_method import STEPS, recipe
from tests.step_waits import waits_of_batches

MASKS = "transformers/masking_utils.py"  # transformers looks whether a batch has padding, in every forward pass


def steps_of(method, tiny_base, tmp_path, steps, **settings):
    """The waits of each training step away from logging, validation and checkpoints, transformers' masks left out."""
    quiet = {"log_every_n_steps": 100, "limit_val_batches": 0, "gradient_clip_val": 1.0, "max_steps": steps}
    file = recipe(method, tiny_base, tmp_path, accelerator="gpu", precision="bf16-mixed", **quiet, **settings)
    waits = waits_of_batches(file)
    assert len(waits) == steps
    assert any(waits[-1])  # the last ends with a checkpoint
    return [[wait for wait in step if not wait.inner.startswith(MASKS)] for step in waits[:-1]]


@pytest.mark.parametrize("method", ["lora", *(pytest.param(m, marks=pytest.mark.slow) for m in ("causal", "reward"))])
def test_supervised_steps_wait_for_nothing(tiny_base, tmp_path, method):
    """Neither for the loss nor for the next batch; but for the count of losses that are not finite, now and then."""
    first, *others = steps_of(method, tiny_base, tmp_path, PATIENCE + 3)
    assert len(first) <= 20  # optimiser, metrics and hooks are set up
    for number, step in enumerate(others, start=2):
        allowed = {"src/modules/breakdown.py"} if number == PATIENCE else set()
        copies = {"src/modules/preference/reward.py"}  # which pairs are fillers, from pageable memory
        found = {
            wait.place.partition(":")[0]
            for wait in step
            if wait.kind != "copy of pageable memory" or wait.place.partition(":")[0] not in copies
        }
        assert found == allowed, step


@pytest.mark.slow
def test_a_step_of_dpo_waits_for_the_number_of_tokens(tiny_base, tmp_path):
    """Twice: under the policy and under its reference, where the output head runs over the answers' tokens only."""
    _, *others = steps_of("dpo", tiny_base, tmp_path, PATIENCE)
    for step in others:
        assert [wait.kind for wait in step if wait.kind != "copy of pageable memory"] == ["nonzero"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_an_online_step_waits_for_two_numbers(tiny_base, tmp_path, method):
    """How many tokens go through the output head, and whether the gradient is finite, which decides on the update.

    The iteration's last step also waits for the end of the update, to time it.
    """
    steps = steps_of(method, tiny_base, tmp_path, 2 * STEPS[method])
    for number, step in enumerate(steps):
        if number % STEPS[method]:  # the first of an iteration samples its rollout
            last = ["synchronize"] * ((number + 1) % STEPS[method] == 0)
            kinds = [wait.kind for wait in step if wait.kind != "copy of pageable memory"]
            assert kinds == ["nonzero", "item", *last]
