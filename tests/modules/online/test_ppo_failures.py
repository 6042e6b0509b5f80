"""Scores and gradients that are not finite, rewards that fail, settings that cannot work: what PPO makes of them."""

import math

import pytest
import torch

from src.errors import ParleyError
from src.models.rollout import RolloutOptions
from src.modules import PPOModule
from src.rl.config import PPOConfig


def test_a_reward_that_is_not_finite_skips_the_update_and_is_counted(make, trained_state, scripted):
    module, data, trainer = make(reward=scripted(float("nan")), iterations=1)
    module.configure_model()
    before = trained_state(module)
    trainer.fit(module, data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained_state(module).items())
    assert float(trainer.callback_metrics["train/skipped_updates"]) == 1
    assert "env/reward_mean" not in trainer.callback_metrics
    assert math.isfinite(float(trainer.callback_metrics["objective/kl"]))


def test_scores_that_are_not_finite_never_reach_the_running_moments(make, scripted):
    first, second = torch.linspace(3, 4, 8), torch.linspace(3.2, 3.6, 8)
    broken = torch.where(torch.arange(8) < 2, torch.tensor([torch.nan, torch.inf] * 4), second)
    module, data, trainer = make(
        reward=scripted(first, broken), iterations=2, ppo=PPOConfig(use_score_scaling=True, use_score_norm=True)
    )
    trainer.fit(module, data)
    seen = torch.cat([first, second[2:]])
    assert module.score_shaper.moments.count == 14
    assert module.score_shaper.moments.mean == pytest.approx(seen.mean().item())
    assert module.score_shaper.moments.std == pytest.approx(seen.std().item(), rel=1e-5)
    assert module.skipped.total == 1


def test_scores_that_are_all_equal_are_learned_from_as_they_are(make, scripted):
    module, data, trainer = make(
        reward=scripted(*[0.7] * 2), iterations=1, ppo=PPOConfig(use_score_scaling=True, use_score_norm=False)
    )
    trainer.fit(module, data)
    assert float(trainer.callback_metrics["ppo/mean_scores"]) == pytest.approx(0.7)
    assert float(trainer.callback_metrics["ppo/loss/total"]) < 10


def test_after_a_skipped_update_training_goes_on(make, scripted):
    module, data, trainer = make(reward=scripted(float("inf")), iterations=3, max_skipped_updates=2)
    trainer.fit(module, data)
    assert module.skipped.total == 1
    assert module.skipped.in_a_row == 0
    assert trainer.global_step == 6  # those that learned nothing are counted too


def test_too_many_skipped_updates_in_a_row_end_the_run(make, scripted):
    module, data, trainer = make(reward=scripted(*[float("nan")] * 9), iterations=9, max_skipped_updates=3)
    with pytest.raises(ParleyError, match="3 updates in a row were skipped"):
        trainer.fit(module, data)
    assert module.buffer.iteration == 3


def test_a_gradient_that_is_not_finite_skips_its_step(make, trained_state):
    module, data, trainer = make(iterations=1)
    module.configure_model()
    weight = module.value_head.layers[0].weight
    calls = []

    def spoil(gradient):
        calls.append(1)
        return gradient * torch.nan if len(calls) == 1 else gradient

    weight.register_hook(spoil)
    trainer.fit(module, data)
    assert float(trainer.callback_metrics["train/skipped_updates"]) == 1
    assert trainer.global_step == len(calls) == 2
    assert module.skipped.in_a_row == 0
    assert all(torch.isfinite(tensor).all() for tensor in trained_state(module).values())


def test_a_wrong_number_of_scores_is_said_in_one_line(make, scripted):
    module, data, trainer = make(reward=scripted(torch.ones(3)))
    with pytest.raises(ParleyError, match="3 scores for 8 responses"):
        trainer.fit(module, data)


def test_a_missing_label_is_said_before_training(make, scripted):
    class Picky(scripted):
        def __call__(self, prompts, responses):
            raise ParleyError("the classifier has no label 'nothat'")

    module, data, trainer = make(reward=Picky())
    with pytest.raises(ParleyError, match="no label"):
        trainer.fit(module, data)
    assert module.buffer is None


def test_an_empty_response_is_scored_as_an_empty_text(make, scripted):
    reward = scripted()
    module, data, trainer = make(
        reward=reward, iterations=1, rollout=RolloutOptions(min_new_tokens=0, output_min_length=1, output_max_length=1)
    )
    module.configure_model()
    eos = module.tokenizer.eos_token_id
    module.model.get_output_embeddings().register_forward_hook(
        lambda _m, _i, out: out + 50 * torch.nn.functional.one_hot(torch.tensor(eos), out.shape[-1])
    )
    trainer.fit(module, data)
    assert reward.calls[0][1] == [""] * 8
    assert trainer.global_step == 2
    assert float(trainer.callback_metrics["tokens/responses_len_mean"]) == 1


def test_strategies_and_precisions_that_cannot_work_are_refused(make, scripted):
    module, data, trainer = make(trainer={"precision": "bf16-true"})
    trainer.strategy.precision_plugin.precision = "16-mixed"
    with pytest.raises(ParleyError, match="skips updates, not scales them"):
        trainer.fit(module, data)
    with pytest.raises(ParleyError, match="max_skipped_updates"):
        PPOModule("x", scripted(), max_skipped_updates=0)
