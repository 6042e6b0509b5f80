"""Logits processors: banned texts, token rules of a model's settings, seeded sampling, recording of sets."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from src.models.draws import draw, row_seed
from src.models.endings import token_settings
from src.models.tying import base_model
from src.rl.drawable import Drawable

_LAST_CHARACTER = "\U0010ffff"
_BLANKS = ("▁", "Ġ")  # the blank before a word in SentencePiece's and GPT-2's tokens


class BannedTexts(LogitsProcessor):
    """Bans texts, however they are split into tokens, also inside longer words.

    transformers' `bad_words_ids` bans one tokenisation of a word, the tokenizer's own; in sampling others occur. Here a
    token is banned when it would complete a banned text. Texts are compared in the tokens' own alphabet, which also
    represents tokens that end in the middle of a character, as in Korean.

    Args:
        texts: The texts to ban; the name of a special token bans that token, and a text that the tokenizer cannot
            represent is ignored.
        tokenizer: The model's.
        start: The number of tokens in `input_ids` before the answer.
    """

    def __init__(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, start: int) -> None:
        special = set(tokenizer.all_special_ids)
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.pieces = ["" if id in special else piece or "" for id, piece in enumerate(pieces)]
        self.start = start
        named = {text for text in texts if text in special_names(tokenizer)}
        spelled = [_spelling(text, tokenizer) for text in texts if text not in named]
        self.texts = [text for text in spelled if text]
        self.longest = max(map(len, self.texts), default=0)
        order = sorted(range(len(self.pieces)), key=self.pieces.__getitem__)
        in_order = [self.pieces[id] for id in order]
        self.whole = [id for id, piece in enumerate(self.pieces) if any(text in piece for text in self.texts)]
        self.whole += [int(tokenizer.get_vocab()[name]) for name in named]
        self.completing: dict[str, list[int]] = {}  # from the beginning of a banned text to the tokens that complete it
        for text in self.texts:
            for cut in range(1, len(text)):
                first = bisect.bisect_left(in_order, text[cut:])
                last = bisect.bisect_right(in_order, text[cut:] + _LAST_CHARACTER)
                self.completing.setdefault(text[:cut], []).extend(order[first:last])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of (rows, vocabulary) with -inf where a token would complete a banned text."""
        scores = scores.clone()
        scores[:, self.whole] = -torch.inf
        spare = len(self.pieces)  # rows of the embeddings beyond the tokenizer's vocabulary
        for row, ids in enumerate(input_ids[:, self.start :].tolist()):
            tail = ""
            for id in reversed(ids):
                if len(tail) >= self.longest:
                    break
                tail = (self.pieces[id] if id < spare else "") + tail
            for there, tokens in self.completing.items():
                if tokens and tail.endswith(there):
                    scores[row, tokens] = -torch.inf
        return scores


