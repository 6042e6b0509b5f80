"""How a decoder-only model is shown prompt and answer: as plain text, as turns in `<s>` and `</s>`, by a chat template.

An encoder-decoder needs none of this: it reads the prompt on one side and writes the answer on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from src.errors import ParleyError
from src.models.sources import first_line

Format = Literal["auto", "plain", "published", "chat"]
TURN_START, TURN_END = "<s>", "</s>"  # by name: KoGPT2 has both but calls `</s>` its BOS


def resolve_format(
    format: Format, tokenizer: PreTrainedTokenizerBase, *, is_encoder_decoder: bool, turns: bool
) -> Format:
    """Choose what `auto` means for a model, and refuse what the model cannot do.

    Args:
        format: As configured.
        tokenizer: The model's.
        is_encoder_decoder: Whether the model has an encoder: then every format but `plain` is a contradiction.
        turns: Whether `auto` may choose `published`, as for question and answer.

    Returns:
        `plain`, `published` or `chat`.

    Raises:
        ParleyError: The model has no such format.
    """
    if is_encoder_decoder:
        if format not in ("auto", "plain"):
            raise ParleyError(
                f"format is {format!r}, which joins prompt and answer, but the model is an encoder-decoder; "
                "leave format out."
            )
        return "plain"
    has_template = bool(tokenizer.chat_template)
    has_turns = tokenizer.get_vocab().keys() >= {TURN_START, TURN_END}
    if format == "auto":
        return "chat" if has_template else "published" if turns and has_turns else "plain"
    if format == "chat" and not has_template:
        raise ParleyError("format is 'chat', but the model's tokenizer has no chat template; use plain or published.")
    if format == "published" and not has_turns:
        raise ParleyError(
            f"format is 'published', but the model's tokenizer has no {TURN_START} and {TURN_END}; use plain or chat."
        )
    return format


def prompt_ids(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, format: Format) -> list[list[int]]:
    """Everything before the first token of the answer, as a decoder-only model reads it in training and generation.

    - `plain`: what the tokenizer puts before a text, and the prompt; a newline closes it unless whitespace does.
    - `published`: `<s>` prompt `</s>` `<s>`.
    - `chat`: the chat template's user turn and its generation prompt.

    Args:
        prompts: The prompts.
        tokenizer: The model's.
        format: Resolved, not `auto`.

    Raises:
        ParleyError: The chat template fails.
    """
    if format == "chat":
        texts = [_render(tokenizer, _conversation(prompt), add_generation_prompt=True) for prompt in prompts]
        return _plain_ids(texts, tokenizer)
    if format == "published":
        vocabulary = tokenizer.get_vocab()
        start, end = vocabulary[TURN_START], vocabulary[TURN_END]
        return [[start, *ids, end, start] for ids in _plain_ids(prompts, tokenizer)]
    texts = [prompt if prompt[-1:].isspace() else f"{prompt}\n" for prompt in prompts]
    encoded = tokenizer(texts, verbose=False)["input_ids"] if texts else []
    eos = tokenizer.eos_token_id
    return [ids[:-1] if ids and ids[-1] == eos else ids for ids in encoded]


def answer_ids(
    prompts: Sequence[str], answers: Sequence[str], tokenizer: PreTrainedTokenizerBase, format: Format
) -> list[list[int]]:
    """The answers as they follow `prompt_ids`, up to and with the token that ends them.

    Args:
        prompts: The prompts, which some chat templates look at.
        answers: One an prompt.
        tokenizer: The model's.
        format: Resolved, not `auto`.

    Raises:
        ParleyError: The chat template does not put the answer after its own generation prompt.
    """
    if format == "published":
        end = tokenizer.get_vocab()[TURN_END]
        return [[*ids, end] for ids in _plain_ids(answers, tokenizer)]
    eos = tokenizer.eos_token_id
    if format == "plain":
        return [ids if eos is None else [*ids, eos] for ids in _plain_ids(answers, tokenizer)]
    texts = [_rendered_answer(tokenizer, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    closing = set(tokenizer.all_special_ids)  # the template's own end of a turn, where it is another than EOS
    return [ids if eos is None or ids[-1] in closing else [*ids, eos] for ids in _plain_ids(texts, tokenizer)]


def _plain_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def _conversation(prompt: str, answer: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": "user", "content": prompt}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def _render(tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, str]], **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(conversation, tokenize=False, **options))
    except Exception as error:  # a template is a program: Jinja and the template itself raise what they like
        raise ParleyError(
            f"the model's chat template fails ({first_line(error)}); use format plain, or another tokenizer."
        ) from error


def _rendered_answer(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> str:
    before = _render(tokenizer, _conversation(prompt), add_generation_prompt=True)
    whole = _render(tokenizer, _conversation(prompt, answer))
    if not whole.startswith(before):
        raise ParleyError(
            "the model's chat template does not put an answer right after its generation prompt; use format plain."
        )
    return whole[len(before) :].rstrip()  # templates put a newline after the end of a turn; nobody generates it
