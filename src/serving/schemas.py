"""The OpenAI API's request objects: known fields are validated, unsupported ones refused."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from src.serving.errors import BadRequestError

# Unsupported fields of the API that would change the answer, with the values that are allowed since they do not.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "suffix": ("",),
    "reasoning_effort": ("none",),
}

# Fields of the API that leave the answer as it is.
HARMLESS = frozenset(
    (
        *("user", "safety_identifier", "metadata", "store", "service_tier"),
        *("parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
    )
)

Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=1_000_000)]


class _Strict(BaseModel):
    """Validates types strictly, without conversion such as from text to number."""

    model_config = ConfigDict(strict=True, extra="allow")


class StreamOptions(_Strict):
    """What a stream contains beside the text."""

    include_usage: bool = False


class Part(_Strict):
    """A part of a message."""

    type: str
    text: str | None = None


class Message(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part] | None = None


class Decoding(_Strict, ABC):
    """Decoding options; for those left out the server's hold, or the model's own.

    `top_k`, `repetition_penalty`, `min_tokens` and `preset` are not OpenAI's; its client sends them as `extra_body`.
    """

    model: Text
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    n: Annotated[int, Field(ge=1, le=1024)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    preset: Text | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        texts = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        return [text for text in texts if text]

    @property
    def asked_tokens(self) -> int | None:
        """The most tokens of an answer; None for the default."""
        return self.max_tokens

    @property
    @abstractmethod
    def top_tokens(self) -> int | None:
        """How many of the likeliest tokens to report at each position; None for no log-probabilities."""

    def biases(self) -> tuple[tuple[int, float], ...]:
        """The logit biases by token id.

        Raises:
            BadRequestError: A key is not a token id.
        """
        pairs = []
        for key, bias in (self.logit_bias or {}).items():
            if not key.isascii() or not key.isdigit() or len(key) > 9:
                raise BadRequestError(
                    "a key of logit_bias is not a token's id; keys are numbers as text.", "logit_bias"
                )
            pairs.append((int(key), bias))
        return tuple(pairs)

    def refuse_unsupported(self) -> None:
        """Refuse what would change the answer and is not done, and names that nobody knows, misspelt ones among them.

        Raises:
            BadRequestError: There is one; the message names it.
        """
        for name, value in (self.model_extra or {}).items():
            if name in HARMLESS or value is None or value in UNSUPPORTED.get(name, ()):
                continue
            if name in UNSUPPORTED:
                raise BadRequestError(f"{name} is not supported here; leave it out.", name)
            nearest = difflib.get_close_matches(name, type(self).model_fields, n=1)
            hint = f"did you mean {nearest[0]}? Else leave it out." if nearest else "leave it out."
            raise BadRequestError(f"there is no field {name[:50]!r} here; {hint}", name[:50])


class ChatRequest(Decoding):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def asked_tokens(self) -> int | None:
        """The most tokens of an answer; None for the default."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def top_tokens(self) -> int | None:
        """As `Decoding.top_tokens`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def talk(self) -> list[dict[str, Any]]:
        """The messages as dictionaries of role and text.

        Raises:
            BadRequestError: A message has a part that is not text, or no content.
        """
        found = []
        for number, message in enumerate(self.messages):
            content = message.content
            if isinstance(content, list):
                if any(part.type != "text" or part.text is None for part in content):
                    raise BadRequestError("a message has a part that is not text; models here read text.", "messages")
                content = "".join(part.text or "" for part in content)
            role = "system" if message.role == "developer" else message.role
            if content is None and role != "assistant":
                raise BadRequestError(f"message {number} has no content.", "messages")
            found.append({"role": role, "content": content or ""})
        return found


class CompletionRequest(Decoding):
    """`POST /v1/completions`."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=1024)]
        | Annotated[list[int], Field(min_length=1, max_length=1_000_000)]
        | Annotated[list[list[int]], Field(min_length=1, max_length=1024)]
    )
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=1024)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def top_tokens(self) -> int | None:
        """As `Decoding.top_tokens`."""
        return self.logprobs

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """Each prompt, as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[id for id in self.prompt if isinstance(id, int)]]
        return [one for one in self.prompt if not isinstance(one, int)]

    def refuse_unsupported(self) -> None:
        """As `Decoding.refuse_unsupported`."""
        super().refuse_unsupported()
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise BadRequestError("best_of is not supported here; give n.", "best_of")
        if self.echo and self.logprobs is not None:
            raise BadRequestError("echo with logprobs is not supported here; leave one of them out.", "echo")
