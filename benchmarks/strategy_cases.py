"""What `python -m benchmarks strategies` trains, and one process of it."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from peft import LoraConfig
from torch import Tensor
from transformers import BitsAndBytesConfig

from benchmarks.device import device_named
from scripts.crash_tasks import SAMPLE, write_pairs
from src.datamodules import DialogSumDataModule, PreferenceDataModule
from src.models.generation_options import GenerationOptions
from src.models.rollout import RolloutOptions
from src.models.scratch import Sizes, make_base_model
from src.modules import (
    CausalLMModule,
    DPOModule,
    GRPOModule,
    ModelModule,
    PPOModule,
    RewardModule,
    RLOOModule,
    Seq2SeqModule,
)
from src.modules.online.grpo import GRPOConfig
from src.modules.online.rloo import RLOOConfig
from src.parallel.gathering import bytes_of, whole
from src.parallel.strategy import ShardedStrategy
from src.rewards import LengthReward
from src.rl.config import PPOConfig

TARGETS = {"t5": ["q", "v"], "bart": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}
GLOBAL_BATCH = 8
VOCABULARY = 400
SHORT = RolloutOptions(min_new_tokens=2, output_min_length=4, output_max_length=8)


@dataclass(frozen=True)
class Case:
    """A Module with its data.

    Attributes:
        module: Its class.
        architecture: Of the base.
        lora: Train an adapter.
        options: Of the Module.
        data: Of the DataModule.
        learns: From what.
        quantized: Keep the frozen base in 4 bits, which shards refuse.
        sliced: Compute the loss in slices of eight tokens.
    """

    module: Callable[..., ModelModule]
    architecture: str
    lora: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    learns: str = "answers"
    quantized: bool = False
    sliced: bool = False

    @property
    def strategies(self) -> tuple[str, ...]:
        """Those that train it on several processes."""
        return ("ddp",) if self.quantized else ("ddp", "sharded")


def _of(name: str, module: Callable[..., ModelModule], whole: str, adapted: str, **given: Any) -> dict[str, Case]:
    return {name: Case(module, whole, **given), f"{name}+lora": Case(module, adapted, lora=True, **given)}


SMALL_PPO = PPOConfig(ppo_epochs=2, minibatch_size=2)
SMALL_GRPO = GRPOConfig(num_iterations=2, num_generations=2, minibatch_size=4, beta=0.1)
SAMPLED: dict[str, Any] = {"learns": "rollouts"}
CASES: dict[str, Case] = {
    **_of("seq2seq", Seq2SeqModule, "t5", "bart", options={"dropout": 0.0}),
    **_of("causal", CausalLMModule, "gpt2", "llama", options={"dropout": 0.0}),
    **_of("packed", CausalLMModule, "llama", "gpt2", options={"dropout": 0.0}, data={"packing": True}),
    **_of("ppo", PPOModule, "t5", "llama", options={"ppo": SMALL_PPO}, **SAMPLED),
    **_of(
        "rloo",
        RLOOModule,
        "gpt2",
        "t5",
        options={"rloo": RLOOConfig(num_iterations=2, num_generations=2, minibatch_size=4, beta=0.1)},
        **SAMPLED,
    ),
    **_of(
        "grpo",
        GRPOModule,
        "bart",
        "gpt2",
        options={"grpo": SMALL_GRPO},
        **SAMPLED,
    ),
    **_of("dpo", DPOModule, "t5", "llama", learns="pairs"),
    # Centred, for of two rewards' difference a head's bias has no gradient but rounding, which AdamW would follow.
    **_of("reward", RewardModule, "gpt2", "t5", options={"center_rewards_coefficient": 0.1}, learns="pairs"),
    "seq2seq+sliced": Case(Seq2SeqModule, "t5", options={"dropout": 0.0}, sliced=True),
    "causal+lora+sliced": Case(CausalLMModule, "llama", lora=True, options={"dropout": 0.0}, sliced=True),
    "causal+compiled": Case(CausalLMModule, "gpt2", options={"dropout": 0.0, "torch_compile": True}),
    "grpo+lora+compiled": Case(
        GRPOModule, "gpt2", lora=True, options={"grpo": SMALL_GRPO, "torch_compile": True}, **SAMPLED
    ),
    "causal+nf4": Case(CausalLMModule, "gpt2", lora=True, quantized=True, options={"dropout": 0.0}),
    "ppo+nf4": Case(PPOModule, "t5", lora=True, quantized=True, options={"ppo": SMALL_PPO}, **SAMPLED),
}


@dataclass(frozen=True)
class Plan:
    """What the processes of one start do.

    Attributes:
        cases: Names.
        strategies: `one`, `ddp` or `sharded`.
        world: Processes of this start.
        most: Of any start.
        directory: Where bases are and results go.
        steps: Optimiser steps.
        device: Its name.
    """

    cases: list[str]
    strategies: list[str]
    world: int
    most: int
    directory: str
    steps: int
    device: str


@dataclass
class Measured:
    """What came of a run.

    Attributes:
        losses: Of each optimiser step, over all processes.
        weights: What was trained, by name.
        validation: Its figures, by name.
        parameter_bytes: Of one process, as the others.
        gradient_bytes: Before the optimiser's last step.
        optimizer_bytes: Of tensors that are as large as a parameter, and of those that are not.
        seconds_a_step: The median.
    """

    losses: list[float] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)
    parameter_bytes: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    seconds_a_step: float = 0.0


def make_bases(cases: list[Case], directory: Path) -> None:
    """Small models from scratch, and pairs to learn from."""
    texts = [json.loads(line)["dialogue"] for line in (SAMPLE / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    sizes = Sizes(hidden_size=32, layers=2, heads=2, feed_forward_size=64, vocab_size=VOCABULARY)
    for architecture in {case.architecture for case in cases}:
        make_base_model(architecture, texts, directory / architecture, sizes)
    write_pairs(directory / "pairs.jsonl")


class Watch(Callback):
    """Takes down losses, bytes and times.

    Args:
        measured: Where.
    """

    def __init__(self, measured: Measured) -> None:
        self.measured = measured
        self._parts: list[Tensor] = []
        self._times: list[float] = []

    def on_before_optimizer_step(self, _trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.measured.gradient_bytes = bytes_of(p.grad for p in pl_module.parameters() if p.grad is not None)

    def on_train_batch_end(
        self, trainer: Trainer, _module: LightningModule, outputs: Any, _batch: Any, batch_idx: int
    ) -> None:
        self._parts.append(outputs["loss"])
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        loss = trainer.callback_metrics.get("train/loss")
        if loss is None:  # of an online method; Lightning has divided each by the number of batches
            loss = trainer.strategy.reduce(torch.stack(self._parts).sum(), reduce_op="mean")
        self._parts = []
        self.measured.losses.append(float(loss))
        self._times.append(time.perf_counter())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = [value for one in trainer.optimizers[0].state.values() for value in one.values()]
        self.measured.parameter_bytes = bytes_of(pl_module.parameters())
        self.measured.optimizer_bytes = bytes_of(value for value in state if isinstance(value, Tensor))
        trained = [(name, p) for name, p in pl_module.named_parameters() if p.requires_grad]
        self.measured.weights = {name: whole(p.detach()).clone() for name, p in trained}
        gaps = [after - before for before, after in zip(self._times, self._times[1:], strict=False)]
        self.measured.seconds_a_step = statistics.median(gaps) if gaps else 0.0
        figures = trainer.callback_metrics
        self.measured.validation = {name: float(value) for name, value in figures.items() if name.startswith("val/")}


def train(name: str, strategy: str, plan: Plan) -> Measured:
    """One run, on this process and those beside it."""
    case, directory = CASES[name], Path(plan.directory)
    seed_everything(1, verbose=False)
    base = str(directory / case.architecture)
    options: dict[str, Any] = dict(case.options)
    if case.learns == "rollouts":
        options |= {"reward": LengthReward(5), "rollout": SHORT}
    if case.module is not RewardModule:
        options["generation"] = GenerationOptions(max_new_tokens=6)
    if case.quantized:
        options["quantization"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32"
        )
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[case.architecture], lora_dropout=0.0)
    module = case.module(
        base,
        lora=lora if case.lora else None,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1),
        **options,
    )
    if case.sliced:
        module.logits_at_once = 8 * VOCABULARY
    shared: dict[str, Any] = {
        "batch_size": GLOBAL_BATCH // (plan.world if case.learns == "rollouts" else plan.most),
        "cache_dir": str(directory / f"cache-{name}"),
        "max_source_length": 48,
        "max_target_length": 16,
    }
    data: LightningDataModule
    if case.learns == "pairs":
        pairs = str(directory / "pairs.jsonl")
        data = PreferenceDataModule(base, path=pairs, validation_split="train[:5]", **shared)
    else:
        data = DialogSumDataModule(base, path=str(SAMPLE), validation_split="validation[:5]", **shared, **case.data)
    measured = Measured()
    ways: dict[str, Any] = {"one": "auto", "ddp": DDPStrategy(), "sharded": ShardedStrategy()}
    trainer = Trainer(
        **device_named(plan.device).trainer_options("32-true") | {"devices": plan.world},
        strategy=ways[strategy],
        max_steps=plan.steps,
        accumulate_grad_batches=plan.most // plan.world,
        gradient_clip_val=0.1,
        val_check_interval=plan.steps * (plan.most // plan.world),
        check_val_every_n_epoch=None,
        log_every_n_steps=1,
        callbacks=[Watch(measured)],
        default_root_dir=directory,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data)
    return measured


def main(words: list[str]) -> None:
    """One process of a plan; the first one writes what came of it."""
    plan = Plan(**json.loads(words[0]))
    runs = [
        (name, strategy)
        for name in plan.cases
        for strategy in plan.strategies
        if strategy in ("one", *CASES[name].strategies)
    ]
    results = [(name, strategy, asdict(train(name, strategy, plan))) for name, strategy in runs]
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    if rank == 0:
        torch.save(results, Path(plan.directory) / f"results-{plan.world}.pt")


if __name__ == "__main__":
    main(sys.argv[1:])
