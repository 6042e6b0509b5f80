"""Generation of answers, as token ids and as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from src.errors import ParleyError
from src.models.adapter_checks import base_is_whole
from src.models.autocast import cast_once
from src.models.decoder import Decoder, takes_cache
from src.models.endings import decode_answers, ending_ids, until_end
from src.models.generation_options import GenerationOptions
from src.models.logits import Recorder
from src.models.lora import merged
from src.models.replayed import replayed
from src.models.static_decoder import refuse_engine
from src.models.tying import base_model


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
    if options.has_streams:  # temperature, top-k and top-p are applied by `SeededSampling`
        config.update(temperature=1.0, top_k=0, top_p=1.0)
    numbers = range(len(prompt_ids)) if numbers is None else numbers
    processors = options.to_logits_processors(tokenizer, start, numbers)
    if recorder is not None:  # before `SeededSampling`, which leaves only the drawn token
        processors.insert(len(processors) - int(options.has_streams), recorder)
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
