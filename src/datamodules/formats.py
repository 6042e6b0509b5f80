"""How a decoder-only model is shown prompt and answer: as plain text, as turns in `<s>` and `</s>`, by a chat template.

An encoder-decoder needs none of this: it reads the prompt on one side and writes the answer on the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from src.errors import ParleyError
from src.models.endings import TURN_END, TURN_START, close_answer, ending_ids
from src.models.sources import first_line
from src.models.texts import disguise, rendered_ids, text_ids

Format = Literal["auto", "plain", "published", "chat"]


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
        return [turns_ids(_conversation(prompt), tokenizer) for prompt in prompts]
    if format == "published":
        vocabulary = tokenizer.get_vocab()
        start, end = vocabulary[TURN_START], vocabulary[TURN_END]
        return [[start, *ids, end, start] for ids in text_ids(prompts, tokenizer)]
    texts = [prompt if prompt[-1:].isspace() else f"{prompt}\n" for prompt in prompts]
    eos = tokenizer.eos_token_id
    return [ids[:-1] if ids and ids[-1] == eos else ids for ids in text_ids(texts, tokenizer, special=True)]


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
        return [[*ids, end] for ids in text_ids(answers, tokenizer)]
    endings = ending_ids(tokenizer)
    if format == "plain":
        return [[*ids, *endings[:1]] for ids in text_ids(answers, tokenizer)]
    texts = [_rendered_answer(tokenizer, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return [close_answer(rendered_ids(text, tokenizer), tokenizer, endings) for text in texts]


def turns_ids(conversation: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A talk's token ids by the chat template, up to where the assistant's next turn begins.

    Args:
        conversation: Turns with `role` and `content`.
        tokenizer: Has a chat template.

    Raises:
        ParleyError: The chat template fails.
    """
    return rendered_ids(_render(tokenizer, conversation, add_generation_prompt=True), tokenizer)


def _conversation(prompt: str, answer: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": "user", "content": prompt}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def _render(tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Mapping[str, str]], **options: Any) -> str:
    """What the template makes of a talk, for `rendered_ids`."""
    hide = disguise(tokenizer)
    hidden = [{**turn, "content": hide(turn["content"])} for turn in conversation]
    try:
        return str(tokenizer.apply_chat_template(hidden, tokenize=False, **options))
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
