"""Encodes prompts as token ids: prompt formats, turns, few-shot examples, truncation to the context window."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from src.contracts import Example, Turn
from src.datamodules import formats
from src.datamodules.turns import as_text, shortened
from src.errors import ParleyError
from src.files import refuse_surrogates
from src.inference.loading import FinishedModel
from src.models.texts import text_ids

log = logging.getLogger(__name__)

Style = Literal["auto", "plain", "published", "chat", "raw"]
SHOT_SEPARATOR = "\n\n\n\n\n"  # as in the published notebook: a newline, the stop sequence, a newline
STOP_SEQUENCE = "\n\n\n"


def resolve_style(style: Style, finished: FinishedModel, *, turns: bool, trained: bool) -> Style:
    """Choose the prompt format for a model.

    Args:
        style: As a user gives it: a DataModule's format, or `raw`, where a decoder-only model continues the bare
            prompt.
        finished: The model.
        turns: Whether prompt and answer are turns of a conversation.
        trained: Whether prompts have the form that a DataModule trains on; `auto` then picks its format, else `raw`
            where that format would be `plain`.

    Raises:
        ParleyError: The model does not support this style.
    """
    tokenizer, has_encoder = finished.tokenizer, finished.is_encoder_decoder
    if style == "raw" and not has_encoder:
        return "raw"
    if style == "raw":
        style = "plain"
    resolved: Style = formats.resolve_format(style, tokenizer, is_encoder_decoder=has_encoder, turns=turns)
    if resolved == "plain" and style == "auto" and not trained and not has_encoder:
        return "raw"
    return resolved


def few_shot(prompt: str, shots: Sequence[Example], separator: str = SHOT_SEPARATOR) -> str:
    """Put few-shot examples before a prompt: for each its prompt, its answer and the separator.

    With the template `flan` and a blank at its end this is the published few-shot prompt. A blank separates an answer
    from its prompt unless the prompt ends in white space.

    Args:
        prompt: The prompt to answer.
        shots: Solved examples, in the same template.
        separator: The text after each example.
    """
    solved = [f"{shot.prompt}{'' if shot.prompt[-1:].isspace() else ' '}{shot.target}{separator}" for shot in shots]
    return "".join(solved) + prompt


def choose_shots(pool: Sequence[Example], count: int, asked: Example) -> list[Example]:
    """The first `count` examples of a pool whose prompts differ from the one asked.

    Raises:
        ParleyError: The pool has too few.
    """
    shots = [example for example in pool if example.prompt != asked.prompt][:count]
    if len(shots) < count:
        raise ParleyError(f"there are only {len(shots)} examples to show and --shots is {count}; lower it.")
    return shots


def turn_ids(turns: Sequence[Turn], finished: FinishedModel, style: Style) -> list[int]:
    """The token ids of a conversation, up to where the model's answer begins.

    Args:
        turns: The turns; the last is the user's.
        finished: The model.
        style: The format, encoded as in training; an encoder-decoder, or `raw`, gets the conversation as one text.

    Raises:
        ParleyError: The chat template fails.
    """
    for turn in turns:
        refuse_surrogates(turn.content, f"the {turn.role}'s text")
    if finished.is_encoder_decoder or style == "raw":
        return text_prompt_ids(as_text(turns), finished, style)
    return formats.prompt_ids([turns], finished.tokenizer, style)[0]


def text_prompt_ids(text: str, finished: FinishedModel, style: Style, *, named: bool = False) -> list[int]:
    """A text as training encodes it; for `raw` without the newline that ends a prompt.

    Args:
        text: The text.
        finished: The model.
        style: `plain` or `raw`.
        named: Encode the names of special tokens in the text as these tokens; a BOS token that the text begins with
            is then not doubled.
    """
    tokenizer, has_encoder = finished.tokenizer, finished.is_encoder_decoder
    if named:
        text = _closed(text, finished, style)
        ids = tokenizer(text, split_special_tokens=False, verbose=False)["input_ids"]
        ids = ids[1:] if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id else ids
    elif style == "plain" and not has_encoder:
        return formats.prompt_ids([text], tokenizer, "plain")[0]
    else:
        [ids] = text_ids([text], tokenizer, special=True)
    if named and text.endswith(str(tokenizer.eos_token)):
        return list(ids)
    return ids[:-1] if not has_encoder and ids and ids[-1] == tokenizer.eos_token_id else ids


def _closed(text: str, finished: FinishedModel, style: Style) -> str:
    """A prompt with the newline that ends it in training, if the style has one."""
    closes = style == "plain" and not finished.is_encoder_decoder and not text[-1:].isspace()
    return f"{text}\n" if closes else text


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt as the model gets it.

    Attributes:
        text: Its exact text. For turns and truncated prompts it is decoded from the tokens, special ones by name.
        tokens: The number of tokens, including those that the tokenizer adds.
        whole: The number of tokens before the prompt was truncated.
    """

    text: str
    tokens: int
    whole: int


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes prompts as token ids that fit the model's context window.

    Attributes:
        finished: The model.
        style: The prompt format; resolved, not `auto`.
        max_new_tokens: The part of the window reserved for the answer.
        max_source_length: The most tokens of a prompt; as many as fit when None.
        system: The system prompt, for chat templates.
        separator: The text after each few-shot example, where prompts are single texts.
        special_tokens: Encode the names of special tokens in prompts as these tokens; they are plain text otherwise.
    """

    finished: FinishedModel
    style: Style
    max_new_tokens: int
    max_source_length: int | None = None
    system: str | None = None
    separator: str = SHOT_SEPARATOR
    special_tokens: bool = False

    def __post_init__(self) -> None:
        if self.special_tokens and self.style in ("chat", "published"):
            raise ParleyError(
                f"--special-tokens is for prompts that are one text, and this one is asked in turns ({self.style}); "
                "add --format raw."
            )
        if self.max_source_length is not None and self.max_source_length < 2:
            raise ParleyError(f"max_source_length is {self.max_source_length}; it must be 2 or more.")
        if self.system is not None and self.style != "chat":
            raise ParleyError("only a chat template has a place for --system; this model is not asked by one.")
        self.limit  # noqa: B018  (raises at once if nothing can fit)

    @property
    def limit(self) -> int | None:
        """The most tokens that a prompt may have; None for any number.

        Raises:
            ParleyError: The answer alone fills the window.
        """
        window = self.finished.positions
        if window is None:
            return self.max_source_length
        left = window if self.finished.is_encoder_decoder else window - self.max_new_tokens
        if left < 2 or self.max_new_tokens >= window:
            raise ParleyError(
                f"max_new_tokens is {self.max_new_tokens}, but {self.finished.name} has {window} positions; lower it."
            )
        return left if self.max_source_length is None else min(left, self.max_source_length)

    def encode(self, examples: Sequence[Example], shots: Sequence[Sequence[Example]] | None = None) -> list[list[int]]:
        """The token ids of each prompt; too long ones are truncated as in training, and their number is logged.

        Args:
            examples: The prompts.
            shots: The few-shot examples of each prompt; none when left out.

        Raises:
            ParleyError: A prompt has no tokens, or a chat template fails.
        """
        shots = shots or [()] * len(examples)
        whole = [self._ids(example, before) for example, before in zip(examples, shots, strict=True)]
        encoded = [self._fit(example, ids) for example, ids in zip(examples, whole, strict=True)]
        if cut := sum(len(ids) < len(all_ids) for ids, all_ids in zip(encoded, whole, strict=True)):
            log.warning("%d of %d prompts truncated to %d tokens.", cut, len(whole), self.limit)
        if not all(encoded):
            raise ParleyError("a prompt is empty, and this model does not begin by itself; give it some text.")
        return encoded

    def shown(
        self,
        examples: Sequence[Example],
        shots: Sequence[Sequence[Example]] | None,
        encoded: Sequence[Sequence[int]],
    ) -> list[ShownPrompt]:
        """Each prompt as the model gets it, for a person to read.

        Args:
            examples: As for `encode`.
            shots: As for `encode`.
            encoded: What `encode` returned.
        """
        found = []
        for example, before, ids in zip(examples, shots or [()] * len(examples), encoded, strict=True):
            whole = len(self._ids(example, before))
            in_turns = bool(example.turns) or self.style in ("chat", "published")
            if in_turns or len(ids) < whole:
                text = str(self.finished.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
            else:
                text = _closed(few_shot(example.prompt, before, self.separator), self.finished, self.style)
            found.append(ShownPrompt(text, len(ids), whole))
        return found

    def _ids(self, example: Example, shots: Sequence[Example]) -> list[int]:
        if example.turns and shots:
            raise ParleyError(
                "solved examples (--shots) go before single prompts, and these are talks; leave them out."
            )
        if example.turns:
            return turn_ids(self._talk(example), self.finished, self.style)
        if self.style in ("chat", "published"):
            turns = [Turn("system", self.system)] if self.system is not None else []
            for shot in shots:
                turns += [Turn("user", shot.prompt), Turn("assistant", shot.target)]
            return turn_ids([*turns, Turn("user", example.prompt)], self.finished, self.style)
        text = few_shot(example.prompt, shots, self.separator)
        return text_prompt_ids(text, self.finished, self.style, named=self.special_tokens)

    def _talk(self, example: Example) -> tuple[Turn, ...]:
        """A prompt's conversation, with the system prompt in front unless it has its own."""
        if self.system is None or example.turns[0].role == "system":
            return example.turns
        return (Turn("system", self.system), *example.turns)

    def _fit(self, example: Example, ids: list[int]) -> list[int]:
        """Drop a conversation's oldest turns until it fits; truncate what is still too long."""
        for talk in shortened(self._talk(example)) if example.turns else ():
            if self.limit is None or len(ids) <= self.limit:
                break
            ids = turn_ids(talk, self.finished, self.style)
        return self._cut(ids)

    def _cut(self, ids: list[int]) -> list[int]:
        limit = self.limit
        if limit is None or len(ids) <= limit:
            return ids
        if self.finished.is_encoder_decoder:
            closed = ids[-1] in self.finished.tokenizer.all_special_ids
            return [*ids[: limit - 1], ids[-1]] if closed else ids[:limit]
        tail = limit // 4
        return ids[: limit - tail] + ids[len(ids) - tail :]
