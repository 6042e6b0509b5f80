"""Decoding options, and what they are in transformers' terms."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from peft import PeftModel
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from src.errors import ParleyError
from src.models.endings import TOKEN_SETTINGS, token_settings
from src.models.logits import BannedTexts, SeededSampling
from src.models.static_decoder import Engine
from src.models.tying import base_model, positions
from src.ranges import ANY, COUNT, NOT_NEGATIVE, POSITIVE, SEED, Range, refuse_outside

RANGES = {
    **dict.fromkeys(("max_new_tokens", "num_beams", "num_return_sequences"), COUNT),
    **dict.fromkeys(("min_new_tokens", "top_k", "no_repeat_ngram_size"), NOT_NEGATIVE),
    **dict.fromkeys(("temperature", "length_penalty"), ANY),
    "top_p": Range(0, most=1, above=True, note="1 does not limit"),
    "repetition_penalty": Range(0, above=True, note="1 is none"),
    "seed": SEED,
}
TRANSFORMERS_TOP_K = 50  # transformers' default


@dataclass
class GenerationOptions:
    """How to decode; greedy search when nothing is set.

    Attributes:
        max_new_tokens: The most tokens to generate, the prompt not counted.
        min_new_tokens: Tokens to generate before EOS is allowed.
        num_beams: Beams of the beam search; 1 is greedy search or plain sampling.
        do_sample: Draw tokens at random instead of taking the likeliest.
        temperature: Divides the logits before sampling; below 1 favours likely tokens.
        top_k: Sample among the k likeliest tokens; 0 does not limit.
        top_p: Sample among the likeliest tokens that together have this probability; 1 does not limit.
        no_repeat_ngram_size: No n-gram of this size twice; 0 allows all.
        repetition_penalty: Above 1 makes tokens that occurred less likely.
        length_penalty: Above 0 favours longer beams.
        num_return_sequences: Answers per prompt.
        bad_words: Texts that are never generated, not even inside longer words; the name of a special token such as
            `<unk>` bans that token.
        stop_strings: Texts that end an answer and are not part of it.
        seed: Makes sampling repeatable, independent of other random numbers in the process. Without beams each prompt
            has its own random stream, so that its answers do not depend on the rest of the batch.
        engine: How tokens are computed: "plain", as transformers does; or "static", with a cache of fixed size, whose
            steps a GPU replays as graphs (see `StaticDecoder`). Both take the same tokens, up to rounding. Answers that
            are shown token by token are computed plainly.
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
    seed: int | None = None
    engine: Engine = "plain"

    def __post_init__(self) -> None:
        refuse_outside(self, RANGES)
        if self.do_sample:
            POSITIVE.refuse("temperature", self.temperature)
        if self.min_new_tokens > self.max_new_tokens:
            raise ParleyError(
                f"min_new_tokens is {self.min_new_tokens} and max_new_tokens {self.max_new_tokens}; swap them."
            )
        if self.num_return_sequences > self.num_beams and (self.num_beams > 1 or not self.do_sample):
            sampling = "" if self.do_sample else " and no sampling"
            raise ParleyError(
                f"num_return_sequences is {self.num_return_sequences} with num_beams {self.num_beams}{sampling}; "
                "raise num_beams, or sample without beams (do_sample)."
            )
        if self.engine == "static" and (self.num_beams > 1 or self.stop_strings):
            raise ParleyError("engine is static, which takes neither num_beams nor stop_strings; use plain for these.")
        if not all(text for text in (*self.bad_words, *self.stop_strings)):
            raise ParleyError("bad_words and stop_strings must not hold an empty text; leave it out.")

    def to_generation_config(
        self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
    ) -> GenerationConfig:
        """The options as transformers' GenerationConfig, with the model's special tokens."""
        config = token_settings(model, tokenizer)
        options: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": self.do_sample,
            "num_return_sequences": self.num_return_sequences,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "repetition_penalty": self.repetition_penalty,
        }
        options |= {"min_new_tokens": self.min_new_tokens} if self.min_new_tokens else {}
        if self.num_beams > 1:
            options |= {"length_penalty": self.length_penalty, "early_stopping": True}
        if self.do_sample:
            options |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        if banned := [_token_id(word, tokenizer) for word in self.bad_words if _is_token(word, tokenizer)]:
            options["suppress_tokens"] = [*(config.suppress_tokens or []), *banned]
        if self.stop_strings:
            options["stop_strings"] = self.stop_strings
        config.update(**options)
        return config

    def to_logits_processors(
        self, tokenizer: PreTrainedTokenizerBase, start: int, numbers: Sequence[int]
    ) -> LogitsProcessorList:
        """Processors for what GenerationConfig cannot express: banned texts, and a random stream for each row.

        Args:
            tokenizer: The model's.
            start: The number of tokens in the generated rows before the answer.
            numbers: The prompts' numbers, on which their random streams depend.
        """
        processors = LogitsProcessorList()
        if texts := [word for word in self.bad_words if not _is_token(word, tokenizer)]:
            processors.append(BannedTexts(texts, tokenizer, start))
        if self.has_streams:
            processors.append(
                SeededSampling(
                    self.seed or 0, numbers, self.num_return_sequences, self.temperature, self.top_k, self.top_p
                )
            )
        return processors

    @property
    def has_streams(self) -> bool:
        """Whether each row has a random stream of its own, in which `SeededSampling` draws."""
        return self.seed is not None and self.do_sample and self.num_beams == 1


