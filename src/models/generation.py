"""Decoding options and generating text with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from src.errors import ParleyError
from src.models.lora import merged


@dataclass
class GenerationOptions:
    """How to decode; greedy search when nothing is set.

    Attributes:
        max_new_tokens: Tokens to generate at most, the prompt not counted.
        min_new_tokens: Tokens to generate before EOS is allowed.
        num_beams: Beams of the beam search; 1 is greedy search or plain sampling.
        do_sample: Draw tokens at random instead of taking the likeliest.
        temperature: Divides the logits before sampling; below 1 is bolder towards likely tokens.
        top_k: Sample among the k likeliest tokens; 0 does not limit.
        top_p: Sample among the likeliest tokens that share this probability; 1 does not limit.
        no_repeat_ngram_size: No n-gram of this size twice; 0 allows all.
        repetition_penalty: Above 1 makes tokens that occurred less likely.
        length_penalty: Above 0 favours longer beams.
        num_return_sequences: Answers a prompt.
        bad_words: Words that are never generated.
        stop_strings: Texts that end an answer.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    num_return_sequences: int = 1
    bad_words: list[str] = field(default_factory=list)
    stop_strings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.num_return_sequences > self.num_beams and not self.do_sample:
            raise ParleyError(
                f"num_return_sequences is {self.num_return_sequences} with {self.num_beams} beams and no sampling; "
                "raise num_beams or set do_sample."
            )
        if self.do_sample and self.temperature <= 0:
            raise ParleyError(
                f"temperature is {self.temperature}; it must be above 0 (drop do_sample for greedy search)."
            )

    def to_generation_config(
        self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
    ) -> GenerationConfig:
        """The same as transformers' own configuration, with the model's special tokens."""
        own: GenerationConfig = model.generation_config
        options: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": self.do_sample,
            "num_return_sequences": self.num_return_sequences,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "repetition_penalty": self.repetition_penalty,
            "decoder_start_token_id": own.decoder_start_token_id,
            "bos_token_id": own.bos_token_id if own.bos_token_id is not None else tokenizer.bos_token_id,
            "eos_token_id": own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        if self.min_new_tokens:
            options["min_new_tokens"] = self.min_new_tokens
        if self.num_beams > 1:
            options |= {"length_penalty": self.length_penalty, "early_stopping": True}
        if self.do_sample:
            options |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        if self.bad_words:
            options["bad_words_ids"] = _bad_words_ids(self.bad_words, tokenizer)
        if self.stop_strings:
            options["stop_strings"] = self.stop_strings
        return GenerationConfig(**options)


def _bad_words_ids(words: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The ways to spell each word: at the start of a text and, for tokenizers that mark it, after a space."""
    spellings = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for word in words for text in (word, f" {word}")
    ]
    return [list(ids) for ids in dict.fromkeys(tuple(ids) for ids in spellings if ids)]


@torch.no_grad()
def generate_ids(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Tensor,
    prompt_attention_mask: Tensor,
    options: GenerationOptions,
    **kwargs: Any,
) -> Tensor:
    """Generate answers, with dropout off and LoRA folded into the weights meanwhile.

    Args:
        model: An encoder-decoder or decoder-only model, with or without adapter.
        tokenizer: Its tokenizer.
        prompt_ids: (batch, prompt); left-padded for a decoder-only model.
        prompt_attention_mask: (batch, prompt).
        options: How to decode.
        **kwargs: For transformers' `generate`, such as a `streamer`.

    Returns:
        (batch * num_return_sequences, new tokens) without the prompt, padded on the right.
    """
    training = model.training
    model.eval()
    try:
        with merged(model):
            output = model.generate(  # type: ignore[operator]
                input_ids=prompt_ids,
                attention_mask=prompt_attention_mask,
                generation_config=options.to_generation_config(model, tokenizer),
                **({"tokenizer": tokenizer} if options.stop_strings else {}),
                **kwargs,
            )
    finally:
        model.train(training)
    start = 1 if model.config.is_encoder_decoder else prompt_ids.shape[1]
    return output[:, start:]


def generate_text(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Tensor,
    prompt_attention_mask: Tensor,
    options: GenerationOptions,
) -> list[str]:
    """Generate answers as text; see `generate_ids`."""
    ids = generate_ids(model, tokenizer, prompt_ids, prompt_attention_mask, options)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [_until_stop(text, options.stop_strings).strip() for text in texts]


def _until_stop(text: str, stop_strings: list[str]) -> str:
    ends = [text.find(stop) for stop in stop_strings if stop in text]
    return text[: min(ends)] if ends else text