def special_names(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The names of special and added tokens."""
    return {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}


def _spelling(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A text in the tokens' alphabet, without a blank that the tokenizer adds in front; empty if not representable."""
    pieces = tokenizer.tokenize(text)
    if tokenizer.unk_token in pieces:
        return ""
    spelled = "".join(pieces)
    return spelled if text[0].isspace() or spelled[:1] not in _BLANKS else spelled[1:]


class ForcedStart(LogitsProcessor):
    """Forces the first token of an answer (`forced_bos_token_id`), for rows that hold the answer only.

    Args:
        id: The token.
    """

    def __init__(self, id: int) -> None:
        self.id = id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores, (rows, vocabulary); at the first token -inf for all but one."""
        if input_ids.shape[1]:
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.id] = 0
        return forced


def token_rules(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> LogitsProcessorList:
    """Processors for the tokens that a model's generation settings force or forbid, for rows that hold answers only.

    These are `forced_bos_token_id` (for an encoder-decoder, whose answers follow a start token), `suppress_tokens`,
    `begin_suppress_tokens` and `bad_words_ids`, as in transformers' `generate`. `forced_eos_token_id` is not applied: a
    response that reaches its maximum counts as cut off.

    Args:
        model: With or without an adapter.
        tokenizer: Its tokenizer.
    """
    own, rules = token_settings(model, tokenizer), LogitsProcessorList()
    start = own.forced_bos_token_id if base_model(model).config.is_encoder_decoder else None
    if own.bad_words_ids:
        rules.append(NoBadWordsLogitsProcessor(own.bad_words_ids, own.eos_token_id))
    if start is not None:
        rules.append(ForcedStart(start))
    device = str(base_model(model).device)
    if own.suppress_tokens:
        rules.append(SuppressTokensLogitsProcessor(own.suppress_tokens, device))
    if own.begin_suppress_tokens:
        place = 0 if start is None else 1
        rules.append(SuppressTokensAtBeginLogitsProcessor(own.begin_suppress_tokens, place, device))
    return rules


class Recorder(LogitsProcessor):
    """Records which tokens the processors before it allow at every step, without changing the scores.

    Attributes:
        drawable: (answers, time) the sets along the finished answers, after `finish`.
    """

    drawable: Drawable

    def __init__(self) -> None:
        self.steps: list[Drawable] = []
        self.vocabulary = 0

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Record the allowed tokens and return the scores unchanged."""
        self.steps.append(Drawable.of(scores > -torch.inf))
        self.vocabulary = scores.shape[-1]
        return scores

    def finish(self, ids: Tensor, beams: Tensor | None) -> None:
        """Combine the recorded steps into the sets along the answers.

        Args:
            ids: (answers, time).
            beams: (answers, time) the row that each token was generated in; None if that is the answer's own.
        """
        rows = torch.arange(len(ids), device=ids.device)
        steps: list[tuple[Tensor, Drawable] | None] = []
        for place, sets in enumerate(self.steps[: ids.shape[1]]):
            steps.append((rows, sets if beams is None else sets[beams[:, place].clamp(min=0)]))
        self.drawable = Drawable.assemble(steps, len(ids), self.vocabulary, ids.device)


def truncation(top_k: int, top_p: float) -> Callable[[Tensor], Tensor]:
    """A function that applies top-k and top-p as transformers does, to logits (rows, vocabulary)."""
    warpers = sampling_limits(1.0, top_k, top_p)

    def apply(logits: Tensor) -> Tensor:
        return warpers(torch.empty(0, dtype=torch.long), logits)  # type: ignore[arg-type]

    return apply


def sampling_limits(temperature: float, top_k: int, top_p: float) -> LogitsProcessorList:
    """Temperature, top-k and top-p as transformers' logits processors."""
    warpers: list[LogitsProcessor] = []
    if temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(temperature))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return LogitsProcessorList(warpers)


class SeededSampling(LogitsProcessor):
    """Draws each row's next token with the row's own generator, so that rows do not depend on each other.

    With one row this draws the same tokens as transformers after `torch.manual_seed(seed)`:
    `torch.multinomial` takes the largest of p / q with q from an exponential distribution, and so does `draw`. The
    result is passed on as scores that allow one token only. It applies temperature, top-k and top-p itself, since
    transformers puts its own after all given processors.

    Args:
        seed: The seed.
        numbers: The prompts' numbers; the draws for a prompt depend on its number, not on its index in the batch.
        num_return_sequences: Rows per prompt.
        temperature: As in transformers.
        top_k: As in transformers; 0 does not limit.
        top_p: As in transformers; 1 does not limit.
    """

    def __init__(
        self,
        seed: int,
        numbers: Sequence[int],
        num_return_sequences: int,
        temperature: float,
        top_k: int,
        top_p: float,
    ) -> None:
        self.seeds = [row_seed(seed, number, k) for number in numbers for k in range(num_return_sequences)]
        self.generators: list[torch.Generator] = []
        self.warpers = sampling_limits(temperature, top_k, top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores, (rows, vocabulary), with 0 at the drawn token and -inf elsewhere."""
        if not self.generators:
            self.generators = [torch.Generator(scores.device).manual_seed(seed) for seed in self.seeds]
        scores = self.warpers(input_ids, scores)  # type: ignore[arg-type]
        drawn = draw(scores.softmax(dim=-1), self.generators)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn.unsqueeze(-1), 0.0)
