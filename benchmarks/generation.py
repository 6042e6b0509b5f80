"""Generation: answers a second in Parley's batches, in batches as they come, and one prompt at a time.

Same model, prompts, greedy decoding and number of new tokens, through transformers' own `generate` where it is not
Parley's way. The methods take turns, each round in another order; the ratios are medians over rounds. Every method's
answers must be the same.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from src.commands.output import show
from src.inference.answers import answer_all
from src.inference.examples import from_dataset
from src.inference.loading import FinishedModel, load_finished
from src.inference.prompts import PromptEncoder, resolve_style
from src.models.corpus import read_corpus
from src.models.generation import GenerationOptions
from src.models.scratch import Sizes, make_base_model

SAMPLE = Path(__file__).resolve().parent.parent / "src" / "datamodules" / "sample"
Method = Callable[[FinishedModel, list[list[int]], GenerationOptions, int], list[str]]


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
            do_sample=False,
            pad_token_id=finished.tokenizer.pad_token_id,
        )
        answers = output[:, 1 if finished.is_encoder_decoder else inputs["input_ids"].shape[1] :]
        texts += [text.strip() for text in finished.tokenizer.batch_decode(answers, skip_special_tokens=True)]
    return texts


def by_length(
    finished: FinishedModel, prompts: list[list[int]], options: GenerationOptions, batch_size: int
) -> list[str]:
    """What `parley generate` does."""
    return [texts[0] for texts in answer_all(finished, prompts, options, batch_size=batch_size)]


METHODS: dict[str, Method] = {
    "one at a time": one_at_a_time,
    "batches as they come": in_order,
    "parley generate": by_length,
}


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks generation", description=__doc__)
    parser.add_argument("--model", help="a model to measure instead of one from scratch")
    parser.add_argument("--architecture", choices=("t5", "bart", "gpt2", "llama"), default="gpt2")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--data", default=str(SAMPLE), help="DialogSum or ChatbotData")
    parser.add_argument("--split", default="test")
    parser.add_argument("--prompts", type=int, default=64, help="how many, from the first")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        if args.model is None:
            sizes = Sizes(hidden_size=args.hidden_size, layers=args.layers, vocab_size=2000)
            make_base_model(args.architecture, read_corpus([str(SAMPLE)]), scratch, sizes, overwrite=True)
        finished = load_finished(args.model or scratch)
    options = GenerationOptions(max_new_tokens=args.new_tokens, min_new_tokens=args.new_tokens)
    asked = from_dataset(args.data, args.split)
    style = resolve_style("auto", finished, turns=asked.turns, trained=True)
    prompts = PromptEncoder(finished, style, args.new_tokens).encode(asked.examples[: args.prompts])
    rows = measure(finished, prompts, options, args.batch_size, args.rounds)
    show(rows, title=f"{len(prompts)} prompts, {args.new_tokens} new tokens each", as_json=args.json)


def measure(
    finished: FinishedModel, prompts: list[list[int]], options: GenerationOptions, batch_size: int, rounds: int
) -> list[dict[str, object]]:
    """Time every method in every round and summarise."""
    names = list(METHODS)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    answers: dict[str, list[str]] = {}
    for name in names:  # warm up, unmeasured
        METHODS[name](finished, prompts[:2], options, batch_size)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            answers[name] = METHODS[name](finished, prompts, options, batch_size)
            seconds[name].append(time.perf_counter() - start)
    baseline = answers[names[0]]
    return [
        {
            "method": name,
            "answers/s": len(prompts) / statistics.median(seconds[name]),
            "× one at a time": statistics.median(
                one / other for one, other in zip(seconds[names[0]], seconds[name], strict=True)
            ),
            "same answers": sum(mine == theirs for mine, theirs in zip(answers[name], baseline, strict=True)),
        }
        for name in names
    ]
