"""Every figure that TRL 0.11.4's own functions gave for the same inputs, to 1e-5."""

import json
import os
from pathlib import Path

import pytest
import torch

from src.rl.advantages import compose_rewards, compute_advantages
from src.rl.kl import AdaptiveKLController, sequence_kl
from src.rl.logprobs import logprobs_from_hidden
from src.rl.losses import ppo_loss

DATA = Path(os.environ.get("PARLEY_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
GOLDEN = DATA.parent / "golden" / "ppo_reference.json"
pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason=f"the golden figures are not at {GOLDEN}")
TOLERANCE = {"rtol": 0, "atol": 1e-5}


def cases() -> list:
    return json.loads(GOLDEN.read_text()) if GOLDEN.exists() else []


@pytest.fixture(params=range(5))
def case(request):
    loaded = cases()[request.param]
    for part in ("inputs", "expected"):
        loaded[part] = {
            name: torch.tensor(value) if isinstance(value, list) else value for name, value in loaded[part].items()
        }
    return loaded


def test_there_are_five_cases_and_each_penalty_is_among_them():
    assert len(cases()) == 5
    assert {case["config"]["kl_penalty"] for case in cases()} == {"kl", "abs", "mse"}
    assert {case["config"]["whiten_rewards"] for case in cases()} == {True, False}


def tensors(case):
    config, given, expected = case["config"], case["inputs"], case["expected"]
    rewards = compose_rewards(
        given["scores"],
        given["logprobs"],
        given["ref_logprobs"],
        given["mask"],
        config["init_kl_coef"],
        config["kl_penalty"],
    )
    learned = compute_advantages(
        rewards.rewards,
        given["values"],
        given["mask"],
        gamma=config["gamma"],
        lam=config["lam"],
        whiten_rewards=config["whiten_rewards"],
        whiten_padding=True,
    )
    return config, given, expected, rewards, learned


def test_rewards_and_kl(case):
    _, given, expected, rewards, _ = tensors(case)
    mask = given["mask"].bool()
    torch.testing.assert_close(rewards.rewards[mask], expected["rewards"][mask], **TOLERANCE)
    torch.testing.assert_close(rewards.kl[mask], expected["kl_per_token"][mask], **TOLERANCE)
    assert not rewards.rewards[~mask].any()  # TRL leaves leftovers in padding, we leave 0
    assert not rewards.kl[~mask].any()
    mean = sequence_kl(rewards.kl, mask).mean().item()
    assert mean == pytest.approx(expected["mean_sequence_kl"], abs=1e-5)


def test_advantages_and_returns(case):
    _, given, expected, _, learned = tensors(case)
    mask = given["mask"].bool()
    torch.testing.assert_close(learned.advantages[mask], expected["advantages"][mask], **TOLERANCE)
    torch.testing.assert_close(learned.returns[mask], expected["returns"][mask], **TOLERANCE)
    assert not learned.advantages[~mask].any()
    assert not learned.returns[~mask].any()


def test_losses_and_their_figures(case):
    config, given, expected, _, learned = tensors(case)
    labels = torch.zeros(given["mask"].shape, dtype=torch.long)
    loss = ppo_loss(
        given["new_logprobs"],
        given["new_values"],
        logprobs_from_hidden(given["logits"], labels, torch.nn.Identity()).entropy,
        old_logprobs=given["logprobs"],
        old_values=given["values"],
        advantages=learned.advantages,
        returns=learned.returns,
        mask=given["mask"],
        cliprange=config["cliprange"],
        cliprange_value=config["cliprange_value"],
        vf_coef=config["vf_coef"],
    )
    assert loss.policy.item() == pytest.approx(expected["policy_loss_weighted"], abs=1e-5)
    assert config["vf_coef"] * loss.value.item() == pytest.approx(expected["value_loss_weighted"], abs=1e-5)
    assert set(loss.stats) - {"policy/advantages", "policy/ratio"} == set(expected["stats"])
    for name, figure in expected["stats"].items():
        assert loss.stats[name].item() == pytest.approx(figure, abs=1e-5), name
    assert not loss.skipped


def test_controller(case):
    config, expected = case["config"], case["expected"]
    controller = AdaptiveKLController(config["init_kl_coef"], config["target_kl"], config["kl_horizon"])
    controller.update(expected["mean_sequence_kl"], len(case["inputs"]["scores"]))
    assert controller.value == pytest.approx(expected["kl_coef_after_update"], abs=1e-12)
