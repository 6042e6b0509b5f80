"""The OpenAI API's response objects: complete answers, and chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from src.serving.rows import Piece, TokenLogprob

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass
class Replies:
    """Makes the response objects of one request.

    Attributes:
        model: The model's name in the request.
        is_chat: Whether it is a chat completion; otherwise it is a completion.
        tokenizer: The model's tokenizer.
        echoes: For each answer the text to put before it.
        with_usage: Whether a stream ends with a usage chunk.
        with_logprobs: Whether log-probabilities were asked for.
    """

    model: str
    is_chat: bool
    tokenizer: PreTrainedTokenizerBase
    echoes: Sequence[str]
    with_usage: bool = False
    with_logprobs: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, pieces: Sequence[Piece], usage: dict[str, int]) -> dict[str, Any]:
        """The response with all answers, for requests without streaming.

        Args:
            pieces: The pieces of all answers, in order of generation.
            usage: What `usage` returned.
        """
        choices = []
        for number in range(len(self.echoes)):
            own = [piece for piece in pieces if piece.choice == number]
            tokens = tuple(token for piece in own for token in piece.tokens)
            finish = next((piece.finish for piece in own if piece.finish), None)
            text = "".join(piece.text for piece in own)
            logprobs = self._logprobs(tokens, len(self.echoes[number])) if self.with_logprobs else None
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
            choices.append(
                {
                    "index": number,
                    **(said if self.is_chat else {"text": self.echoes[number] + text}),
                    "logprobs": logprobs,
                    "finish_reason": finish,
                }
            )
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    def opening(self) -> list[dict[str, Any]]:
        """The first chunks of a stream: roles, or echoed prompts."""
        if self.is_chat:
            first = {"role": "assistant", "content": ""}
            return [self._chunk(number, {"delta": first}) for number in range(len(self.echoes))]
        return [self._chunk(number, {"text": echo}) for number, echo in enumerate(self.echoes) if echo]

    def chunk(self, piece: Piece, offset: int) -> dict[str, Any]:
        """The chunk for one piece of an answer.

        Args:
            piece: The new piece.
            offset: The number of characters of the answer before it.
        """
        said = {"content": piece.text} if piece.text or not piece.finish else {}
        logprobs = self._logprobs(piece.tokens, offset) if self.with_logprobs else None
        body: dict[str, Any] = {"delta": said} if self.is_chat else {"text": piece.text}
        return self._chunk(piece.choice, body, logprobs, piece.finish)

    def closing(self, usage: dict[str, int]) -> list[dict[str, Any]]:
        """The last chunks of a stream: the usage, if asked for."""
        return [{**self._head("chat.completion.chunk"), "choices": [], "usage": usage}] if self.with_usage else []

    def _head(self, kind: str) -> dict[str, Any]:
        prefix, name = ("chatcmpl", kind) if self.is_chat else ("cmpl", "text_completion")
        return {"id": f"{prefix}-{self.id}", "object": name, "created": self.created, "model": self.model}

    def _chunk(
        self, number: int, body: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": number, **body, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if self.with_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage}

    def _logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        if self.is_chat:
            content = [
                self._entry(token.id, token.logprob)
                | {"top_logprobs": [self._entry(id, logprob) for id, logprob in token.top]}
                for token in tokens
            ]
            return {"content": content, "refusal": None}
        texts = [self._text(token.id) for token in tokens]
        offsets = [offset + sum(map(len, texts[:place])) for place in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._text(id): logprob for id, logprob in token.top} for token in tokens],
            "text_offset": offsets,
        }

    def _entry(self, id: int, logprob: float) -> dict[str, Any]:
        text = self._text(id)
        return {"token": text, "logprob": logprob, "bytes": None if UNFINISHED in text else list(text.encode())}

    def _text(self, id: int) -> str:
        """A token's text, including the blank before a word."""
        text = str(self.tokenizer.decode([id]))
        begins_word = str(self.tokenizer.convert_ids_to_tokens(id) or "").startswith("▁")
        return f" {text.lstrip(' ')}" if begins_word else text


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The API's `usage` object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
