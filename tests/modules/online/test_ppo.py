"""One iteration and what surrounds it: KL at the start, skipped updates, checkpoints, evaluation."""

import csv
import dataclasses
import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from transformers import AutoTokenizer

from src.callbacks import BeforeAfterTable
from src.callbacks.samples import SampleTable, run_directory
from src.errors import ParleyError
from src.inference.export import export, restore
from src.metrics.diversity import Diversity
from src.metrics.toxicity import Toxicity
from src.models.generation import GenerationOptions, until_stop
from src.models.loading import load_model
from src.models.rollout import RolloutOptions
from src.modules import PPOModule
from src.rewards import LengthReward, Reward
from src.rl.config import PPOConfig

SHORT = RolloutOptions(min_new_tokens=2, output_min_length=6, output_max_length=12)


class Scores(Reward):
    """Plays back scores, then 1 for every response."""

    def __init__(self, *scripted):
        self.scripted = list(scripted)
        self.calls = []

    def __call__(self, prompts, responses):
        if not responses:
            return torch.zeros(0)
        self.calls.append((prompts, responses))
        score = self.scripted.pop(0) if self.scripted else 1.0
        return torch.full((len(responses),), score) if isinstance(score, float) else score


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


def test_a_banned_word_is_not_sampled(make):
    reward = Scores()
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
    assert module.skipped_updates == 0


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


def test_a_reward_that_is_not_finite_skips_the_update_and_is_counted(make, trained_state):
    module, data, trainer = make(reward=Scores(float("nan")), iterations=1)
    module.configure_model()
    before = trained_state(module)
    trainer.fit(module, data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained_state(module).items())
    assert float(trainer.callback_metrics["train/skipped_updates"]) == 1
    assert "env/reward_mean" not in trainer.callback_metrics
    assert math.isfinite(float(trainer.callback_metrics["objective/kl"]))


def test_scores_that_are_not_finite_never_reach_the_running_moments(make):
    first, second = torch.linspace(3, 4, 8), torch.linspace(3.2, 3.6, 8)
    broken = torch.where(torch.arange(8) < 2, torch.tensor([torch.nan, torch.inf] * 4), second)
    module, data, trainer = make(
        reward=Scores(first, broken), iterations=2, ppo=PPOConfig(use_score_scaling=True, use_score_norm=True)
    )
    trainer.fit(module, data)
    seen = torch.cat([first, second[2:]])
    assert module.score_shaper.moments.count == 14
    assert module.score_shaper.moments.mean == pytest.approx(seen.mean().item())
    assert module.score_shaper.moments.std == pytest.approx(seen.std().item(), rel=1e-5)
    assert module.skipped_updates == 1


def test_scores_that_are_all_equal_are_learned_from_as_they_are(make):
    module, data, trainer = make(
        reward=Scores(*[0.7] * 2), iterations=1, ppo=PPOConfig(use_score_scaling=True, use_score_norm=False)
    )
    trainer.fit(module, data)
    assert float(trainer.callback_metrics["ppo/mean_scores"]) == pytest.approx(0.7)
    assert float(trainer.callback_metrics["ppo/loss/total"]) < 10


def test_after_a_skipped_update_training_goes_on(make):
    module, data, trainer = make(reward=Scores(float("inf")), iterations=3, max_skipped_updates=2)
    trainer.fit(module, data)
    assert module.skipped_updates == 1
    assert module.skipped_in_a_row == 0
    assert trainer.global_step == 6  # those that learned nothing are counted too


def test_too_many_skipped_updates_in_a_row_end_the_run(make):
    module, data, trainer = make(reward=Scores(*[float("nan")] * 9), iterations=9, max_skipped_updates=3)
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
    assert module.skipped_in_a_row == 0
    assert all(torch.isfinite(tensor).all() for tensor in trained_state(module).values())


def test_a_wrong_number_of_scores_is_said_in_one_line(make):
    module, data, trainer = make(reward=Scores(torch.ones(3)))
    with pytest.raises(ParleyError, match="3 scores for 8 responses"):
        trainer.fit(module, data)


def test_a_missing_label_is_said_before_training(make):
    class Picky(Scores):
        def __call__(self, prompts, responses):
            raise ParleyError("the classifier has no label 'nothat'")

    module, data, trainer = make(reward=Picky())
    with pytest.raises(ParleyError, match="no label"):
        trainer.fit(module, data)
    assert module.buffer is None


def test_an_empty_response_is_scored_as_an_empty_text(make):
    reward = Scores()
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


def test_the_controller_takes_in_every_iteration(make):
    module, data, trainer = make(ppo=PPOConfig(target=1e6, horizon=100), iterations=2)
    trainer.fit(module, data)
    assert module.kl_controller.value == pytest.approx(0.2 * (1 - 0.2 * 8 / 100) ** 2)


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
    with pytest.raises(ParleyError, match="of fine-tuning"):
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


def test_validation_compares_with_the_reference_and_writes_the_table(make, tmp_path):
    module, data, trainer = make(
        iterations=2,
        reward=LengthReward(30, 30),
        trainer={
            "limit_val_batches": 2,
            "callbacks": [BeforeAfterTable()],
            "logger": CSVLogger(tmp_path / "logs"),
        },
    )
    trainer.fit(module, data)
    metrics = trainer.callback_metrics
    assert {"val/reward", "val/reward_reference", "val/kl", "val/rouge1", "val/rouge1_reference"} <= metrics.keys()
    assert "val/toxicity_mean" not in metrics
    files = list((run_directory(trainer) / "before_after").glob("*.csv"))
    rows = list(csv.DictReader(files[0].open()))
    assert list(rows[0])[:6] == [
        "query",
        "response_before",
        "response_after",
        "reward_before",
        "reward_after",
        "reward_diff",
    ]
    assert len(rows) == 16
    differences = [float(row["reward_diff"]) for row in rows]
    assert differences == sorted(differences, reverse=True)
    after = sum(float(row["reward_after"]) for row in rows) / len(rows)
    assert float(metrics["val/reward"]) == pytest.approx(after, abs=1e-5)


