"""Makes small base models from scratch: a tokenizer trained on a corpus, random weights, a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    set_seed,
)

from src.errors import ParleyError
from src.models.loading import model_from_config
from src.models.saving import check_output, save_model

BYTES = 256


@dataclass(frozen=True)
class Architecture:
    """The recipe of one kind of base model.

    Attributes:
        special_tokens: The special tokens, in the order of their ids.
        roles: Which of them is bos, eos, pad and unk.
        template: The template of `tokenizers.processors` for special tokens around a text; empty for none.
        configure: Makes the configuration from sizes, vocabulary size and token ids.
        has_positions: Whether the number of positions is limited.
    """

    special_tokens: tuple[str, ...]
    roles: dict[str, str]
    template: tuple[str, str] | None
    configure: Callable[[Sizes, int, dict[str, int]], PreTrainedConfig]
    has_positions: bool


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model.

    Attributes:
        hidden_size: Width of the residual stream.
        layers: Blocks; in an encoder-decoder, in each of the two.
        heads: Attention heads; their number must divide the width.
        feed_forward_size: Width within a block's feed-forward layer; four times `hidden_size` when None.
        vocab_size: The most tokens that the tokenizer may have.
        max_positions: The longest sequence, for architectures with a limit; T5 has none.
        untied_head: T5 only: gated GELU and an untied head, as in T5 v1.1 and FLAN-T5.
    """

    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    feed_forward_size: int | None = None
    vocab_size: int = 8000
    max_positions: int | None = None
    untied_head: bool = False

    @property
    def feed_forward(self) -> int:
        """The feed-forward width, with its default."""
        return self.feed_forward_size or 4 * self.hidden_size

    @property
    def positions(self) -> int:
        """The longest sequence, with its default."""
        return self.max_positions or 1024


