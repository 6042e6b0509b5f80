"""Rules that generation obeys at every token, as transformers' logits processors."""

from __future__ import annotations

import bisect
import hashlib
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

from src.models.endings import token_settings
from src.models.tying import base_model
from src.rl.drawable import Drawable

_LAST_CHARACTER = "\U0010ffff"
_BLANKS = ("▁", "Ġ")  # SentencePiece's and GPT-2's


class BannedTexts(LogitsProcessor):
    """Texts that are never generated, however they are cut into tokens and inside longer words too.

    transformers' `bad_words_ids` bans one spelling of a word, the one that the tokenizer would choose; a sampling
    model finds others. Here a token is refused when it would complete a banned text, which is told from the tokens'
    own alphabet, in which a token that ends amid a Korean syllable has its bytes too.

    Args:
        texts: What is not to be generated; the name of a special token is meant as the token, and a text that the
            tokenizer cannot spell is passed over.
        tokenizer: The model's.
        start: How many tokens of `input_ids` are not the answer's.
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
        self.completing: dict[str, list[int]] = {}  # from what is there already to the tokens that complete it
        for text in self.texts:
            for cut in range(1, len(text)):
                first = bisect.bisect_left(in_order, text[cut:])
                last = bisect.bisect_right(in_order, text[cut:] + _LAST_CHARACTER)
                self.completing.setdefault(text[:cut], []).extend(order[first:last])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of (rows, vocabulary) with -inf where a token would complete a banned text."""
        scores = scores.clone()
        scores[:, self.whole] = -torch.inf
        spare = len(self.pieces)  # rows of the embeddings beyond the tokenizer
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
    """The texts that stand for one token rather than for themselves."""
    return {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}


def _spelling(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A text in the alphabet of the tokens, without the blank that some put before it; empty if impossible."""
    pieces = tokenizer.tokenize(text)
    if tokenizer.unk_token in pieces:
        return ""
    spelled = "".join(pieces)
    return spelled if text[0].isspace() or spelled[:1] not in _BLANKS else spelled[1:]


class ForcedStart(LogitsProcessor):
    """Nothing but one token begins an answer: `forced_bos_token_id`, where the rows are answers without their start.

    Args:
        id: The token.
    """

    def __init__(self, id: int) -> None:
        self.id = id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of (rows, vocabulary), at the first token with -inf for all but one."""
        if input_ids.shape[1]:
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.id] = 0
        return forced


def token_rules(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> LogitsProcessorList:
    """Which tokens a model's generation settings force or forbid, for rows that are answers without what they follow.

    These are `forced_bos_token_id` (of an encoder-decoder, whose answers begin from one token), `suppress_tokens`,
    `begin_suppress_tokens` and `bad_words_ids`, as transformers' `generate` has them. `forced_eos_token_id` is none of
    them: a response that reaches its maximum is cut off, and counts as that.

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
    """Notes what the rules before it leave to be generated at every step, and changes nothing.

    Attributes:
        drawable: (answers, time) the same for finished answers.
    """

    drawable: Drawable

    def __init__(self) -> None:
        self.steps: list[Drawable] = []
        self.vocabulary = 0

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores as they are."""
        self.steps.append(Drawable.of(scores > -torch.inf))
        self.vocabulary = scores.shape[-1]
        return scores

    def finish(self, ids: Tensor, beams: Tensor | None) -> None:
        """Put the steps together.

        Args:
            ids: (answers, time).
            beams: (answers, time) the row that each token was generated in, where that is not the answer's own.
        """
        rows = torch.arange(len(ids), device=ids.device)
        steps: list[tuple[Tensor, Drawable] | None] = []
        for place, sets in enumerate(self.steps[: ids.shape[1]]):
            steps.append((rows, sets if beams is None else sets[beams[:, place].clamp(min=0)]))
        self.drawable = Drawable.assemble(steps, len(ids), self.vocabulary, ids.device)


def truncation(top_k: int, top_p: float) -> Callable[[Tensor], Tensor]:
    """Top-k and top-p as transformers applies them, on logits (rows, vocabulary); 0 and 1 do not limit."""
    warpers = sampling_limits(1.0, top_k, top_p)

    def apply(logits: Tensor) -> Tensor:
        return warpers(torch.empty(0, dtype=torch.long), logits)  # type: ignore[arg-type]

    return apply


def sampling_limits(temperature: float, top_k: int, top_p: float) -> LogitsProcessorList:
    """Temperature, top-k and top-p as transformers applies them before it samples."""
    warpers: list[LogitsProcessor] = []
    if temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(temperature))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return LogitsProcessorList(warpers)


class SeededSampling(LogitsProcessor):
    """Draws each row's next token with a generator of the row's own, so that no row depends on its neighbours.

    With one row this draws the very tokens that transformers draws after `torch.manual_seed(seed)`:
    `torch.multinomial` takes the largest of p / q with q from an exponential distribution, and so does `draw`. The
    choice is handed on as a distribution with one token in it. Applies temperature, top-k and top-p itself, since
    transformers puts its own after every processor that it is given.

    Args:
        seed: What all draws depend on.
        numbers: For each prompt its number; the draws for a prompt depend on it and not on its place in the batch.
        num_return_sequences: Rows a prompt.
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
        """Scores of (rows, vocabulary) with 0 at the drawn token and -inf elsewhere."""
        if not self.generators:
            self.generators = [torch.Generator(scores.device).manual_seed(seed) for seed in self.seeds]
        scores = self.warpers(input_ids, scores)  # type: ignore[arg-type]
        drawn = draw(scores.softmax(dim=-1), self.generators)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn.unsqueeze(-1), 0.0)


def draw(probabilities: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One token a row, each drawn with the row's own generator: `torch.multinomial` row by row.

    Args:
        probabilities: (rows, vocabulary).
        generators: One a row, on the same device.

    Returns:
        (rows,)
    """
    noise = torch.empty_like(probabilities)
    for row, generator in zip(noise, generators, strict=True):
        row.exponential_(1, generator=generator)
    return (probabilities / noise).argmax(dim=-1)


def row_seed(seed: int, number: int, answer: int) -> int:
    """The seed for one answer to one prompt; the seed itself for the first answer to prompt 0."""
    if number == answer == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {answer}".encode()).digest()[:7], "big")