@dataclass
class ModelOptions(GenerationOptions):
    """A model's own generation settings, for use when no decoding option is given.

    Settings of transformers that `GenerationOptions` does not have are applied too.

    Attributes:
        own: The model's GenerationConfig.
    """

    own: GenerationConfig = field(default_factory=GenerationConfig)

    @property
    def further(self) -> dict[str, Any]:
        """The settings that `GenerationOptions` does not have."""
        names = {item.name for item in fields(GenerationOptions)} | {"max_length", "min_length", "eos_token_id"}
        names |= {"pad_token_id", "early_stopping", "transformers_version", *TOKEN_SETTINGS}
        names |= {"use_cache", "return_dict_in_generate"}  # these do not affect the text
        said = self.own.to_diff_dict()
        return {
            name: value for name, value in said.items() if name not in names and not name.startswith(("_", "output_"))
        }

    @classmethod
    def of(cls, model: PreTrainedModel | PeftModel) -> ModelOptions:
        """Read a model's settings.

        Raises:
            ParleyError: They contradict each other.
        """
        base = base_model(model)
        own = base.generation_config
        named = {item.name for item in fields(GenerationOptions)} - {"bad_words", "stop_strings", "seed"}
        said = {name: value for name in named if (value := getattr(own, name, None)) is not None}
        if said.get("do_sample") and own.top_k is None:
            said["top_k"] = TRANSFORMERS_TOP_K
        if isinstance(stops := getattr(own, "stop_strings", None), (str, list)):
            said["stop_strings"] = [stops] if isinstance(stops, str) else list(stops)
        # max_length and min_length include the start token or the prompt, whose length is not known here.
        longest, shortest = getattr(own, "max_length", None), getattr(own, "min_length", None)
        window = positions(base) or math.inf
        if base.config.is_encoder_decoder:
            said = ({"max_new_tokens": int(max(min(longest, window) - 1, 1))} if longest else {}) | said
            said = ({"min_new_tokens": max(shortest - 1, 0)} if shortest else {}) | said
        elif longest:
            said = {"max_new_tokens": int(max(min(longest, window) // 2, 1))} | said
        try:
            return cls(**said, own=copy.deepcopy(own))
        except ParleyError as error:
            raise ParleyError(
                f"the generation settings of {base.name_or_path!r} contradict themselves ({error}) "
                "say how to decode, such as --preset greedy."
            ) from error

    def to_generation_config(
        self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
    ) -> GenerationConfig:
        """The options as GenerationConfig, with the settings that `GenerationOptions` does not have."""
        config = super().to_generation_config(model, tokenizer)
        config.update(**self.further)
        if self.num_beams > 1 and self.num_beams == self.own.num_beams:
            config.early_stopping = self.own.early_stopping or False
        return config


def _is_token(word: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word is the name of a token rather than plain text."""
    return word in tokenizer.all_special_tokens or word in tokenizer.get_added_vocab()


def _token_id(word: str, tokenizer: PreTrainedTokenizerBase) -> int:
    id = tokenizer.convert_tokens_to_ids(word)
    assert isinstance(id, int)
    return id
