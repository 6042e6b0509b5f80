"""What holds of every method: it starts where its reference is, learns, and goes on after a cut to the bit."""

import csv

import pytest
import torch
from lightning.pytorch import Callback

from src.callbacks import ExactResume, RunLogger
from src.models.generation_options import GenerationOptions
from src.models.rollout import RolloutOptions
from src.modules import GRPOModule, PPOModule, RLOOModule
from src.modules.online import collector
from src.modules.online.grpo import GRPOConfig
from src.modules.online.rloo import RLOOConfig
from src.rewards import LengthReward
from src.rl.config import PPOConfig
from tests.modules.cutting import Cut, CutAt

SHARED = {"num_generations": 4, "minibatch_size": 16}


def ppo(**more):
    return {"method": PPOModule, "ppo": PPOConfig(**SHARED | more, ppo_epochs=2, init_kl_coef=0.02)}


def rloo(**more):
    return {"method": RLOOModule, "rloo": RLOOConfig(**SHARED | more, num_iterations=2, beta=0.02)}


def grpo(**more):
    return {"method": GRPOModule, "grpo": GRPOConfig(**SHARED | more, num_iterations=2, beta=0.02)}


STEPS = 2 * 2  # passes times minibatches
every_method = pytest.mark.parametrize("method", [ppo, rloo, grpo], ids=lambda method: method.__name__)
every_model = pytest.mark.parametrize("kind", ["t5", "gpt2"])
whole_and_lora = pytest.mark.parametrize("trained", ["whole", "lora"])


@every_method
@every_model
@whole_and_lora
def test_the_policy_is_its_reference_at_first_and_dropout_is_off(make, kind, trained, method):
    """Also after a validation, which Lightning puts a Module into another mode for."""
    module, data, trainer = make(
        kind,
        trained,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
        trainer={"limit_val_batches": 1, "val_check_interval": STEPS},
        generation=GenerationOptions(max_new_tokens=2),
        **method(),
    )
    module.configure_model()
    dropouts = [part for part in module.modules() if isinstance(part, torch.nn.Dropout)]
    for dropout in dropouts:
        dropout.p = 0.5
    seen, plain = [], module.loss

    def loss(minibatch, new):
        seen.append((minibatch.rollout, new.logprobs.detach()))
        return plain(minibatch, new)

    module.loss = loss
    trainer.fit(module, data)
    assert dropouts
    assert len(seen) == 2 * STEPS
    for rollout, logprobs in seen:
        tokens = rollout.response_mask.bool()
        assert (rollout.logprobs - rollout.ref_logprobs)[tokens].abs().max() < 1e-6
        assert (logprobs - rollout.logprobs)[tokens].abs().max() < 1e-4
    assert abs(float(trainer.callback_metrics["objective/kl"])) < 1e-5


