"""Every figure that TRL 0.11.4's own functions gave for the same inputs, to 1e-5 (scripts/make_golden_ppo.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.rl.advantages import compose_rewards, compute_advantages
from src.rl.kl import AdaptiveKLController, sequence_kl
from src.rl.logprobs import logprobs_from_hidden
from src.rl.losses import ppo_loss

ROOT = Path(__file__).resolve().parents[2]
CASES = json.loads((ROOT / "tests" / "golden" / "ppo.json").read_text(encoding="utf-8"))
PEERS = [ROOT / ".peers" / name for name in ("trl-0.11", "transformers-4.45")]
TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(params=range(len(CASES)))
def case(request):
    """Settings, inputs and TRL's figures."""
    made = CASES[request.param]
    given, expected = (
        {name: torch.tensor(value) if isinstance(value, list) else value for name, value in made[part].items()}
        for part in ("given", "expected")
    )
    return made["settings"], given, expected


def test_each_penalty_and_both_ways_of_rewards_are_among_the_cases():
    assert {case["settings"]["kl_penalty"] for case in CASES} == {"kl", "abs", "mse"}
    assert {case["settings"]["whiten_rewards"] for case in CASES} == {True, False}
    assert any(0 in row for case in CASES for row in case["given"]["mask"])


def computed(settings, given):
    """Rewards and advantages, ours."""
    names = ("scores", "logprobs", "ref_logprobs", "mask")
    rewards = compose_rewards(*(given[name] for name in names), settings["init_kl_coef"], settings["kl_penalty"])
    options = {name: settings[name] for name in ("gamma", "lam", "whiten_rewards")}
    return rewards, compute_advantages(rewards.rewards, given["values"], given["mask"], **options)


def test_rewards_and_kl(case):
    settings, given, expected = case
    rewards, _ = computed(settings, given)
    torch.testing.assert_close(rewards.rewards, expected["rewards"], **TOLERANCE)
    torch.testing.assert_close(rewards.kl, expected["kl"], **TOLERANCE)
    assert sequence_kl(rewards.kl, given["mask"]).mean().item() == pytest.approx(expected["mean_kl"], abs=1e-5)


def test_advantages_and_returns(case):
    settings, given, expected = case
    _, learned = computed(settings, given)
    torch.testing.assert_close(learned.advantages, expected["advantages"], **TOLERANCE)
    torch.testing.assert_close(learned.returns, expected["returns"], **TOLERANCE)


def test_losses_and_their_figures(case):
    settings, given, expected = case
    _, learned = computed(settings, given)
    labels = torch.zeros_like(given["mask"])
    loss = ppo_loss(
        given["new_logprobs"],
        given["new_values"],
        logprobs_from_hidden(given["logits"], labels, torch.nn.Identity()).entropy,
        old_logprobs=given["logprobs"],
        old_values=given["values"],
        advantages=learned.advantages,
        returns=learned.returns,
        mask=given["mask"],
        cliprange=settings["cliprange"],
        cliprange_value=settings["cliprange_value"],
        vf_coef=settings["vf_coef"],
    )
    assert loss.policy.item() == pytest.approx(expected["policy_loss"], abs=1e-5)
    assert settings["vf_coef"] * loss.value.item() == pytest.approx(expected["value_loss"], abs=1e-5)
    assert set(expected["stats"]) <= set(loss.stats)
    for name, figure in expected["stats"].items():
        assert loss.stats[name].item() == pytest.approx(figure, abs=1e-5), name
    assert not loss.skipped


def test_controller(case):
    settings, given, expected = case
    controller = AdaptiveKLController(settings["init_kl_coef"], settings["target"], settings["horizon"])
    controller.update(expected["mean_kl"], len(given["scores"]))
    assert controller.value == pytest.approx(expected["kl_coef"], abs=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(not all(map(Path.is_dir, PEERS)), reason="needs `make peers`")
def test_the_file_is_what_the_script_makes(tmp_path):
    script = tmp_path / "scripts" / "make_golden_ppo.py"
    script.parent.mkdir()
    script.write_text((ROOT / "scripts" / script.name).read_text(encoding="utf-8"), encoding="utf-8")
    made = tmp_path / "tests" / "golden" / "ppo.json"
    made.parent.mkdir(parents=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, PEERS)), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script], check=True, env=environment, timeout=300)
    again = json.loads(made.read_text(encoding="utf-8"))
    assert [one["settings"] for one in again] == [one["settings"] for one in CASES]
    for ours, theirs in zip(CASES, again, strict=True):
        for part in ("given", "expected"):
            for name in ours[part].keys() | theirs[part].keys():
                if name != "stats":
                    torch.testing.assert_close(torch.tensor(ours[part][name]), torch.tensor(theirs[part][name]))
        assert ours["expected"]["stats"] == pytest.approx(theirs["expected"]["stats"], abs=1e-6)
