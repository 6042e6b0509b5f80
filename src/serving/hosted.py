"""A served model: its prompt format, its default decoding options and its limits."""

from __future__ import annotations

import copy
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import LogitsProcessorList

from src.contracts import Turn
from src.errors import ParleyError
from src.files import refuse_surrogates
from src.inference.loading import FinishedModel
from src.inference.prompts import PromptEncoder, Style, resolve_style, text_prompt_ids, turn_ids
from src.models.adapter_checks import base_is_whole
from src.models.draws import row_seed
from src.models.endings import ending_ids
from src.models.generation_options import GenerationOptions, ModelOptions
from src.models.logits import BannedTexts, token_rules
from src.models.tying import base_model, embedding_matrix
from src.serving.rows import Penalties, Row, new_row


class TooLongError(ParleyError):
    """A prompt, or a prompt and its answer, does not fit the model's window or the server's limits."""


def _always_active() -> None:
    """Do nothing: the model has no adapters to switch."""


TAIL = 8  # tokens of a prompt to decode with a continuation, to keep its first blank


@dataclass(frozen=True)
class Limits:
    """Limits of a request.

    Attributes:
        prompt_tokens: The most tokens of a prompt.
        answer_tokens: The most tokens of an answer.
        answers: The most answers to one request.
    """

    prompt_tokens: int = 4096
    answer_tokens: int = 1024
    answers: int = 16


@dataclass
class Hosted:
    """A served model under the name that clients use.

    Attributes:
        name: The name that clients use.
        finished: The model and its tokenizer.
        options: The decoding options that a request may override.
        limits: The limits of a request.
        format: The prompt format of a decoder-only model for conversations; `auto` as in `parley chat`.
        system: The system prompt of conversations that have none.
        activate: Switches to this model's adapter, if several models share one base; called before each use.
        style: `format`, resolved.

    Raises:
        ParleyError: It does not support this format, or its adapter does not act in its layers alone.
    """

    name: str
    finished: FinishedModel
    options: GenerationOptions
    limits: Limits = Limits()
    format: Style = "auto"
    system: str | None = None
    activate: Callable[[], None] = _always_active
    style: Style = field(init=False)

    def __post_init__(self) -> None:
        model, tokenizer = self.finished.model, self.finished.tokenizer
        if not base_is_whole(model):
            raise ParleyError(
                f"{self.name} has an adapter that does not act in its layers alone (prompt tuning, aLoRA), which is "
                "not served; `parley generate` has it."
            )
        self.style = resolve_style(self.format, self.finished, turns=True, trained=True)
        self.endings = ending_ids(tokenizer, model)
        self.rules = token_rules(model, tokenizer)
        # Fast tokenizers are not thread-safe, and models under other names may share this one.
        self.decoding_tokenizer = copy.deepcopy(tokenizer)
        self.finished = replace(self.finished, tokenizer=copy.deepcopy(tokenizer))
        self._encoding = threading.Lock()
        if self.options.bad_words:
            self.rules.append(BannedTexts(self.options.bad_words, tokenizer, 0))
        start: Any = base_model(model).generation_config.decoder_start_token_id
        self._start = 0 if start is None else int(start)
        self._limit = PromptEncoder(self.finished, "plain", 1).limit

    @property
    def unused(self) -> list[str]:
        """The model's own generation settings that are used for beam search only."""
        return sorted(self.options.further) if isinstance(self.options, ModelOptions) else []

    # Prompts

    def talk(self, turns: Sequence[Turn]) -> list[int]:
        """The token ids of a conversation that ends with the user's turn.

        Raises:
            ParleyError: It does not end with the user's turn, or the chat template fails.
        """
        if not turns or turns[-1].role != "user":
            raise ParleyError("the last message must be the user's; it is what the model answers.")
        with self._encoding:
            return turn_ids(self.with_system(turns), self.finished, self.style)

    def with_system(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        """A conversation with the server's system prompt in front, unless it has its own."""
        if self.system is None or turns[0].role == "system":
            return turns
        return [Turn("system", self.system), *turns]

    def text(self, prompt: str) -> list[int]:
        """The token ids of a plain text, which a decoder-only model continues.

        Raises:
            ParleyError: It contains a lone surrogate.
        """
        refuse_surrogates(prompt, "the prompt")
        with self._encoding:
            return text_prompt_ids(prompt, self.finished, "plain" if self.finished.is_encoder_decoder else "raw")

    def check_ids(self, ids: Sequence[int]) -> None:
        """Refuse token ids outside the embedding matrix.

        Raises:
            ParleyError: There is one; the message names it.
        """
        size = embedding_matrix(base_model(self.finished.model)).shape[0]
        if odd := [id for id in ids if not 0 <= id < size]:
            raise ParleyError(f"there is no token {odd[0]}; {self.name} has {size:,}, from 0.")

    def room(self, prompt: Sequence[int], asked: int | None) -> int:
        """The most tokens that an answer may have.

        Args:
            prompt: The prompt's token ids.
            asked: The number that the request asks for; the model's default when None.

        Raises:
            ParleyError: The prompt is empty or too long, or the request asks for too many tokens.
        """
        longest = min(self.limits.prompt_tokens, self._limit or self.limits.prompt_tokens)
        window = None if self.finished.is_encoder_decoder else self.finished.positions
        if not prompt:
            raise ParleyError("the prompt is empty, and this model does not begin by itself; give it some text.")
        if len(prompt) > longest:
            raise TooLongError(f"the prompt has {len(prompt):,} tokens and {self.name} takes {longest:,}; shorten it.")
        most = self.limits.answer_tokens
        if self.finished.positions is not None:
            most = min(most, self.finished.positions - (len(prompt) if window else 1))
        if asked is not None and asked > most:
            raise TooLongError(
                f"max_tokens is {asked:,}, and after this prompt there is room for {most:,} tokens; lower it."
            )
        return max(min(most, self.options.max_new_tokens), 1) if asked is None else asked

    def decoded(self, ids: Sequence[int]) -> str:
        """Token ids as text."""
        with self._encoding:
            return str(self.finished.tokenizer.decode(list(ids), skip_special_tokens=True))

    def rows(
        self,
        prompt: list[int],
        options: GenerationOptions,
        penalties: Penalties,
        *,
        number: int,
        count: int,
        top_logprobs: int | None,
        as_continuation: bool,
    ) -> list[Row]:
        """Make the rows for the answers to a prompt.

        Args:
            prompt: The prompt's token ids.
            options: The decoding options.
            penalties: The API's penalties and biases.
            number: The prompt's index in the request.
            count: The number of answers.
            top_logprobs: As in `Row`.
            as_continuation: Keep the white space between the prompt and an answer.
        """
        tokenizer = self.decoding_tokenizer
        continues = as_continuation and not self.finished.is_encoder_decoder
        seed = options.seed if options.seed is not None else secrets.randbits(62)
        device = self.finished.device
        rows = []
        for answer in range(count):
            generator = None
            if options.do_sample:  # the same seeds as in `parley generate`
                generator = torch.Generator(device).manual_seed(row_seed(seed, number, answer))
            rows.append(
                new_row(
                    tokenizer,
                    prompt,
                    number * count + answer,
                    replace(options),
                    endings=self.endings,
                    prefix=prompt[-TAIL:] if continues else (),
                    strip=not continues,
                    penalties=penalties,
                    rules=LogitsProcessorList(self.rules),
                    generator=generator,
                    top_logprobs=top_logprobs,
                    start=prompt if not self.finished.is_encoder_decoder else [self._start],
                )
            )
        return rows
