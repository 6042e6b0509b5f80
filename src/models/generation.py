"""Decoding options, and generation of text with them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from src.errors import ParleyError
from src.models.adapter_checks import base_is_whole
from src.models.autocast import cast_once
from src.models.decoder import Decoder, takes_cache
from src.models.endings import TOKEN_SETTINGS, decode_answers, ending_ids, token_settings, until_end
from src.models.logits import BannedTexts, Recorder, SeededSampling
from src.models.lora import merged
from src.models.replayed import replayed
from src.models.static_decoder import Engine, refuse_engine
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
        if self._has_streams:
            processors.append(
                SeededSampling(
                    self.seed or 0, numbers, self.num_return_sequences, self.temperature, self.top_k, self.top_p
                )
            )
        return processors

    @property
    def _has_streams(self) -> bool:
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


@contextmanager
def _nothing_inherited(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Within the block keep transformers from filling unset options with the model's own settings."""
    base = base_model(model)
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Within the block seed torch's generator; its previous state is restored afterwards."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def generate_ids(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Tensor,
    prompt_attention_mask: Tensor,
    options: GenerationOptions,
    *,
    numbers: Sequence[int] | None = None,
    recorder: Recorder | None = None,
    **kwargs: Any,
) -> Tensor:
    """Generate answers, with dropout off and LoRA merged into the weights during generation.

    Args:
        model: An encoder-decoder or decoder-only model, with or without adapter.
        tokenizer: Its tokenizer.
        prompt_ids: (batch, prompt); left-padded for a decoder-only model.
        prompt_attention_mask: (batch, prompt).
        options: How to decode.
        numbers: The prompts' numbers among all prompts, on which seeded sampling depends; their indices in the batch
            when left out.
        recorder: Records which tokens could be drawn at each position, before top-k and top-p.
        **kwargs: For transformers' `generate`, such as a `streamer`.

    Returns:
        (batch * num_return_sequences, new tokens) without the prompt, padded on the right.
    """
    training = model.training
    start = 1 if model.config.is_encoder_decoder else prompt_ids.shape[1]
    config = options.to_generation_config(model, tokenizer)
    config.return_dict_in_generate = True
    if options._has_streams:  # temperature, top-k and top-p are applied by `SeededSampling`
        config.update(temperature=1.0, top_k=0, top_p=1.0)
    numbers = range(len(prompt_ids)) if numbers is None else numbers
    processors = options.to_logits_processors(tokenizer, start, numbers)
    if recorder is not None:  # before `SeededSampling`, which leaves only the drawn token
        processors.insert(len(processors) - int(options._has_streams), recorder)
    if config.num_beams == 1 and not base_is_whole(model):  # of which PEFT must see a row for each answer
        prompt_ids, prompt_attention_mask = (
            rows.repeat_interleave(config.num_return_sequences, dim=0) for rows in (prompt_ids, prompt_attention_mask)
        )
        config.num_return_sequences = 1
    model.eval()
    try:
        seeded = _seeded(options.seed if options.do_sample else None, prompt_ids.device)
        with merged(model), cast_once(model), _nothing_inherited(model), seeded:
            output = model.generate(  # type: ignore[operator]
                input_ids=prompt_ids,
                attention_mask=prompt_attention_mask,
                generation_config=config,
                logits_processor=processors,
                synced_gpus=False,  # also with sharding, since the weights have been gathered
                **({"tokenizer": tokenizer} if options.stop_strings else {}),
                **_how(model, prompt_ids, prompt_attention_mask, config, options, is_streamed="streamer" in kwargs),
                **kwargs,
            )
    except (RuntimeError, ValueError) as error:
        if complaint := _about_the_model(error):
            raise ParleyError(complaint) from error
        raise
    finally:
        model.train(training)
    ids = output.sequences[:, start:]
    if recorder is not None:
        recorder.finish(ids, output.get("beam_indices"))
    return ids


def _how(
    model: PreTrainedModel | PeftModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    config: GenerationConfig,
    options: GenerationOptions,
    *,
    is_streamed: bool,
) -> dict[str, Any]:
    """For `generate`: the engine's loop in place of its own, or what spares its own reading prompts several times."""
    if options.engine == "plain" or is_streamed:
        return _read_once(model, prompt_ids, prompt_mask, config)
    refuse_engine("engine", model)
    return {"custom_generate": replayed}


def _read_once(
    model: PreTrainedModel | PeftModel, prompt_ids: Tensor, prompt_mask: Tensor, config: GenerationConfig
) -> dict[str, Any]:
    """For `generate`: the cache of prompts that are answered more than once, which it would read for every answer.

    Searching by beams shares nothing this way: its beams differ from the first token on. An encoder's output
    transformers shares by itself.
    """
    is_shared = config.num_return_sequences > 1 and config.num_beams == 1 and prompt_ids.shape[1] > 1
    if not is_shared or model.config.is_encoder_decoder or config.cache_implementation or not takes_cache(model):
        return {}
    # `generate` reads the last token itself
    decoder = Decoder(model, prompt_ids[:, :-1], prompt_mask[:, :-1], own_head=True)
    decoder.next_logits()
    decoder.multiply(config.num_return_sequences)
    return {"past_key_values": decoder.cache}


def _about_the_model(error: Exception) -> str | None:
    """An error of transformers or torch that is about the model or its settings, as one line; otherwise None."""
    said = " ".join(str(error).split())
    if "probability tensor contains" in said:
        return "what the model makes of a prompt is not finite, so nothing can be drawn from it; give another model."
    if "has to be defined" in said or ("has to be" in said and isinstance(error, ValueError)):
        return f"the model's generation settings do not do: {said.rstrip('.')}; mend its generation_config.json."
    return None


def generate_text(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Tensor,
    prompt_attention_mask: Tensor,
    options: GenerationOptions,
    *,
    numbers: Sequence[int] | None = None,
    **kwargs: Any,
) -> list[str]:
    """Generate answers as text; see `generate_ids`."""
    ids = generate_ids(model, tokenizer, prompt_ids, prompt_attention_mask, options, numbers=numbers, **kwargs)
    texts = decode_answers(tokenizer, ids, ending_ids(tokenizer, model))
    return [until_stop(text, options.stop_strings).strip() for text in texts]


def continued_text(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    answer: Sequence[int],
    endings: Sequence[int],
    stop_strings: Sequence[str] = (),
) -> str:
    """A prompt and what a decoder-only model wrote after it, as one text without special tokens.

    Args:
        tokenizer: The model's.
        prompt: Token ids, without padding.
        answer: Generated ids, with any padding.
        endings: The tokens that end an answer.
        stop_strings: Texts that also end it.
    """
    before = str(tokenizer.decode(list(prompt), skip_special_tokens=True))
    whole = str(tokenizer.decode([*prompt, *until_end(answer, endings)], skip_special_tokens=True))
    return before + until_stop(whole[len(before) :], stop_strings)


def until_stop(text: str, stop_strings: Sequence[str]) -> str:
    """A text up to the first occurrence of any stop string."""
    ends = [text.find(stop) for stop in stop_strings if stop in text]
    return text[: min(ends)] if ends else text
