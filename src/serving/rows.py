"""An answer being generated, and the choice of its next token."""

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
from src.models.draws import draw
from src.models.generation_options import GenerationOptions
from src.models.logits import sampling_limits


@dataclass(frozen=True)
class Penalties:
    """The OpenAI API's penalties and logit biases.

    Attributes:
        presence: Subtracted from the logit of each token that the answer contains.
        frequency: Subtracted from it once more for each occurrence.
        bias: Values added to logits, as pairs (token id, value).
    """

    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.presence or self.frequency or self.bias)


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer with its log-probability under the model, before temperature, top-k and top-p.

    Attributes:
        id: The token's id.
        logprob: Its log-probability, in nats.
        top: The likeliest tokens at that position, in descending order, as pairs (id, log-probability).
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """The text that one step added to an answer.

    Attributes:
        choice: The answer's index in the request.
        text: The new text as far as it is final; may be empty.
        tokens: Its tokens with log-probabilities, if these were asked for.
        finish: `stop` or `length` if the answer has ended; None otherwise.
    """

    choice: int
    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    finish: str | None = None


@dataclass(eq=False)
class Row:
    """An answer being generated.

    Attributes:
        prompt: The prompt's token ids.
        choice: The answer's index in the request.
        options: Its decoding options, including stop strings and length limits.
        penalties: The API's penalties and biases.
        stream: Decodes its tokens to text.
        endings: The tokens that end it.
        rules: Processors that forbid tokens, given the answer so far.
        generator: Its own random number generator, if it is sampled.
        top_logprobs: How many of the likeliest tokens to report at each position; None for no log-probabilities.
        start: Token ids before the answer, for processors that need the whole sequence (repetition).
        ids: The tokens generated so far.
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
        """Whether anything beside temperature, top-k and top-p changes its logits."""
        must_go_on = len(self.ids) < self.options.min_new_tokens
        return bool(self._looks_back or self.rules or self.penalties or must_go_on)

    def ruled(self, logits: Tensor) -> Tensor:
        """Apply its rules and penalties to its logits, (1, vocabulary)."""
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
        """Append a token.

        Returns:
            The new text, and whether the answer has ended.
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
    """Make a row and its text stream; see `Row` and `TextStream` for the arguments."""
    stream = TextStream(tokenizer, len, endings, options.stop_strings, prefix, strip)
    return Row(prompt, choice, options, stream=stream, endings=frozenset(endings), **rest)


def choose(rows: Sequence[Row], logits: Tensor) -> tuple[list[int], list[TokenLogprob | None]]:
    """Choose each row's next token by its own options.

    Args:
        rows: The rows.
        logits: (rows, vocabulary) float32.

    Returns:
        The tokens, and their log-probabilities for rows that want them.
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
