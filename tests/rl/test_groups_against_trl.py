"""RLOO's and GRPO's figures beside those that the installed TRL's trainers compute on the same tensors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from src.rl.group_losses import aggregate, grpo_token_loss, rloo_loss
from src.rl.groups import group_advantages, leave_one_out_advantages


@pytest.fixture(autouse=True)
def _rows_in_order(monkeypatch):
    """TRL shuffles rows between scoring and learning; here rewards are compared row by row."""
    for trainer in ("grpo_trainer", "rloo_trainer"):
        monkeypatch.setattr(f"trl.trainer.{trainer}.shuffle_sequence_dict", lambda rows: rows)


PROMPTS, GENERATIONS, LENGTH = 3, 4, 6
SHARED = {
    "per_device_train_batch_size": PROMPTS * GENERATIONS,
    "num_generations": GENERATIONS,
    "max_completion_length": LENGTH,
    "max_steps": 1,
    "learning_rate": 0.0,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_steps": 1,
    "activation_checkpointing": False,
}


def trained(base, tmp_path, trainer_class, config_class, **settings):
    """What TRL handed to its loss, with the log-probabilities of a policy that has moved on, and the loss."""
    seen = SimpleNamespace(all_logprobs=[])
    rewards = torch.randn(PROMPTS * GENERATIONS, generator=torch.Generator().manual_seed(3)).tolist()

    class Watched(trainer_class):
        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            seen.logprobs = result[0].detach()
            seen.all_logprobs.append(seen.logprobs)
            return result

        def _compute_loss(self, model, inputs):
            inputs = dict(inputs)
            noise = torch.Generator().manual_seed(5)
            super()._compute_loss(model, inputs)  # for the log-probabilities
            moved = seen.logprobs + 0.3 * torch.randn(seen.logprobs.shape, generator=noise)
            seen.old = moved
            inputs["old_per_token_logps"] = moved
            inputs["old_logps"] = (moved * inputs["completion_mask"]).sum(1)
            seen.inputs = inputs
            seen.loss = super()._compute_loss(model, inputs)
            return seen.loss

    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.padding_side = "left"
    trainer = Watched(
        model=model,
        reward_funcs=lambda completions, **_: rewards,
        args=config_class(output_dir=str(tmp_path), **SHARED, **settings),
        train_dataset=Dataset.from_dict({"prompt": ["Good morning", "What is it", "Bye"]}),
        processing_class=tokenizer,
    )
    with torch.no_grad():  # or policy and reference would be the same
        for parameter in trainer.model.parameters():
            parameter.mul_(1.02)
    trainer.train()
    seen.rewards, seen.mask = torch.tensor(rewards), seen.inputs["completion_mask"]
    return seen


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_grpo_is_trls(tiny_base, tmp_path, scale_rewards, loss_type):
    settings = {"beta": 0.1, "epsilon": 0.1, "epsilon_high": 0.28, "use_bias_correction_kl": loss_type != "bnpo"}
    trl = trained(
        tiny_base("gpt2"), tmp_path, GRPOTrainer, GRPOConfig,
        scale_rewards=scale_rewards, loss_type=loss_type, **settings,
    )  # fmt: skip
    advantages = group_advantages(trl.rewards, GENERATIONS, scale_rewards)
    torch.testing.assert_close(advantages, trl.inputs["advantages"], atol=1e-5, rtol=1e-5)
    assert advantages.std() > 0.1
    ref = trl.inputs["ref_per_token_logps"]
    assert not torch.allclose(ref, trl.logprobs, atol=1e-3)
    tokens = grpo_token_loss(trl.logprobs, trl.old, ref, advantages, trl.mask, **settings)
    assert tokens.low.any()
    assert tokens.high.any()
    loss = aggregate(
        tokens.loss, trl.mask, loss_type, max_new_tokens=LENGTH, tokens_per_minibatch=float(trl.mask.sum())
    )
    torch.testing.assert_close(loss, trl.loss.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_rloo_is_trls(tiny_base, tmp_path, normalize):
    settings, beta = {"epsilon": 0.1, "epsilon_high": 0.28}, 0.2
    trl = trained(
        tiny_base("gpt2"), tmp_path, RLOOTrainer, RLOOConfig, beta=beta, normalize_advantages=normalize, **settings
    )
    sampled, ref = trl.all_logprobs[:2]
    kl = ((sampled - ref) * trl.mask).sum(-1)
    assert kl.abs().max() > 1e-3
    advantages = leave_one_out_advantages(trl.rewards - beta * kl, GENERATIONS, normalize)
    torch.testing.assert_close(advantages, trl.inputs["advantages"], atol=1e-5, rtol=1e-5)
    responses = rloo_loss(trl.logprobs, trl.old, advantages, trl.mask, **settings)
    assert responses.low.any() or responses.high.any()
    torch.testing.assert_close(responses.loss.mean(), trl.loss.detach(), atol=1e-5, rtol=1e-5)


def test_a_response_without_a_reward_is_in_no_baseline():
    nan = float("nan")
    rewards = torch.tensor([1.0, nan, 3.0, nan, nan, 2.0])
    torch.testing.assert_close(leave_one_out_advantages(rewards, 3), torch.tensor([-2.0, 0, 2, 0, 0, 0]))
    torch.testing.assert_close(group_advantages(rewards, 3, "none"), torch.tensor([-1.0, 0, 1, 0, 0, 0]))
