"""Prompt and answer as one text, and its token ids: as a reward model learns from them, a classifier scores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn

from src.errors import ParleyError

if TYPE_CHECKING:  # a reward without a model does without transformers
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

Text = Literal["prompt_and_response", "response"]
UNKNOWN_LENGTH = 512  # of a text, where neither model nor tokenizer knows a limit


def check_text(text: str) -> None:
    """Complain about a `text` argument that `texts_to_score` does not know."""
    if text not in get_args(Text):
        raise ParleyError(f"there is no text {text!r}; choose {' or '.join(get_args(Text))}.")


def texts_to_score(prompts: Sequence[str], responses: Sequence[str], text: Text) -> list[str]:
    """What a reward reads of each pair: prompt, a space and the response, or the response alone."""
    if text == "response":
        return list(responses)
    return [f"{prompt} {response}" for prompt, response in zip(prompts, responses, strict=True)]


@dataclass(frozen=True)
class TextReader:
    """How a classifier reads texts.

    Attributes:
        tokenizer: Which cuts off a text's beginning, never the response at its end.
        max_length: Tokens of a text at most, special tokens included.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts as they are: the name of a special token in one, such as `</s>`, is text like any other.

        Args:
            texts: What to classify. One without tokens is one token of padding, alone as in a batch.
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
    """The reader of a classifier that is to be made of a base model, or is one; its weights are not read.

    Args:
        name_or_path: A model directory, a hub name or an adapter directory.
        gguf_file: The GGUF file's name within the directory.
        max_length: Tokens of a text at most; as many as the classifier can read when left out.
        trust_remote_code: Run the code that the model's directory brings, as the user asked.

    Raises:
        ParleyError: There is no such model, or its architecture has no classifier.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from src.models.loading import load_config
    from src.models.sources import reading

    config = load_config(name_or_path, gguf_file, outputs=1, trust_remote_code=trust_remote_code)
    with reading("the model", str(name_or_path)), torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
    tokenizer = load_classifier_tokenizer(name_or_path, config, gguf_file, trust_remote_code=trust_remote_code)
    return reader_of(model, tokenizer, max_length)


def reader_of(model: Any, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> TextReader:
    """The reader of a classifier that is there.

    Args:
        model: The classifier, with or without an adapter.
        tokenizer: As `load_classifier_tokenizer` gives it.
        max_length: Tokens of a text at most; as many as the classifier can read when left out.
    """
    most = _readable(model, tokenizer)
    return TextReader(tokenizer, min(max_length or most, most))


def load_classifier_tokenizer(
    name_or_path: str, config: PreTrainedConfig, gguf_file: str | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a classifier's tokenizer, and let the classifier agree on the padding.

    Args:
        name_or_path: A model directory, a hub name or an adapter directory.
        config: The classifier's; it learns the padding token.
        gguf_file: The GGUF file's name within the directory.
        trust_remote_code: Run the code that the model's directory brings, as the user asked.

    Raises:
        ParleyError: There is no tokenizer, or no token that could pad.
    """
    from src.models.texts import tell_names_from_tokens
    from src.models.tokenizer import read_tokenizer

    tokenizer = read_tokenizer(name_or_path, gguf_file, trust_remote_code=trust_remote_code)
    tokenizer.truncation_side = "left"
    tokenizer.padding_side = "right"  # where a model that takes its answer from the last token finds it
    _settle_padding(config.get_text_config(), tokenizer, name_or_path)
    tell_names_from_tokens(tokenizer)
    if config.is_encoder_decoder:
        _close_texts(config.eos_token_id, tokenizer)
    return tokenizer


def _settle_padding(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Let model and tokenizer agree on a padding token: the one's, the other's or, as for GPT-2, EOS."""
    if tokenizer.pad_token is None and config.pad_token_id is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    elif tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ParleyError(f"the tokenizer of the classifier {name!r} has no padding token; set its pad_token.")
    config.pad_token_id = tokenizer.pad_token_id


def _close_texts(eos: int | list[int] | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Have the tokenizer end texts with EOS, as T5's and BART's do and KoBART's does not.

    A classifier with a decoder takes its answer from there, in stock transformers too, so it is the tokenizer's to add.
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
    """How many tokens the classifier can read; a tokenizer that does not know says 10³⁰."""
    limits = [tokenizer.model_max_length]
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits += [positions] if positions is not None else []
    for module_name, module in model.named_modules():
        if module_name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from behind its padding index, which costs that many places.
            taken = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - taken)
    readable = min(limits)
    return readable if readable < 1_000_000 else UNKNOWN_LENGTH
