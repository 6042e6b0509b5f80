"""Prompt and answer as one text, and its token ids, the same for training and use of reward models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn

from src.errors import ParleyError

if TYPE_CHECKING:  # rewards without a model do not import transformers
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

Text = Literal["prompt_and_response", "response"]
UNKNOWN_LENGTH = 512  # the limit if neither model nor tokenizer has one


def check_text(text: str) -> None:
    """Refuse a `text` argument that `texts_to_score` does not support."""
    if text not in get_args(Text):
        raise ParleyError(f"there is no text {text!r}; choose {' or '.join(get_args(Text))}.")


def texts_to_score(prompts: Sequence[str], responses: Sequence[str], text: Text) -> list[str]:
    """The texts that a reward scores: prompt, a space and the response, or the response alone."""
    if text == "response":
        return list(responses)
    return [f"{prompt} {response}" for prompt, response in zip(prompts, responses, strict=True)]


@dataclass(frozen=True)
class TextReader:
    """Encodes texts for a classifier.

    Attributes:
        tokenizer: The tokenizer, which truncates on the left, so that the response at the end is kept.
        max_length: The most tokens of a text, special tokens included.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts; names of special tokens in them, such as `</s>`, are plain text.

        Args:
            texts: The texts. A text without tokens becomes one token of padding.
        """
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_length, split_special_tokens=True, verbose=False
        )
        return [ids or [self.tokenizer.pad_token_id] for ids in encoded["input_ids"]]


def load_reader(
    name_or_path: str, *, gguf_file: str | None = None, max_length: int | None = None, trust_remote_code: bool = False
) -> TextReader:
    """The reader for a classifier, or for one to be made from a base model; weights are not loaded.

    Args:
        name_or_path: A model directory, a hub name or an adapter directory.
        gguf_file: The GGUF file's name within the directory.
        max_length: The most tokens of a text; the classifier's own limit when left out.
        trust_remote_code: Allow code from the model's directory to run.

    Raises:
        ParleyError: There is no such model, or transformers has no classifier for its architecture.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from src.models.config import load_config
    from src.models.sources import reading

    config = load_config(name_or_path, gguf_file, outputs=1, trust_remote_code=trust_remote_code)
    with reading("the model", str(name_or_path)), torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
    tokenizer = load_classifier_tokenizer(name_or_path, config, gguf_file, trust_remote_code=trust_remote_code)
    return reader_of(model, tokenizer, max_length)


def reader_of(model: Any, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> TextReader:
    """The reader for a loaded classifier.

    Args:
        model: The classifier, with or without an adapter.
        tokenizer: A tokenizer from `load_classifier_tokenizer`.
        max_length: The most tokens of a text; the classifier's own limit when left out.
    """
    most = _readable(model, tokenizer)
    return TextReader(tokenizer, min(max_length or most, most))


def load_classifier_tokenizer(
    name_or_path: str, config: PreTrainedConfig, gguf_file: str | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a classifier's tokenizer, and set the same padding token for tokenizer and classifier.

    Args:
        name_or_path: A model directory, a hub name or an adapter directory.
        config: The classifier's configuration, whose padding token is set.
        gguf_file: The GGUF file's name within the directory.
        trust_remote_code: Allow code from the model's directory to run.

    Raises:
        ParleyError: There is no tokenizer, or no token that could serve as padding.
    """
    from src.models.texts import tell_names_from_tokens
    from src.models.tokenizer import read_tokenizer

    tokenizer = read_tokenizer(name_or_path, gguf_file, trust_remote_code=trust_remote_code)
    tokenizer.truncation_side = "left"
    tokenizer.padding_side = "right"  # decoder-only classifiers read the last token before the padding
    _settle_padding(config.get_text_config(), tokenizer, name_or_path)
    tell_names_from_tokens(tokenizer)
    if config.is_encoder_decoder:
        _close_texts(config.eos_token_id, tokenizer)
    return tokenizer


def _settle_padding(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Set one padding token for model and tokenizer: the tokenizer's, the model's or, as for GPT-2, EOS."""
    if tokenizer.pad_token is None and config.pad_token_id is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    elif tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ParleyError(f"the tokenizer of the classifier {name!r} has no padding token; set its pad_token.")
    config.pad_token_id = tokenizer.pad_token_id


def _close_texts(eos: int | list[int] | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the tokenizer add EOS to texts, which T5's and BART's do but KoBART's does not.

    A classifier with a decoder reads its output at EOS, in plain transformers too.
    """
    from tokenizers.processors import Sequence as Processors
    from tokenizers.processors import TemplateProcessing

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(eos, int) or eos in tokenizer("")["input_ids"]:
        return
    token = str(tokenizer.convert_ids_to_tokens(eos))
    closing = TemplateProcessing(single=f"$A {token}", pair=f"$A {token} $B {token}", special_tokens=[(token, eos)])
    before = [backend.post_processor] if backend.post_processor is not None else []
    backend.post_processor = Processors([*before, closing])


def _readable(model: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that the classifier can read; a tokenizer without a limit has 10³⁰."""
    limits = [tokenizer.model_max_length]
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits += [positions] if positions is not None else []
    for module_name, module in model.named_modules():
        if module_name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa's positions start after its padding index, so that fewer can be used.
            taken = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - taken)
    readable = min(limits)
    return readable if readable < 1_000_000 else UNKNOWN_LENGTH
