"""Generation: answers a second in Parley's batches, in batches as they come, and one prompt at a time.

Same model, prompts, decoding and number of new tokens, through transformers' own `generate` where it is not Parley's
way. The methods take turns, each round in another order; the ratios are medians over rounds, to the first method of the
same batch size and decoding. Every method's greedy answers must be the same; how many are is a column.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.device import Device
from benchmarks.options import parse, report
from benchmarks.prompts import SAMPLE
from benchmarks.shapes import FLAN_T5_BASE, add_shape, make_shaped, shape_of
from benchmarks.turns import Turns
from src.inference.answers import answer_all
from src.inference.examples import from_dataset
from src.inference.loading import FinishedModel, load_finished
from src.inference.prompts import PromptEncoder, resolve_style
from src.models.corpus import read_corpus
from src.models.endings import ending_ids
from src.models.generation_options import GenerationOptions
from src.models.rollout import RolloutOptions, sample_responses
from src.models.static_decoder import Engine

ON_GPU = {
    "architecture": "t5",
    "prompts": 128,
    "batch_size": [16, 128],
    "decoding": ["greedy", "sampled"],
    "methods": ["batches as they come", "parley generate, static", "rollout, static"],
    "new_tokens": 64,
    "rounds": 1,
    "weights": "bfloat16",
    **FLAN_T5_BASE,
}
Method = Callable[[FinishedModel, list[list[int]], GenerationOptions, int], list[str]]
Bound = Callable[[list[list[int]]], list[str]]


def one_at_a_time(
    finished: FinishedModel,
    prompts: list[list[int]],
    options: GenerationOptions,
    batch_size: int,  # noqa: ARG001
) -> list[str]:
    """The published notebooks' loop."""
    return in_order(finished, prompts, options, 1)


def in_order(
    finished: FinishedModel, prompts: list[list[int]], options: GenerationOptions, batch_size: int
) -> list[str]:
    """Padded batches of prompts as they come."""
    side = "right" if finished.is_encoder_decoder else "left"
    texts: list[str] = []
    for start in range(0, len(prompts), batch_size):
        batch = {"input_ids": prompts[start : start + batch_size]}
        inputs = finished.tokenizer.pad(batch, padding_side=side, return_tensors="pt").to(finished.device)
        output = finished.model.generate(
            **inputs,
            max_new_tokens=options.max_new_tokens,
            min_new_tokens=options.min_new_tokens,
            **({"do_sample": True, "top_k": 0, "top_p": 1.0} if options.do_sample else {"do_sample": False}),
            pad_token_id=finished.tokenizer.pad_token_id,
        )
        answers = output[:, 1 if finished.is_encoder_decoder else inputs["input_ids"].shape[1] :]
        texts += [text.strip() for text in finished.tokenizer.batch_decode(answers, skip_special_tokens=True)]
    return texts


def by_length(
    finished: FinishedModel,
    prompts: list[list[int]],
    options: GenerationOptions,
    batch_size: int,
    engine: Engine = "plain",
) -> list[str]:
    """What `parley generate` does."""
    options = replace(options, engine=engine)
    return [texts[0] for texts in answer_all(finished, prompts, options, batch_size=batch_size)]


def rollouts(
    finished: FinishedModel, prompts: list[list[int]], options: GenerationOptions, batch_size: int, engine: Engine
) -> list[str]:
    """What samples for PPO and its like, on padded batches of prompts as they come."""
    side = "right" if finished.is_encoder_decoder else "left"
    sampling = RolloutOptions(
        top_k=0 if options.do_sample else 1,
        min_new_tokens=options.min_new_tokens,
        output_min_length=options.max_new_tokens,
        output_max_length=options.max_new_tokens,
        engine=engine,
    )
    texts: list[str] = []
    for start in range(0, len(prompts), batch_size):
        batch = {"input_ids": prompts[start : start + batch_size]}
        inputs = finished.tokenizer.pad(batch, padding_side=side, return_tensors="pt").to(finished.device)
        responses = sample_responses(
            finished.model,
            inputs["input_ids"],
            inputs["attention_mask"],
            sampling,
            eos_token_ids=ending_ids(finished.tokenizer, finished.model),
            pad_token_id=finished.tokenizer.pad_token_id,
        )
        texts += [text.strip() for text in finished.tokenizer.batch_decode(responses.ids, skip_special_tokens=True)]
    return texts