def make_base_model(
    architecture: str,
    corpus: Iterable[str],
    directory: str | Path,
    sizes: Sizes | None = None,
    *,
    seed: int = 0,
    overwrite: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Train a tokenizer, draw random weights and save both.

    Args:
        architecture: One of `ARCHITECTURES`.
        corpus: Texts to learn the tokenizer from.
        directory: The directory to write.
        sizes: The sizes; the defaults of `Sizes` when None.
        seed: The seed of the weights; training the tokenizer is deterministic.
        overwrite: Replace a directory that is not empty.

    Returns:
        The model and its tokenizer, as saved.

    Raises:
        ParleyError: When the sizes do not fit together, the corpus is empty or the directory is taken.
    """
    sizes = sizes or Sizes()
    kind = ARCHITECTURES.get(architecture)
    if kind is None:
        raise ParleyError(f"there is no architecture {architecture}; choose one of: {', '.join(ARCHITECTURES)}.")
    check_sizes(architecture, sizes)
    check_output(directory, overwrite)
    tokenizer = train_tokenizer(kind, corpus, sizes)
    ids = {role: tokenizer.get_vocab()[token] for role, token in kind.roles.items()}
    config = kind.configure(sizes, len(tokenizer), ids)
    with torch.random.fork_rng():
        set_seed(seed)
        model = model_from_config(config)
    save_model(model, tokenizer, directory, overwrite=overwrite)
    return model, tokenizer


def check_sizes(architecture: str, sizes: Sizes) -> None:
    """Refuse invalid sizes.

    Raises:
        ParleyError: A size is invalid; the message names it.
    """
    kind = ARCHITECTURES[architecture]
    for name in ("hidden_size", "layers", "heads", "feed_forward", "positions"):
        if getattr(sizes, name) < 1:
            raise ParleyError(f"the {name.replace('_', ' ')} must be at least 1.")
    if sizes.hidden_size % sizes.heads:
        raise ParleyError(
            f"the hidden size {sizes.hidden_size} is not divisible by {sizes.heads} heads; "
            f"{sizes.hidden_size // sizes.heads * sizes.heads or sizes.heads} would be."
        )
    if architecture == "llama" and sizes.hidden_size // sizes.heads % 2:
        raise ParleyError("Llama's rotary positions need an even width per head; change the hidden size or the heads.")
    smallest = BYTES + len(kind.special_tokens)
    if sizes.vocab_size < smallest:
        raise ParleyError(
            f"--vocab-size is {sizes.vocab_size}; it must be {smallest} or more, for bytes and special tokens alone."
        )
    if sizes.max_positions is not None and not kind.has_positions:
        raise ParleyError(f"{architecture} has relative positions without an end; leave --max-positions out.")
    if sizes.untied_head and architecture != "t5":
        raise ParleyError("--untied-head is for t5 (v1.1 and FLAN-T5); leave it out.")


def train_tokenizer(kind: Architecture, corpus: Iterable[str], sizes: Sizes) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which restores any text exactly, whatever the corpus.

    Each digit is a separate token, so that a model can copy unseen times and prices.

    Raises:
        ParleyError: When the corpus has no text.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=kind.roles["unk"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = [text for text in corpus if text.strip()]
    if not texts:
        raise ParleyError("the corpus has no text in it; give files with some.")
    trainer = trainers.BpeTrainer(
        vocab_size=sizes.vocab_size,
        min_frequency=2,
        special_tokens=list(kind.special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    if kind.template:
        single, pair = kind.template
        specials = [(token, tokenizer.token_to_id(token)) for token in kind.special_tokens if token in single]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **({"model_max_length": sizes.positions} if kind.has_positions else {}),
        **{f"{role}_token": token for role, token in kind.roles.items()},
    )


def _t5(sizes: Sizes, vocab_size: int, ids: dict[str, int]) -> PreTrainedConfig:
    return T5Config.from_dict(
        {
            "vocab_size": vocab_size,
            "d_model": sizes.hidden_size,
            "d_kv": sizes.hidden_size // sizes.heads,
            "d_ff": sizes.feed_forward,
            "num_layers": sizes.layers,
            "num_heads": sizes.heads,
            "feed_forward_proj": "gated-gelu" if sizes.untied_head else "relu",
            "tie_word_embeddings": not sizes.untied_head,
            "pad_token_id": ids["pad"],
            "eos_token_id": ids["eos"],
            "decoder_start_token_id": ids["pad"],
        }
    )


def _bart(sizes: Sizes, vocab_size: int, ids: dict[str, int]) -> PreTrainedConfig:
    return BartConfig(
        vocab_size=vocab_size,
        d_model=sizes.hidden_size,
        encoder_layers=sizes.layers,
        decoder_layers=sizes.layers,
        encoder_attention_heads=sizes.heads,
        decoder_attention_heads=sizes.heads,
        encoder_ffn_dim=sizes.feed_forward,
        decoder_ffn_dim=sizes.feed_forward,
        max_position_embeddings=sizes.positions,
        bos_token_id=ids["bos"],
        pad_token_id=ids["pad"],
        eos_token_id=ids["eos"],
        decoder_start_token_id=ids["eos"],
        forced_eos_token_id=None,
    )


def _gpt2(sizes: Sizes, vocab_size: int, ids: dict[str, int]) -> PreTrainedConfig:
    return GPT2Config(
        vocab_size=vocab_size,
        n_embd=sizes.hidden_size,
        n_layer=sizes.layers,
        n_head=sizes.heads,
        n_inner=sizes.feed_forward,
        n_positions=sizes.positions,
        bos_token_id=ids["bos"],
        pad_token_id=ids["pad"],
        eos_token_id=ids["eos"],
    )


def _llama(sizes: Sizes, vocab_size: int, ids: dict[str, int]) -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.feed_forward,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=sizes.positions,
        tie_word_embeddings=True,  # as in small Llamas (SmolLM2), whose parameters would mostly be the head
        bos_token_id=ids["bos"],
        pad_token_id=ids["pad"],
        eos_token_id=ids["eos"],
    )


_CAUSAL_TOKENS = ("<s>", "</s>", "<pad>", "<unk>")
_ALL_ROLES = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>"}
ARCHITECTURES = {
    "t5": Architecture(
        special_tokens=("<pad>", "</s>", "<unk>"),
        roles={"eos": "</s>", "pad": "<pad>", "unk": "<unk>"},
        template=("$A </s>", "$A </s> $B </s>"),
        configure=_t5,
        has_positions=False,
    ),
    "bart": Architecture(
        special_tokens=("<s>", "<pad>", "</s>", "<unk>"),
        roles=_ALL_ROLES,
        template=("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
        configure=_bart,
        has_positions=True,
    ),
    "gpt2": Architecture(_CAUSAL_TOKENS, _ALL_ROLES, None, _gpt2, has_positions=True),
    "llama": Architecture(_CAUSAL_TOKENS, _ALL_ROLES, None, _llama, has_positions=True),
}