@pytest.mark.slow
@every_model
@whole_and_lora
def test_both_engines_learn_the_same_from_the_same_answers(make, kind, trained):
    """The weights change between two rollouts, which a step that is replayed must notice."""
    found = []
    for engine in ("plain", "static"):
        rollout = RolloutOptions(min_new_tokens=2, output_min_length=6, output_max_length=12, engine=engine)
        module, data, trainer = make(kind, trained, rollout=rollout, iterations=3, **grpo())
        torch.manual_seed(0)
        answers, plain = [], module.advantages
        module.advantages = lambda rollout, seen=answers, plain=plain: seen.append(rollout) or plain(rollout)
        trainer.fit(module, data)
        found.append((answers, module.policy.state_dict()))
    (plain_answers, plain_weights), (static_answers, static_weights) = found
    assert len(plain_answers) == 3
    for ours, theirs in zip(static_answers, plain_answers, strict=True):
        assert torch.equal(ours.response_ids, theirs.response_ids)
    for name, weight in plain_weights.items():
        torch.testing.assert_close(static_weights[name], weight, rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("method", [rloo, grpo], ids=lambda method: method.__name__)
def test_ratios_are_1_at_first_in_every_precision(make, precision, method, monkeypatch):
    """Prompts are long beside answers, so that in float32, and there alone, they are read once for all of them."""
    shared, plain_groups = [], collector.score_groups
    monkeypatch.setattr(collector, "score_groups", lambda *a, **k: shared.append(1) or plain_groups(*a, **k))
    module, data, trainer = make(
        "gpt2",
        iterations=1,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
        trainer={"precision": precision},
        rollout=RolloutOptions(min_new_tokens=2, output_min_length=4, output_max_length=6),
        **method(),
    )
    module.configure_model()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.policy.parameters():  # else all logits are near 0, and no rounding shows
            parameter.add_(0.2 * torch.randn_like(parameter))
    off, plain = [], module.loss

    def loss(minibatch, new):
        off.append((new.logprobs.detach() - minibatch.rollout.logprobs).abs().max())
        return plain(minibatch, new)

    module.loss = loss
    trainer.fit(module, data)
    assert len(off) == STEPS
    assert max(off) < 1e-4
    assert bool(shared) == (precision == "32-true")


@every_method
@every_model
@whole_and_lora
def test_figures_per_token_are_0_outside_responses(make, kind, trained, method):
    module, data, trainer = make(kind, trained, iterations=1, trainer={"max_steps": 1}, **method())
    trainer.fit(module, data)
    rollout = module.buffer.rollout
    outside = rollout.response_mask == 0
    assert outside.any()
    assert len(rollout) == 8 * 4
    assert rollout.index.view(8, 4).unique(dim=1).shape == (8, 1)  # answers to a prompt follow each other
    for name in ("logprobs", "ref_logprobs", "advantages", "values", "returns"):
        figures = getattr(rollout, name)
        assert figures is None or not figures[outside].any(), name


@pytest.mark.slow
@every_method
@every_model
@whole_and_lora
def test_the_reward_rises_on_prompts_that_were_held_out(make, kind, trained, method):
    torch.manual_seed(0)
    module, data, trainer = make(
        kind,
        trained,
        iterations=20 if trained == "whole" else 40,
        reward=LengthReward(8),
        rollout=RolloutOptions(min_new_tokens=8, output_min_length=8, output_max_length=8),
        generation=GenerationOptions(do_sample=True, min_new_tokens=8, max_new_tokens=8),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2 if trained == "whole" else 3e-2),
        trainer={"limit_val_batches": 2, "check_val_every_n_epoch": 99, "gradient_clip_val": 1.0},
        **method(),
    )
    if module.lora is not None:
        module.lora.target_modules = "all-linear"
    module.configure_model()
    if kind == "gpt2" and trained == "lora":  # a frozen head of small random weights can say nothing with certainty
        module.policy.get_output_embeddings().weight.data.mul_(10)
    trainer.fit(module, data)
    trainer.validate(module, data, verbose=False)
    before, after = (float(trainer.callback_metrics[f"val/reward{part}"]) for part in ("_reference", ""))
    assert after > before + 0.1


def logged(root):
    """What a run logged, less what depends on the clock."""
    with (root / "run" / "version_0" / "metrics.csv").open(newline="") as stream:
        return [{k: v for k, v in row.items() if v and not k.startswith("time/")} for row in csv.DictReader(stream)]


@pytest.mark.slow
@every_method
@pytest.mark.parametrize(
    ("kind", "trained"), [("t5", "whole"), ("t5", "lora"), ("t5", "decoder"), ("gpt2", "whole"), ("gpt2", "lora")]
)
def test_a_run_cut_between_two_minibatches_goes_on_to_the_bit(make, trained_state, tmp_path, kind, trained, method):
    def run(root, seed, *callbacks, **more):
        module, data, trainer = make(
            kind,
            trained,
            iterations=3,
            trainer={
                "callbacks": [ExactResume(), *callbacks],
                "logger": RunLogger(tmp_path / root, name="run", version=0),
                "gradient_clip_val": 1.0,
            },
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
            **method(use_score_scaling=True, use_score_norm=True),
        )
        torch.manual_seed(seed)
        trainer.fit(module, data, **more)
        return module

    checkpoint = tmp_path / "cut.ckpt"
    whole = run("whole", 3)
    with pytest.raises(Cut):
        run("cut", 3, CutAt(STEPS + 1, checkpoint))
    state = torch.load(checkpoint, weights_only=True)["online"]
    assert state["buffer"]["rollout"] is not None
    continued = run("cut", 99, ckpt_path=str(checkpoint))
    expected, start = trained_state(whole), torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, tensor in trained_state(continued).items():
        assert torch.equal(tensor, expected[name]), name
    assert any(not torch.equal(tensor, start[name]) for name, tensor in expected.items() if name in start)
    assert continued.state() == whole.state()
    assert continued.buffer.iteration == whole.buffer.iteration == 3
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")


