"""What people wrote, as token ids: it stays text, whatever tokens are called, and what is lost of it is counted."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerBase

_STANDS_IN = 0xF0000  # characters for private use, which no text has: one for each special token


def text_ids(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, special: bool = False, target: bool = False
) -> list[list[int]]:
    """Token ids of texts in which `</s>` is five characters and never the token of that name.

    Args:
        texts: What people wrote.
        tokenizer: As `load_tokenizer` gives it.
        special: Put the tokenizer's own tokens around each.
        target: Encode as the tokenizer wants answers, where it makes a difference.
    """
    if not texts:
        return []
    text = {"text_target" if target else "text": list(texts)}
    return tokenizer(**text, add_special_tokens=special, split_special_tokens=True, verbose=False)["input_ids"]


def tell_names_from_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a text that reads like a special token be cut, where the model of the tokenizer would find it whole.

    `split_special_tokens` keeps `</s>` in a text from becoming the token, but for a tokenizer of unigrams, as T5's,
    it is a word like any other. A step before that model parts its first character from the rest.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    names = special_names(tokenizer)
    cuts = text_ids(names, tokenizer)
    whole = [name for name, ids in zip(names, cuts, strict=True) if tokenizer.convert_tokens_to_ids(name) in ids]
    pattern = "|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in whole if len(name) > 1)
    if pattern:
        before = [backend.pre_tokenizer] if backend.pre_tokenizer is not None else []
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([*before, split])


def rendered_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of what a chat template made of disguised texts: its markers are tokens, the texts stay text.

    Args:
        text: Rendered from texts that went through `disguise`.
        tokenizer: The chat template's.
    """
    names = special_names(tokenizer)
    original, spans = _undisguised(text, names)
    options = {"add_special_tokens": False, "verbose": False}
    if not spans:
        ids: list[int] = tokenizer(original, **options)["input_ids"]
        return ids
    encoded = tokenizer(original, **options, return_offsets_mapping=True)
    kept: list[int] = []
    for id, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        is_text = any(first < stop and start < last for first, last in spans)
        if is_text and tokenizer.convert_ids_to_tokens(id) in names:
            kept += text_ids([original[start:stop]], tokenizer)[0]
        else:
            kept.append(id)
    return kept


def rendered_pieces(pieces: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of pieces of one rendered text, each as it follows those before it.

    All ids together are those of the text as a whole, where its tokens do not reach over the borders of pieces. Where
    they do, a piece is encoded by itself. Either way a piece's ids depend on it and on what is before it alone.

    Args:
        pieces: As for `rendered_ids`.
        tokenizer: The chat template's.
    """
    apart = [rendered_ids(piece, tokenizer) for piece in pieces]
    if len(pieces) < 2 or [id for ids in apart for id in ids] == rendered_ids("".join(pieces), tokenizer):
        return apart
    before, placed = apart[0], [apart[0]]  # a tokenizer that puts a blank before a text, for instance
    for number in range(1, len(pieces)):
        whole = rendered_ids("".join(pieces[: number + 1]), tokenizer)
        placed.append(whole[len(before) :] if whole[: len(before)] == before else apart[number])
        before = [*before, *placed[-1]]
    return placed


def disguise(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str]:
    """What makes the names of special tokens in a text unrecognisable until `rendered_ids`.

    Returns:
        From a text to one with a character for private use in the place of each name.
    """
    names = special_names(tokenizer)
    if not names:
        return lambda text: text
    pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
    return lambda text: pattern.sub(lambda match: chr(_STANDS_IN + names.index(match[0])), text)


def special_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens, by id."""
    added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    roles = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return [name for _, name in sorted({**roles, **added}.items()) if name]


def _undisguised(text: str, names: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The text as it was, and from where to where it has names that are text."""
    original, spans = "", []
    for piece in re.split(f"([{chr(_STANDS_IN)}-{chr(_STANDS_IN + len(names))}])", text):
        number = ord(piece) - _STANDS_IN if len(piece) == 1 else -1
        if 0 <= number < len(names):
            spans.append((len(original), len(original) + len(names[number])))
            piece = names[number]
        original += piece
    return original, spans


def lost_characters(
    texts: Sequence[str], encoded: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """How many characters of each text do not come back from its tokens.

    Blanks, case and Unicode's forms of one character do not count, since many tokenizers fold them.

    Args:
        texts: What people wrote.
        encoded: The token ids of each, special tokens among them or not.
        tokenizer: Which made them.
    """
    decoded = tokenizer.batch_decode(list(encoded), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    pairs = ((visible(text), visible(back)) for text, back in zip(texts, decoded, strict=True))
    return [0 if text == back else (Counter(text) - Counter(back)).total() for text, back in pairs]


def visible(text: str) -> str:
    """The characters that `lost_characters` counts."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
