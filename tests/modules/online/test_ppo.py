"""One iteration and what surrounds it: KL at the start, skipped updates, checkpoints, evaluation."""

import dataclasses
import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from transformers import AutoTokenizer

from src.errors import ParleyError
from src.inference.export import export, restore
from src.models.loading import load_model
from src.models.rollout import RolloutOptions
from src.rewards import LengthReward
from src.rl.config import PPOConfig

SHORT = RolloutOptions(min_new_tokens=2, output_min_length=6, output_max_length=12)


@pytest.mark.parametrize("trained", ["whole", "lora", "continued"])
@pytest.mark.parametrize("kind", ["t5", "t5-untied", "bart", "gpt2", "llama"])
def test_kl_is_zero_in_the_first_iteration(make, kind, trained):
    module, data, trainer = make(kind, trained, iterations=1, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    trainer.fit(module, data)
    stats = trainer.callback_metrics
    assert abs(float(stats["objective/kl"])) / float(stats["tokens/responses_len_mean"]) < 1e-6
    assert abs(float(stats["ppo/policy/approxkl"])) < 1e-6  # dropout is off in the update too
    assert float(stats["ppo/policy/ratio_max"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "restrictions", [{"top_k": 3}, {"top_p": 0.5}, {"bad_words": ["e", "<pad>"], "temperature": 0.7}], ids=str
)
def test_policy_old_policy_and_reference_share_what_could_be_drawn(make, restrictions):
    rollout = RolloutOptions(min_new_tokens=5, output_min_length=6, output_max_length=12, **restrictions)
    module, data, trainer = make(rollout=rollout, iterations=1, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    trainer.fit(module, data)
    stats = trainer.callback_metrics
    assert abs(float(stats["objective/kl"])) < 1e-5
    assert float(stats["ppo/policy/ratio_max"]) == pytest.approx(1, abs=1e-4)
    most = {"top_k": math.log(3), "top_p": math.log(400 / 2)}.get(next(iter(restrictions)), math.log(399))
    assert 0 < float(stats["ppo/policy/entropy"]) < most


def test_a_banned_word_is_not_sampled(make, scripted):
    reward = scripted()
    module, data, trainer = make(reward=reward, iterations=1, rollout=dataclasses.replace(SHORT, bad_words=["e"]))
    trainer.fit(module, data)
    texts = [text for _, responses in reward.calls for text in responses]
    assert len("".join(texts)) > 20
    assert not any("e" in text for text in texts)


def test_an_iteration_trains_policy_and_value_head_and_logs_trls_names(make, trained_state):
    module, data, trainer = make("t5", "lora")
    module.configure_model()
    before = trained_state(module)
    trainer.fit(module, data)
    moved = [name for name, tensor in trained_state(module).items() if not torch.equal(tensor, before[name])]
    assert "value_head.layers.0.weight" in moved
    assert any("lora_B" in name for name in moved)
    expected = [
        "objective/kl",
        "objective/kl_coef",
        "objective/entropy",
        "ppo/returns/mean",
        "ppo/policy/advantages_mean",
        "ppo/policy/clipfrac",
        "ppo/val/error",
        "ppo/loss/total",
        "env/reward_mean",
        "env/reward_std",
        "tokens/responses_len_mean",
        "time/rollout",
        "time/reward",
        "time/forward",
        "time/update",
        "train/skipped_updates",
    ]
    assert set(expected) <= trainer.callback_metrics.keys()
    assert trainer.global_step == 4  # two iterations of 8 responses in minibatches of 4


def test_epochs_and_accumulation_decide_the_number_of_steps(make):
    config = PPOConfig(ppo_epochs=3, minibatch_size=2)
    module, data, trainer = make(ppo=config, iterations=1, trainer={"accumulate_grad_batches": 2})
    trainer.fit(module, data)
    assert trainer.global_step == 3 * 2


def test_minibatches_that_accumulation_cannot_be_filled_with_are_refused(make):
    module, data, trainer = make(ppo=PPOConfig(minibatch_size=4), trainer={"accumulate_grad_batches": 3})
    with pytest.raises(ParleyError, match=r"2 minibatches .* accumulate_grad_batches 3 does not divide"):
        trainer.fit(module, data)


@pytest.mark.parametrize("lengths", [(8, 8), (3, 12)], ids=str)
def test_accumulated_minibatches_learn_as_one_large_one(make, trained_state, lengths):
    states = []
    for size, accumulated in ((8, 1), (2, 4)):
        shortest, longest = lengths
        module, data, trainer = make(
            ppo=PPOConfig(minibatch_size=size),
            rollout=RolloutOptions(min_new_tokens=shortest, output_min_length=shortest, output_max_length=longest),
            iterations=1,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            trainer={"accumulate_grad_batches": accumulated},
        )
        trainer.fit(module, data)
        states.append(trained_state(module))
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], atol=1e-5, rtol=1e-4)


class Movement(Callback):
    """Keeps whether each training step changed the weights, and what it logged."""

    def __init__(self):
        self.moved, self.logged, self.before = [], [], None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = torch.cat([p.detach().flatten() for p in pl_module.parameters() if p.requires_grad])
        self.moved.append(self.before is None or not torch.equal(now, self.before))
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.before = now


@pytest.mark.slow
def test_the_update_stops_at_its_target_kl(make):
    """The minibatch that goes too far is the last: what follows leaves the weights, weight decay included, alone."""
    config, movement = PPOConfig(ppo_epochs=10, target_kl=1e-2), Movement()
    module, data, trainer = make(
        ppo=config, iterations=2, reward=LengthReward(3), trainer={"callbacks": [movement], "gradient_clip_val": 1.0}
    )
    trainer.fit(module, data)
    assert len(movement.moved) == 40
    for first in (0, 20):
        moved = movement.moved[first : first + 20]
        kl = [logged["ppo/policy/policykl"] for logged in movement.logged[first : first + 20]]
        far = [figure > 1.5 * config.target_kl for figure in kl].index(True)
        assert 0 < far < 18
        assert moved == [True] * (far + 1) + [False] * (19 - far)
    assert module.skipped.total == 0


def test_a_step_without_responses_leaves_the_weights_alone(make):
    """Nine prompts: the last batch is one, for four steps."""
    movement = Movement()
    module, data, trainer = make(
        ppo=PPOConfig(minibatch_size=2),
        trainer={"callbacks": [movement], "limit_train_batches": 1.0},
        data={"train_split": "train[:9]"},
    )
    trainer.fit(module, data)
    assert sorted([movement.moved[:4], movement.moved[4:]]) == [[True, False, False, False], [True] * 4]


def test_bf16_autocast_learns_from_weights_as_they_are(make):
    """Autocast keeps casts of weights for the length of Lightning's step: stale ones would end in an error or in no
    gradient at all."""
    config = PPOConfig(ppo_epochs=2)
    module, data, trainer = make("gpt2", ppo=config, iterations=2, trainer={"precision": "bf16-mixed"})
    trainer.fit(module, data)
    stats = trainer.callback_metrics
    assert trainer.global_step == 8
    assert math.isfinite(float(stats["objective/kl"]))
    assert float(stats["objective/kl"]) != 0


def test_the_controller_takes_in_every_iteration(make):
    module, data, trainer = make(ppo=PPOConfig(target=1e6, horizon=100), iterations=2)
    trainer.fit(module, data)
    assert module.kl_controller.value == pytest.approx(0.2 * (1 - 0.2 * 8 / 100) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["whole", "continued"])
def test_a_run_stopped_in_the_middle_goes_on_as_if_nothing_had_happened(make, trained_state, tmp_path, trained):
    options = {
        "ppo": PPOConfig(horizon=50, use_score_scaling=True, ppo_epochs=2),
        "lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
    }
    whole, data, trainer = make("t5", trained, iterations=4, **options)
    torch.manual_seed(3)
    trainer.fit(whole, data)
    keep = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=8, save_weights_only=False)
    settings = {"max_steps": 12, "enable_checkpointing": True, "callbacks": [keep]}
    first, data, trainer = make("t5", trained, iterations=4, trainer=settings, **options)
    torch.manual_seed(3)
    trainer.fit(first, data)
    second, data, trainer = make("t5", trained, iterations=4, **options)
    torch.manual_seed(99)
    trainer.fit(second, data, ckpt_path=str(tmp_path / "half.ckpt"))
    assert second.buffer.iteration == 4
    assert second.kl_controller.value == whole.kl_controller.value
    assert second.score_shaper.state_dict() == whole.score_shaper.state_dict()
    expected = trained_state(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trained_state(second).items())