@pytest.mark.parametrize(
    "decoding",
    [
        {"min_new_tokens": 2, "bad_words": ["e"]},
        {"num_beams": 3, "min_new_tokens": 2},
        {"do_sample": True, "top_k": 4, "top_p": 0.8, "temperature": 2.0},
        {"do_sample": True, "top_p": 0.7, "seed": 3},
        {"stop_strings": ["a", "e"]},
    ],
    ids=str,
)
def test_validation_s_kl_is_never_negative(make, decoding):
    options = GenerationOptions(max_new_tokens=6, **decoding)
    module, data, trainer = make("t5-untied", generation=options, trainer={"limit_val_batches": 1})
    module.configure_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    trainer.validate(module, data, verbose=False)
    assert all(row.kl >= 0 for row in module.comparisons)
    assert sum(row.kl for row in module.comparisons) > 0.01


def test_validation_s_kl_leaves_out_an_eos_that_is_forbidden(make):
    found = []
    for least in (6, 0):
        options = GenerationOptions(max_new_tokens=6, min_new_tokens=least)
        module, data, trainer = make("t5-untied", generation=options, trainer={"limit_val_batches": 1})
        module.configure_model()
        with torch.no_grad():
            module.model.get_output_embeddings().weight[module.tokenizer.eos_token_id] *= -5
        trainer.validate(module, data, verbose=False)
        found.append(sum(row.kl for row in module.comparisons))
    assert found[0] == pytest.approx(0, abs=1e-5)
    assert found[1] > 1e-3


def test_tables_stand_at_the_step_of_their_metrics(make, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "disabled")

    class Recorder(WandbLogger):
        def log_metrics(self, metrics, step=None):
            logged.append((step, "val/kl" in metrics))

        def log_table(self, key, columns=None, data=None, dataframe=None, step=None):
            tables.append((key, step))

    logged, tables = [], []
    module, data, trainer = make(
        iterations=2,
        ppo=PPOConfig(ppo_epochs=2),
        trainer={
            "limit_val_batches": 1,
            "max_epochs": 2,
            "callbacks": [BeforeAfterTable(), SampleTable()],
            "logger": Recorder(save_dir=str(tmp_path)),
        },
    )
    trainer.fit(module, data)
    wandb.finish()
    steps = [step for step, is_validation in logged if is_validation]
    assert len(set(steps)) == 2
    for key in ("before_after", "samples"):
        assert [step for name, step in tables if name == key] == steps


def test_validation_of_a_policy_that_stops_at_a_text(make):
    options = GenerationOptions(max_new_tokens=24, min_new_tokens=24)
    free, data, trainer = make("gpt2", iterations=2, trainer={"limit_val_batches": 1}, generation=options)
    trainer.fit(free, data)
    place, said = max(enumerate(row.response_after for row in free.comparisons), key=lambda row: len(row[1]))
    stop = "".join(said.split())[len("".join(said.split())) // 2]  # white space at an answer's ends is stripped
    options = GenerationOptions(max_new_tokens=24, min_new_tokens=24, stop_strings=[stop])
    module, data, trainer = make("gpt2", iterations=2, trainer={"limit_val_batches": 1}, generation=options)
    module.configure_model()
    module.load_state_dict(free.state_dict())
    module.reference = free.reference
    trainer.validate(module, data, verbose=False)
    for before, after in zip(free.comparisons, module.comparisons, strict=True):
        assert stop not in after.response_before + after.response_after
        assert after.response_after == until_stop(before.response_after, [stop]).strip()
        assert 0 < after.kl <= before.kl * 1.001
    assert module.comparisons[place].kl < 0.95 * free.comparisons[place].kl


def test_an_untrained_policy_answers_as_its_reference_does_also_when_sampling(make):
    pytest.importorskip("profanity_check")
    from src.rewards import ProfanityReward

    module, data, trainer = make(
        "gpt2",
        "lora",
        reward=ProfanityReward(),
        trainer={"limit_val_batches": 2},
        generation=GenerationOptions(do_sample=True, max_new_tokens=8),
        metrics={"toxicity": Toxicity(), "diversity": Diversity()},
    )
    trainer.validate(module, data, verbose=False)
    assert all(row.response_before == row.response_after for row in module.comparisons)
    metrics = trainer.callback_metrics
    assert float(metrics["val/kl"]) == pytest.approx(0, abs=1e-5)
    assert float(metrics["val/toxicity_mean"]) == float(metrics["val/toxicity_mean_reference"])
    assert float(metrics["val/toxicity_improvement"]) == 0
    assert 0 < float(metrics["val/distinct1"]) == float(metrics["val/distinct1_reference"])
    assert "val/rouge1" not in metrics


def test_strategies_and_precisions_that_cannot_work_are_refused(make):
    module, data, trainer = make(trainer={"precision": "bf16-true"})
    trainer.strategy.precision_plugin.precision = "16-mixed"
    with pytest.raises(ParleyError, match="skips updates, not scales them"):
        trainer.fit(module, data)
    with pytest.raises(ParleyError, match="max_skipped_updates"):
        PPOModule("x", Scores(), max_skipped_updates=0)


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
