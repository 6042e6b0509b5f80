"""One answer that is being written, and the choice of its next token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
)

from src.inference.streaming import TextStream
from src.models.generation import GenerationOptions
from src.models.logits import draw, sampling_limits


@dataclass(frozen=True)
class Penalties:
    """What the OpenAI API has beside the usual decoding options.

    Attributes:
        presence: Taken off the logits of tokens that the answer has already.
        frequency: Taken off for each time that it has them.
        bias: Added to tokens' logits, by id.
    """

    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.presence or self.frequency or self.bias)


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer with its log-probability by the model itself, before temperature and limits.

    Attributes:
        id: The token.
        logprob: Natural logarithm.
        top: The likeliest tokens there, likeliest first, each with its own.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What one step added to an answer.

    Attributes:
        choice: Which of the request's answers.
        text: What is certain of it; may be empty.
        tokens: With their log-probabilities, where these were asked for.
        finish: `stop` or `length` where the answer has ended.
    """

    choice: int
    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    finish: str | None = None


@dataclass(eq=False)
class Row:
    """An answer that is being written.

    Attributes:
        prompt: Token ids.
        choice: Which of the request's answers.
        options: How it decodes; its stop strings and its limit are in them.
        penalties: What else changes its logits.
        stream: Makes text of its tokens.
        endings: The tokens that end it.
        rules: Which tokens it may not have, given the answer so far.
        generator: Of its own, where it is sampled.
        top_logprobs: How many of the likeliest tokens to name at each place; None where nothing of the kind is wanted.
        start: What its tokens follow where whole sequences are looked at (repetitions).
        ids: Written so far.
    """

    prompt: list[int]
    choice: int
    options: GenerationOptions
    penalties: Penalties
    stream: TextStream
    endings: frozenset[int]
    rules: LogitsProcessorList
    generator: torch.Generator | None
    top_logprobs: int | None
    start: list[int]
    ids: list[int] = field(default_factory=list)
    _pieces: list[str] = field(default_factory=list)
    _unsent: list[TokenLogprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stream.write = self._pieces.append
        self._looks_back = LogitsProcessorList()
        if self.options.repetition_penalty != 1:
            self._looks_back.append(RepetitionPenaltyLogitsProcessor(self.options.repetition_penalty))
        if self.options.no_repeat_ngram_size:
            self._looks_back.append(NoRepeatNGramLogitsProcessor(self.options.no_repeat_ngram_size))

    @property
    def is_ruled(self) -> bool:
        """Whether anything but temperature and limits changes its logits."""
        must_go_on = len(self.ids) < self.options.min_new_tokens
        return bool(self._looks_back or self.rules or self.penalties or must_go_on)

    def ruled(self, logits: Tensor) -> Tensor:
        """Its logits, (1, vocabulary), under its rules."""
        answer = torch.tensor([self.ids], dtype=torch.long, device=logits.device)
        if self._looks_back:
            whole = torch.tensor([[*self.start, *self.ids]], dtype=torch.long, device=logits.device)
            logits = self._looks_back(whole, logits)  # type: ignore[arg-type]
        logits = self.rules(answer, logits)  # type: ignore[arg-type]
        if len(self.ids) < self.options.min_new_tokens:
            logits[:, list(self.endings)] = -torch.inf
        for id, bias in self.penalties.bias:
            logits[0, id] += bias
        if self.penalties.presence or self.penalties.frequency:
            for id, count in Counter(self.ids).items():
                logits[0, id] -= self.penalties.presence + self.penalties.frequency * count
        return logits

    def take(self, token: int, logprob: TokenLogprob | None) -> Piece:
        """Add a token.

        Returns:
            What is new, and whether the answer has ended with it.
        """
        self.ids.append(token)
        ended = token in self.endings
        finish = "stop" if ended else None
        self.stream.add([token])
        if not ended and self.stream.stop_strings and self.stream.has_stopped:
            finish = "stop"
        elif not ended and len(self.ids) >= self.options.max_new_tokens:
            finish = "length"
        if finish:
            self.stream.end()
        if logprob is not None and not ended:
            self._unsent.append(logprob)
        text = "".join(self._pieces)
        self._pieces.clear()
        if not (text or finish):
            return Piece(self.choice, "")
        tokens, self._unsent = tuple(self._unsent), []
        return Piece(self.choice, text, tokens, finish)


def new_row(
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    choice: int,
    options: GenerationOptions,
    *,
    endings: Sequence[int],
    prefix: Sequence[int] = (),
    strip: bool = True,
    **rest: Any,
) -> Row:
    """A row, with what makes text of its tokens; see `Row` and `TextStream`."""
    stream = TextStream(tokenizer, len, endings, options.stop_strings, prefix, strip)
    return Row(prompt, choice, options, stream=stream, endings=frozenset(endings), **rest)


def choose(rows: Sequence[Row], logits: Tensor) -> tuple[list[int], list[TokenLogprob | None]]:
    """Each row's next token, by its own options.

    Args:
        rows: The rows.
        logits: (rows, vocabulary) float32.

    Returns:
        The tokens, and their log-probabilities where these are wanted.
    """
    wanted = [place for place, row in enumerate(rows) if row.top_logprobs is not None]
    logprobs = logits[wanted].log_softmax(-1) if wanted else None
    ruled = [place for place, row in enumerate(rows) if row.is_ruled]
    if ruled:
        logits = logits.clone()
        for place in ruled:
            logits[place] = rows[place].ruled(logits[place : place + 1].clone())[0]
    tokens = logits.argmax(-1)
    kinds: dict[tuple[float, int, float], list[int]] = {}
    for place, row in enumerate(rows):
        if row.generator is not None:
            kind = (row.options.temperature, row.options.top_k, row.options.top_p)
            kinds.setdefault(kind, []).append(place)
    nothing = torch.empty(0, dtype=torch.long)
    for kind, places in kinds.items():
        limited = sampling_limits(*kind)(nothing, logits[places])  # type: ignore[arg-type]
        generators = [generator for place in places if (generator := rows[place].generator) is not None]
        tokens[places] = draw(limited.softmax(-1), generators)
    chosen: list[int] = tokens.tolist()
    found: list[TokenLogprob | None] = [None] * len(rows)
    if logprobs is not None:
        for line, place in zip(logprobs, wanted, strict=True):
            top = line.topk(min(rows[place].top_logprobs or 0, len(line)))
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            found[place] = TokenLogprob(chosen[place], float(line[chosen[place]]), tuple(pairs))
    return chosen, found
