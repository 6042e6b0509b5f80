"""Make a small base model and its tokenizer from scratch, as a plain Hugging Face directory.

The tokenizer (byte-level BPE) is trained on the corpus; the weights are random. The directory can be used wherever a
base model can: `--model.init_args.model_name_or_path DIR`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import src.datamodules
from src.commands.arguments import number
from src.ranges import Range

ARCHITECTURES = ("t5", "bart", "gpt2", "llama")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="t5", help="what kind of model")
    parser.add_argument(
        "--corpus",
        nargs="+",
        metavar="FILE",
        default=[str(Path(src.datamodules.__file__).parent / "sample")],
        help="text, JSONL or CSV files, or directories of them, to train the tokenizer on",
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="where the model goes")
    parser.add_argument("--hidden-size", type=up_to(2**16), default=256, metavar="N", help="width")
    parser.add_argument(
        "--layers",
        type=up_to(1000),
        default=4,
        metavar="N",
        help="blocks; in an encoder-decoder, in each of the two",
    )
    parser.add_argument("--heads", type=up_to(2**12), default=4, metavar="N", help="attention heads")
    parser.add_argument(
        "--feed-forward-size",
        type=up_to(2**20),
        metavar="N",
        help="four times the width when left out",
    )
    parser.add_argument(
        "--vocab-size",
        type=up_to(2**24),
        default=8000,
        metavar="N",
        help="the most tokens of the tokenizer",
    )
    parser.add_argument(
        "--max-positions",
        type=up_to(2**24),
        metavar="N",
        help="longest sequence, 1024 if left out (not for t5)",
    )
    parser.add_argument(
        "--untied-head", action="store_true", help="t5 only: gated GELU and an untied output head, as in FLAN-T5"
    )
    parser.add_argument("--seed", type=number(int, Range(0, 2**32)), default=0, help="of the random weights")
    parser.add_argument("--overwrite", action="store_true", help="replace a directory that is not empty")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def up_to(most: int) -> Callable[[str], float]:
    """A parser of whole numbers from 1 to `most`, for argparse's `type`."""
    return number(int, Range(1, most=most))


def run(args: argparse.Namespace) -> None:
    from src.commands.output import show
    from src.models.corpus import read_corpus
    from src.models.lora import count_parameters
    from src.models.scratch import Sizes, make_base_model

    sizes = Sizes(
        hidden_size=args.hidden_size,
        layers=args.layers,
        heads=args.heads,
        feed_forward_size=args.feed_forward_size,
        vocab_size=args.vocab_size,
        max_positions=args.max_positions,
        untied_head=args.untied_head,
    )
    model, tokenizer = make_base_model(
        args.architecture, read_corpus(args.corpus), args.output, sizes, seed=args.seed, overwrite=args.overwrite
    )
    summary = {
        "architecture": args.architecture,
        "parameters": count_parameters(model).total,
        "vocabulary": len(tokenizer),
        "directory": args.output,
    }
    show([summary], as_json=args.json)
