"""GRPO: seconds of an iteration, Parley's beside those of the installed TRL's `GRPOTrainer`.

Same weights (a GPT-2 from scratch with a LoRA on its attention), prompts, group size, response length, minibatches,
reward and threads; each in float32 and in bf16 autocast. The methods take turns, each round in another order; each has
one iteration first that nobody timed; figures are medians over all timed iterations.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from benchmarks.beside_trl import adapter, add_options, clock
from benchmarks.options import parse, report
from benchmarks.prompts import SAMPLE, Prompts, dialogues
from benchmarks.seq2seq import quieten
from benchmarks.shapes import DECODER_OF_T5_BASE, make_shaped, shape_of
from benchmarks.turns import Turns, chosen
from src.contracts import Example
from src.models.corpus import read_corpus
from src.models.rollout import RolloutOptions
from src.models.static_decoder import Engine
from src.modules import GRPOModule
from src.modules.online.grpo import GRPOConfig
from src.rewards import LengthReward

BETA = 0.04
ON_GPU = {
    "iterations": 2,
    "rounds": 1,
    "prompts": 64,
    "minibatch_size": 32,
    "tokens": 48,
    "methods": ["Parley, static", "Parley", "TRL, bf16"],
    **DECODER_OF_T5_BASE,
}


def ours(
    base: Path, prompts: list[str], args: argparse.Namespace, precision: str, engine: Engine = "plain"
) -> list[float]:
    """Seconds of each iteration of Parley's."""
    module = GRPOModule(
        str(base),
        LengthReward(30),
        lora=adapter(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0),
        grpo=GRPOConfig(num_generations=args.num_generations, minibatch_size=args.minibatch_size, beta=BETA),
        rollout=RolloutOptions(
            min_new_tokens=args.tokens,
            output_min_length=args.tokens,
            output_max_length=args.tokens,
            engine=engine,
        ),
    )
    examples = [Example(prompt, "-", ["-"]) for prompt in prompts]
    seconds, now = [], clock(args)

    class Clock(Callback):
        def on_train_batch_start(self, *given: Any) -> None:
            _, module, _, place = given
            if place % module.minibatches == 0:
                self.since = now()

        def on_train_batch_end(self, *given: Any) -> None:
            _, module, _, _, place = given
            if (place + 1) % module.minibatches == 0:
                seconds.append(now() - self.since)

    Trainer(
        **args.device.trainer_options(precision), max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Clock()], gradient_clip_val=1.0,
    ).fit(module, Prompts(base, examples, args.prompts, max_target_length=8, is_encoder_decoder=False))  # fmt: skip
    return seconds


def theirs(base: Path, prompts: list[str], args: argparse.Namespace, *, bf16: bool) -> list[float]:
    """Seconds of each iteration of TRL's: a batch of prompts sampled, then a step on each minibatch."""
    import datasets
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig as PeerConfig
    from trl import GRPOTrainer

    steps = args.prompts * args.num_generations // args.minibatch_size
    reward, seconds, since, now = LengthReward(30), [], [0.0], clock(args)

    class Clock(TrainerCallback):
        def on_step_begin(self, arguments: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            if state.global_step % steps == 0:
                since[0] = now()

        def on_step_end(self, arguments: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            if state.global_step % steps == 0:
                seconds.append(now() - since[0])

    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            str(base),
            reward_funcs=lambda prompts, completions, **_: reward(prompts, completions).tolist(),
            args=PeerConfig(
                output_dir=folder,
                **args.device.transformers_options,
                bf16=bf16,
                model_init_kwargs={"dtype": "float32"},
                gradient_checkpointing=False,
                learning_rate=1e-6,
                lr_scheduler_type="constant",
                beta=BETA,
                num_generations=args.num_generations,
                per_device_train_batch_size=args.minibatch_size,
                steps_per_generation=steps,
                max_completion_length=args.tokens,
                generation_kwargs={"min_new_tokens": args.tokens},
                max_steps=steps * len(prompts) // args.prompts,
                shuffle_dataset=False,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=tokenizer,
            peft_config=adapter(),
            callbacks=[Clock()],
        )
        trainer.train()
    return seconds


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks grpo", description=__doc__)
    parser.add_argument("--iterations", type=int, default=3, help="timed iterations of each method in a round")
    parser.add_argument("--prompts", type=int, default=8, help="prompts an iteration")
    parser.add_argument("--num-generations", type=int, default=4, help="answers a prompt")
    parser.add_argument("--minibatch-size", type=int, default=8, help="answers in a forward and backward pass")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of every answer")
    parser.add_argument("--static", action="store_true", help="also rollout.engine: static")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="these alone, by their names in the table")
    add_options(parser)
    args = parse(parser, argv, on_gpu=ON_GPU)
    texts = dialogues(args.prompts * (args.iterations + 1))
    prompts = [f"Summarize.\n\n{text}\n\nSummary: " for text in texts]
    quieten()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        make_shaped("gpt2", read_corpus([SAMPLE]), base, shape_of(args))
        methods: dict[str, Callable[[], list[float]]] = {
            "Parley": partial(ours, base, prompts, args, "bf16-mixed"),
            "Parley, float32": partial(ours, base, prompts, args, "32-true"),
            "Parley, static": partial(ours, base, prompts, args, "bf16-mixed", "static"),
            "Parley, static, float32": partial(ours, base, prompts, args, "32-true", "static"),
            "TRL, bf16": partial(theirs, base, prompts, args, bf16=True),
            "TRL, float32": partial(theirs, base, prompts, args, bf16=False),
        }
        if not args.static and args.methods is None:
            methods = {name: run for name, run in methods.items() if "static" not in name}
        if args.float32:
            methods = {name: run for name, run in methods.items() if name.endswith("float32")}
        methods = chosen(methods, args.methods)
        turns = Turns(methods, lambda name: name.startswith("TRL"))
        played = turns.play(args.rounds)
    medians = {
        name: statistics.median(seconds for found in played for seconds in found[name][1:]) for name in turns.methods
    }
    first = next(iter(methods))
    rows = [
        {"method": name, "iteration s": seconds, f"{first} is faster by": seconds / medians[first]}
        for name, seconds in medians.items()
    ]
    title = f"GRPO, {args.prompts} prompts, {args.num_generations} answers each of {args.tokens} tokens"
    report(args, rows, title=title, left_out=turns.left_out)