METHODS: dict[str, Method] = {
    "one at a time": one_at_a_time,
    "batches as they come": in_order,
    "parley generate": by_length,
    "parley generate, static": partial(by_length, engine="static"),
    "rollout": partial(rollouts, engine="plain"),
    "rollout, static": partial(rollouts, engine="static"),
}
ON_CPU = ["one at a time", "batches as they come", "parley generate"]


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks generation", description=__doc__)
    parser.add_argument("--model", help="a model to measure instead of one from scratch")
    parser.add_argument("--architecture", choices=("t5", "bart", "gpt2", "llama"), default="gpt2")
    parser.add_argument("--weights", choices=("float32", "bfloat16"), default="float32", help="their type")
    add_shape(parser, hidden_size=256, layers=4, heads=4, vocab_size=2000)
    parser.add_argument("--data", default=str(SAMPLE), help="DialogSum or ChatbotData")
    parser.add_argument("--split", default="test")
    parser.add_argument("--prompts", type=int, default=64, help="how many, from the first")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[16], help="prompts at a time, or several such")
    parser.add_argument("--decoding", nargs="+", choices=("greedy", "sampled"), default=["greedy"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=ON_CPU, metavar="METHOD")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parse(parser, argv, on_gpu=ON_GPU)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(args.model) if args.model else Path(folder) / "base"
        if args.model is None:
            make_shaped(args.architecture, read_corpus([str(SAMPLE)]), base, shape_of(args))
        finished = load_finished(str(base), device=args.device.name, dtype=args.weights)
    asked = from_dataset(args.data, args.split)
    style = resolve_style("auto", finished, turns=asked.turns, trained=True)
    prompts = PromptEncoder(finished, style, args.new_tokens).encode(asked.examples[: args.prompts])
    rows, left_out = [], []
    for decoding in args.decoding:
        options = GenerationOptions(
            max_new_tokens=args.new_tokens, min_new_tokens=args.new_tokens, do_sample=decoding == "sampled"
        )
        for batch_size in args.batch_size:
            bound = {name: bind(METHODS[name], finished, options, batch_size) for name in args.methods}
            found, missing = measure(bound, prompts, batch_size, args.device, args.rounds, same=decoding == "greedy")
            given = {"decoding": decoding, "batch": batch_size}
            rows += [
                {"method": row.pop("method"), **given, "new tokens/s": row["answers/s"] * args.new_tokens, **row}
                for row in found
            ]
            left_out += missing
    report(args, rows, title=f"{len(prompts)} prompts, {args.new_tokens} new tokens each", left_out=left_out)


def bind(method: Method, finished: FinishedModel, options: GenerationOptions, batch_size: int) -> Bound:
    """A method that wants the prompts alone."""
    return lambda prompts: method(finished, prompts, options, batch_size)


def measure(
    methods: dict[str, Bound],
    prompts: list[list[int]],
    brief: int,
    device: Device,
    rounds: int,
    *,
    same: bool,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Time every method in every round and summarise.

    Args:
        methods: Each gives its answers; the ratios are to the first.
        prompts: What to answer.
        brief: How many of them each method answers first, untimed.
        device: Whose clock to read.
        rounds: How often they take turns.
        same: Count the answers that are the first method's; random ones are not.

    Returns:
        A row a method, and the methods that cannot run here.
    """

    def timed(method: Bound, asked: list[list[int]]) -> tuple[float, list[str]]:
        start = device.now()
        answers = method(asked)
        return device.now() - start, answers

    def is_peer(name: str) -> bool:
        return not name.startswith("parley")

    warmed = Turns({name: partial(timed, method, prompts[:brief]) for name, method in methods.items()}, is_peer)
    warmed.play(1)
    turns = Turns({name: partial(timed, methods[name], prompts) for name in warmed.methods}, is_peer, warmed.left_out)
    played = turns.play(rounds)
    first = next(iter(turns.methods))
    rows = []
    for name in turns.methods:
        row: dict[str, Any] = {"method": name}
        answers = played[-1][name][1]
        row["answers/s"] = len(answers) / statistics.median(found[name][0] for found in played)
        row[f"× {first}"] = statistics.median(found[first][0] / found[name][0] for found in played)
        if same:
            row["same answers"] = sum(mine == other for mine, other in zip(answers, played[-1][first][1], strict=True))
        rows.append(row)
    return rows, turns.left_out