@pytest.mark.slow
def test_a_checkpoint_of_another_start_or_of_fine_tuning_is_refused(make, tmp_path):
    module, data, trainer = make("t5", "continued", iterations=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "ppo.ckpt")
    checkpoint = torch.load(tmp_path / "ppo.ckpt", weights_only=True)
    assert not any(".base_layer." in name or "reference" in name for name in checkpoint["state_dict"])
    assert "value_head.layers.0.weight" in checkpoint["state_dict"]
    module.on_load_checkpoint(checkpoint)
    with pytest.raises(ParleyError, match="started from other weights"):
        module.on_load_checkpoint(checkpoint | {"online": checkpoint["online"] | {"reference": "0"}})
    with pytest.raises(ParleyError, match="of GRPOModule, not of PPOModule"):
        module.on_load_checkpoint(checkpoint | {"online": checkpoint["online"] | {"method": "GRPOModule"}})
    with pytest.raises(ParleyError, match="of another kind of training"):
        module.on_load_checkpoint({name: value for name, value in checkpoint.items() if name != "online"})


@pytest.mark.parametrize("trained", ["whole", "lora", "continued"])
def test_a_checkpoint_exports_without_the_value_head(make, tmp_path, trained):
    module, data, trainer = make("t5-untied", trained, iterations=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "ppo.ckpt")
    export(tmp_path / "ppo.ckpt", tmp_path / "out", merge=False, base_model=None, overwrite=False)
    exported, restored = load_model(tmp_path / "out"), restore(tmp_path / "ppo.ckpt").model
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("#Person1#: Hi.", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = module.model(input_ids=ids, decoder_input_ids=ids).logits
        for model in (exported, restored):
            logits = model.eval()(input_ids=ids, decoder_input_ids=ids).logits
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)  # training had a CPU's GELU
    assert (tmp_path / "out" / "adapter_config.json").exists() == (trained != "whole")


class Louder(Callback):
    """Logits of a trained model's size, for a model that its Trainer has made as fast as it makes it."""

    def on_train_start(self, trainer, pl_module):
        pl_module.policy.get_output_embeddings().weight.data.mul_(20)


@pytest.mark.parametrize("trained", ["whole", "lora"])
@pytest.mark.parametrize("kind", ["t5-untied", "bart", "gpt2", "llama"])
def test_in_bf16_the_first_ratio_is_one_although_minibatches_have_another_shape(make, kind, trained):
    rollout = RolloutOptions(min_new_tokens=2, output_min_length=4, output_max_length=24)
    module, data, trainer = make(
        kind,
        trained,
        iterations=1,
        rollout=rollout,
        ppo=PPOConfig(minibatch_size=3),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
        trainer={"precision": "bf16-mixed", "callbacks": [Louder()]},
    )
    trainer.fit(module, data)
    stats = trainer.callback_metrics
    assert abs(float(stats["ppo/policy/ratio_max"]) - 1) < 1e-3
    assert abs(float(stats["ppo/policy/ratio_mean"]) - 1) < 1e-4