@every_method
def test_what_is_learned_from_is_told_response_by_response(make, method):
    told, scored = [], []

    class Ask(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            told.append(pl_module.rollout_records())

    class Listener(LengthReward):
        def __call__(self, prompts, responses):
            scores = super().__call__(prompts, responses)
            scored.extend(zip(prompts, responses, scores.tolist(), strict=True))
            return scores

    module, data, trainer = make(reward=Listener(5), trainer={"callbacks": [Ask()]}, **method())
    trainer.fit(module, data)
    assert [bool(records) for records in told] == [True, False, False, False] * 2
    records = [record for part in told for record in part]
    assert [record.iteration for record in records] == [1] * 32 + [2] * 32
    assert [record.response for record in records] == [response for _, response, _ in scored]
    assert [record.score for record in records] == pytest.approx([score for _, _, score in scored])
    assert len({record.index for record in records[:32]}) == 8
    assert any(record.advantage for record in records)


@pytest.mark.slow
@every_method
@pytest.mark.parametrize(("size", "accumulate"), [(8, 2), (16, 1), (4, 4)])
def test_a_run_that_accumulates_goes_on_cut_otherwise_too(make, trained_state, tmp_path, method, size, accumulate):
    """Two optimiser steps a pass, however many minibatches each has; the same steps, validations and log rows."""

    def run(root, size, accumulate, *callbacks, **more):
        module, data, trainer = make(
            iterations=3,
            trainer={
                "callbacks": [ExactResume(), *callbacks],
                "logger": RunLogger(tmp_path / root, name="run", version=0),
                "accumulate_grad_batches": accumulate,
                "limit_train_batches": 1.0,
                "limit_val_batches": 1,
                "max_epochs": epochs,
            },
            generation=GenerationOptions(max_new_tokens=2),
            data={"train_split": "train[:16]"},
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.3),  # Adam makes much of rounding
            **method(minibatch_size=size),
        )
        torch.manual_seed(3)
        trainer.fit(module, data, **more)
        return module, trainer

    epochs = 2 if size == 8 else 1  # rounding grows from step to step, until other tokens are sampled
    whole, trainer = run("whole", 8, 2)
    assert trainer.global_step == epochs * 2 * 2 * 2  # iterations, passes, steps
    checkpoint = tmp_path / "cut.ckpt"
    with pytest.raises(Cut):
        run("cut", 8, 2, CutAt(2 * 2 + 1, checkpoint))
    continued, trainer = run("cut", size, accumulate, ckpt_path=str(checkpoint))
    assert trainer.global_step == epochs * 8
    expected = trained_state(whole)
    for name, tensor in trained_state(continued).items():
        torch.testing.assert_close(tensor, expected[name], atol=0 if size == 8 else 2e-5, rtol=0, msg=name)
    steps = [[(row["step"], "val/kl" in row) for row in logged(tmp_path / root)] for root in ("cut", "whole")]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("change", [{"data": {"seed": 9}}, {"num_generations": 2}], ids=str)
def test_a_rollout_of_other_prompts_is_not_gone_on_with(make, tmp_path, change):
    """Where the encoder is frozen, minibatches take its output for the batch's prompts from the rollout's place."""

    def run(*callbacks, data=None, num_generations=4, **more):
        module, data, trainer = make(
            "t5",
            "decoder",
            iterations=3,
            trainer={"callbacks": [ExactResume(), *callbacks]},
            data=data,
            **ppo(num_generations=num_generations),
        )
        torch.manual_seed(3)
        trainer.fit(module, data, **more)
        return module

    checkpoint = tmp_path / "cut.ckpt"
    with pytest.raises(Cut):
        run(CutAt(STEPS + 1, checkpoint))
    used = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            rows = pl_module.buffer.rollout.index[:: pl_module.config.num_generations]
            used.append(rows.tolist() == batch["index"])

    run(Watch(), ckpt_path=str(checkpoint), **change)
    assert used
    assert all(used)
