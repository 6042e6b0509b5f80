"""The sizes of a benchmark's models as options, and models made from them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, set_seed

from src.models.loading import model_from_config
from src.models.saving import save_model
from src.models.scratch import ARCHITECTURES, Sizes, check_sizes, train_tokenizer

# FLAN-T5-base: gated GELU, an untied head, a vocabulary of 32,128 of which its tokenizer has 32,100. The corpora here
# give fewer; what is left of the vocabulary is never a label, and costs what it costs there.
FLAN_T5_BASE: dict[str, Any] = {
    "hidden_size": 768,
    "layers": 12,
    "heads": 12,
    "feed_forward_size": 2048,
    "vocab_size": 32_100,
    "padded_vocabulary": 32_128,
    "gated": True,
}
# A decoder-only model of that size: as many blocks as FLAN-T5-base has on both sides together.
DECODER_OF_T5_BASE: dict[str, Any] = {
    "hidden_size": 768,
    "layers": 24,
    "heads": 12,
    "vocab_size": 32_100,
    "padded_vocabulary": 32_128,
}
# Llama 3.2 1B.
LLAMA_1B: dict[str, Any] = {
    "hidden_size": 2048,
    "layers": 16,
    "heads": 32,
    "key_value_heads": 8,
    "feed_forward_size": 8192,
    "vocab_size": 32_000,
    "padded_vocabulary": 128_256,
}


@dataclass(frozen=True)
class Shape:
    """What a model is made from.

    Attributes:
        sizes: Those of `parley init`; what is for a T5 alone counts for a T5 alone.
        padded_vocabulary: Rows of the embedding at least; as many as the tokenizer has tokens when None.
        key_value_heads: Heads of keys and values, of a Llama; as many as there are heads when None.
    """

    sizes: Sizes
    padded_vocabulary: int | None = None
    key_value_heads: int | None = None


def add_shape(
    parser: argparse.ArgumentParser, *, hidden_size: int, layers: int, heads: int, vocab_size: int, gated: bool = False
) -> None:
    """Add the options of a model from scratch, with these defaults."""
    group = parser.add_argument_group("the model from scratch")
    group.add_argument("--hidden-size", type=int, default=hidden_size, help=f"its width; {hidden_size} on a CPU")
    group.add_argument("--layers", type=int, default=layers, help="its blocks; of an encoder-decoder, on either side")
    group.add_argument("--heads", type=int, default=heads)
    group.add_argument("--key-value-heads", type=int, help="of a Llama; as many as there are heads when left out")
    group.add_argument("--feed-forward-size", type=int, help="four times the width when left out")
    group.add_argument("--vocab-size", type=int, default=vocab_size, help="tokens that its tokenizer has at most")
    group.add_argument("--padded-vocabulary", type=int, help="rows of its embedding at least")
    group.add_argument(
        "--gated", action=argparse.BooleanOptionalAction, default=gated, help="of a T5: as v1.1 and FLAN-T5 are"
    )


def shape_of(args: argparse.Namespace) -> Shape:
    """The shape that options say."""
    sizes = Sizes(
        hidden_size=args.hidden_size,
        layers=args.layers,
        heads=args.heads,
        feed_forward_size=args.feed_forward_size,
        vocab_size=args.vocab_size,
        untied_head=args.gated,
    )
    return Shape(sizes, args.padded_vocabulary, args.key_value_heads)


def configuration(architecture: str, shape: Shape, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """A model's configuration.

    Args:
        architecture: One of `ARCHITECTURES`.
        shape: Of the model.
        tokenizer: One of that architecture.
    """
    kind = ARCHITECTURES[architecture]
    ids = {role: tokenizer.get_vocab()[token] for role, token in kind.roles.items()}
    config = kind.configure(_sizes_for(architecture, shape), max(len(tokenizer), shape.padded_vocabulary or 0), ids)
    if shape.key_value_heads is not None:
        config.num_key_value_heads = shape.key_value_heads
    return config


def make_shaped(architecture: str, corpus: Iterable[str], directory: Path, shape: Shape) -> int:
    """Train a tokenizer, draw random weights and save both.

    Args:
        architecture: One of `ARCHITECTURES`.
        corpus: Texts for the tokenizer.
        directory: The directory to write.
        shape: Of the model.

    Returns:
        Its number of parameters.
    """
    sizes = _sizes_for(architecture, shape)
    check_sizes(architecture, sizes)
    tokenizer = train_tokenizer(ARCHITECTURES[architecture], corpus, sizes)
    with torch.random.fork_rng():
        set_seed(0)
        model = model_from_config(configuration(architecture, shape, tokenizer))
    save_model(model, tokenizer, directory)
    return sum(parameter.numel() for parameter in model.parameters())


def _sizes_for(architecture: str, shape: Shape) -> Sizes:
    return replace(shape.sizes, untied_head=shape.sizes.untied_head and architecture == "t5")
