"""Policies on bases in 4 bits and in 16: their reference is the base, they start there, and they go on to the bit."""

from __future__ import annotations

import pytest
import torch
from transformers import BitsAndBytesConfig

from src.callbacks import ExactResume
from src.modules import GRPOModule, PPOModule, RLOOModule
from src.modules.online.grpo import GRPOConfig
from src.modules.online.rloo import RLOOConfig
from src.rl.config import PPOConfig
from tests.modules.cutting import Cut, CutAt

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install -e '.[quantization]'")

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
BASES = {"nf4": {"quantization": BitsAndBytesConfig(**NF4)}, "bf16": {"dtype": "bfloat16"}}
SHARED = {"num_generations": 2, "minibatch_size": 8}
METHODS = {
    "ppo": {"method": PPOModule, "ppo": PPOConfig(**SHARED, ppo_epochs=1)},
    "rloo": {"method": RLOOModule, "rloo": RLOOConfig(**SHARED, num_iterations=1, beta=0.02)},
    "grpo": {"method": GRPOModule, "grpo": GRPOConfig(**SHARED, num_iterations=1, beta=0.02)},
}
STEPS = 2  # an iteration has: 8 prompts, 2 answers each, 8 a minibatch
every_base = pytest.mark.parametrize("base", BASES)


@pytest.mark.slow
@every_base
@pytest.mark.parametrize("trained", ["lora", "continued"])
@pytest.mark.parametrize(("kind", "method"), [("t5", "ppo"), ("llama", "ppo"), ("gpt2", "rloo"), ("bart", "grpo")])
def test_kl_is_0_and_ratios_are_1_in_the_first_iteration(make, kind, trained, method, base):
    module, data, trainer = make(
        kind,
        trained,
        iterations=1,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
        **METHODS[method],
        **BASES[base],
    )
    seen, plain = [], module.loss

    def loss(minibatch, new):
        tokens = minibatch.rollout.response_mask.bool()
        seen.append((new.logprobs.detach() - minibatch.rollout.logprobs)[tokens].abs().max())
        return plain(minibatch, new)

    module.loss = loss
    trainer.fit(module, data)
    assert module.reference.is_base is (trained == "lora")
    assert float(trainer.callback_metrics["objective/kl"]) == 0  # the very bits
    assert len(seen) == STEPS
    assert max(seen) < (1e-4 if base == "nf4" else 2e-2)  # minibatches are padded otherwise, and bfloat16 rounds


@pytest.mark.slow
@every_base
@pytest.mark.parametrize(("kind", "method"), [("t5", "ppo"), ("gpt2", "ppo"), ("llama", "grpo")])
def test_a_run_cut_within_an_iteration_goes_on_to_the_bit(make, trained_state, tmp_path, kind, method, base):
    def run(seed, *callbacks, **more):
        module, data, trainer = make(
            kind,
            "lora",
            iterations=2,
            trainer={"callbacks": [ExactResume(), *callbacks]},
            **METHODS[method],
            **BASES[base],
        )
        torch.manual_seed(seed)
        trainer.fit(module, data, **more)
        return module

    checkpoint = tmp_path / "cut.ckpt"
    whole = run(3)
    with pytest.raises(Cut):
        run(3, CutAt(STEPS + 1, checkpoint))
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all("lora_" in name or "value_head" in name for name in saved)
    expected = trained_state(whole)
    for name, tensor in trained_state(run(99, ckpt_path=str(checkpoint))).items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.dtype == torch.float32
    assert any(not torch.equal(tensor, saved[name]) for name, tensor in expected.items())
