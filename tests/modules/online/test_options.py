"""Options that every method or both group methods have, seen in what a minibatch's loss becomes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback
from transformers import AutoModelForSequenceClassification

from src.errors import ParleyError
from src.models.rollout import RolloutOptions
from src.models.value_head import ValueHead
from src.modules import GRPOModule, PPOModule, RLOOModule, WarmupSchedule
from src.modules.online.grpo import GRPOConfig
from src.modules.online.rloo import RLOOConfig
from src.rl.config import PPOConfig

METHODS = {"ppo": (PPOModule, PPOConfig), "rloo": (RLOOModule, RLOOConfig), "grpo": (GRPOModule, GRPOConfig)}


def losses(make, name, **options):
    """A Module that took one step without moving; its first minibatch and what the policy said of it, by its `loss`."""
    method, config = METHODS[name]
    module, data, trainer = make(
        iterations=1,
        method=method,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
        **{name: config(num_generations=2, minibatch_size=16, **options)},
        rollout=RolloutOptions(min_new_tokens=1, output_min_length=2, output_max_length=40, temperature=3.0),
    )
    seen, plain = [], module.loss

    def loss(minibatch, new):
        seen.append((minibatch, new))
        return plain(minibatch, new)

    module.loss = loss
    trainer.fit(module, data)
    return module, *seen[0], plain


@pytest.mark.parametrize("name", METHODS)
def test_the_entropy_bonus_is_the_coefficient_times_the_mean_entropy_of_tokens(make, name):
    module, minibatch, new, loss = losses(make, name, entropy_coef=0.3)
    mask = minibatch.rollout.response_mask.bool()
    with_bonus = loss(minibatch, new).total
    module.config = replace(module.config, entropy_coef=0.0)
    without = loss(minibatch, new).total
    torch.testing.assert_close(without - with_bonus, 0.3 * new.entropy[mask].mean())
    assert new.entropy.requires_grad


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_nothing_is_learned_from_a_response_that_was_cut_off(make, name):
    module, minibatch, _, _ = losses(make, name, mask_truncated_completions=True)
    rollout = module.buffer.rollout
    cut = ~rollout.has_eos
    assert cut.any()
    assert (~cut).any()
    assert not rollout.response_mask[cut].any()
    assert not rollout.advantages[cut].any()
    assert rollout.response_mask[~cut].any(-1).all()
    # The others are compared with it all the same: its reward is one of the group's.
    kept, _ = module.advantages(replace(rollout, response_mask=(rollout.logprobs != 0).long()))
    module.config = replace(module.config, mask_truncated_completions=False)
    everything, _ = module.advantages(replace(rollout, response_mask=(rollout.logprobs != 0).long()))
    torch.testing.assert_close(kept.advantages[~cut], everything.advantages[~cut])
    assert everything.advantages[cut].any()
    assert minibatch.tokens_per_minibatch == rollout.response_mask.sum()


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("rloo", {"num_generations": 1}, "rloo.num_generations is 1; it must be 2 or more"),
        ("grpo", {"beta": -1.0}, "grpo.beta is -1.0"),
        ("grpo", {"epsilon": 1.0}, "grpo.epsilon is 1.0"),
        ("grpo", {"epsilon_high": 0.0}, "grpo.epsilon_high is 0.0"),
        ("grpo", {"scale_rewards": "row"}, "grpo.scale_rewards is 'row'; it must be one of group, batch, none"),
        ("grpo", {"loss_type": "gspo"}, "grpo.loss_type is 'gspo'; it must be one of grpo, bnpo, dr_grpo, dapo"),
        ("rloo", {"num_iterations": 0}, "rloo.num_iterations is 0"),
        ("ppo", {"num_generations": 0}, "ppo.num_generations is 0"),
    ],
)
def test_what_cannot_work_is_one_line_with_its_name(name, options, line):
    from src.errors import ParleyError

    with pytest.raises(ParleyError, match=line):
        METHODS[name][1](**options)


@pytest.mark.parametrize("decay", ["linear", "constant"])
def test_the_value_head_learns_at_a_rate_of_its_own(make, trained_state, decay):
    """Adam's first step moves every weight by its learning rate, whatever the gradient."""
    moved = []

    class Moves(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.before = trained_state(pl_module)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            after = trained_state(pl_module)
            moved.append({name: (after[name] - self.before[name]).abs().max().item() for name in after})

    module, data, trainer = make(
        iterations=2,
        method=PPOModule,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3, betas=(0.0, 0.0), eps=1e-20),
        lr_scheduler=lambda optimizer: WarmupSchedule(optimizer, decay=decay, num_training_steps=4),
        ppo=PPOConfig(value_head_lr=1e-2, minibatch_size=4),
        trainer={"callbacks": [Moves()]},
    )
    trainer.fit(module, data)
    for step, moves in enumerate(moved):
        share = 1 - step / 4 if decay == "linear" else 1
        for name, size in moves.items():
            rate = 1e-2 if name.startswith("value_head") else 1e-3
            assert size == pytest.approx(rate * share, rel=1e-3), name


def test_a_value_head_starts_from_zero_or_at_random():
    hidden = torch.randn(2000, 64)
    assert not ValueHead(64)(hidden).any()
    values = torch.cat([ValueHead(64, "random")(hidden) for _ in range(50)])
    assert values.std().item() == pytest.approx((64 / 65) ** 0.5, rel=0.1)


@pytest.mark.parametrize(("family", "labels"), [("gpt2", 1), ("llama", 1), ("t5", 1), ("bart", 1), ("gpt2", 2)])
def test_a_value_head_starts_from_a_reward_model_s(tiny_base, tmp_path, family, labels):
    """What transformers' own classifier says of an answer is the value at its last token."""
    base = tiny_base(family)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, dtype=torch.float32).eval()
    model.config.pad_token_id = 0
    model.save_pretrained(tmp_path / "reward")
    hidden_size = model.config.hidden_size
    if labels == 2:
        with pytest.raises(ParleyError, match=f"takes {hidden_size} features to 2 outputs"):
            ValueHead(hidden_size, str(tmp_path / "reward"))
        return
    head = ValueHead(hidden_size, str(tmp_path / "reward"))
    seen = []
    layer = model.score if hasattr(model, "score") else model.classification_head
    layer.register_forward_hook(lambda _module, inputs, outputs: seen.append((inputs[0], outputs)))
    model(input_ids=torch.tensor([[5, 6, 7, model.config.eos_token_id]]))
    hidden, scores = seen[0]
    torch.testing.assert_close(head(hidden), scores.squeeze(-1))
    assert scores.any()
    assert all(parameter.requires_grad for parameter in head.parameters())
    with pytest.raises(ParleyError, match=f"where the policy needs {hidden_size + 1} to 1"):
        ValueHead(hidden_size + 1, str(tmp_path / "reward"))


def test_ppo_learns_from_a_reward_model_s_head(make, tiny_base, tmp_path, trained_state):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_base("t5"), num_labels=1, dtype=torch.float32)
    model.save_pretrained(tmp_path / "reward")
    start = {name: weight.clone() for name, weight in model.classification_head.named_parameters()}
    config = PPOConfig(value_head_init=str(tmp_path / "reward"), minibatch_size=4)
    module, data, trainer = make(iterations=1, method=PPOModule, ppo=config)
    trainer.fit(module, data)
    after = trained_state(module)
    for place, name in (("0", "dense.weight"), ("2", "out_proj.weight")):
        assert 0 < (after[f"value_head.layers.{place}.weight"] - start[name]).abs().max() < 0.1
