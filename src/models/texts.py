"""Tokenises user texts, in which names of special tokens stay plain text, and counts characters that are lost."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerBase

_STANDS_IN = 0xF0000  # private-use characters, one for each special token


def text_ids(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, special: bool = False, target: bool = False
) -> list[list[int]]:
    """Token ids of texts, in which `</s>` is plain text and never the token of that name.

    Args:
        texts: The texts.
        tokenizer: A tokenizer from `load_tokenizer`.
        special: Add the tokenizer's special tokens around each text.
        target: Encode as targets, for tokenizers that distinguish them.
    """
    if not texts:
        return []
    text = {"text_target" if target else "text": list(texts)}
    return tokenizer(**text, add_special_tokens=special, split_special_tokens=True, verbose=False)["input_ids"]


def tell_names_from_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a unigram tokenizer split the name of a special token in a text.

    `split_special_tokens` keeps `</s>` in a text from becoming the token, except in unigram tokenizers such as T5's,
    whose vocabulary has it like any word. A pre-tokeniser step separates its first character from the rest.
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
    """Token ids of disguised texts rendered by a chat template: its markers become tokens, the texts stay plain text.

    Args:
        text: The rendering of texts that were disguised by `disguise`.
        tokenizer: The tokenizer with the chat template.
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
    """Token ids of consecutive pieces of one rendered text.

    Together they are the ids of the whole text, if no token of it crosses a border of pieces; otherwise pieces are
    encoded separately. Either way a piece's ids depend only on it and on the pieces before it.

    Args:
        pieces: As for `rendered_ids`.
        tokenizer: The tokenizer with the chat template.
    """
    apart = [rendered_ids(piece, tokenizer) for piece in pieces]
    if len(pieces) < 2 or [id for ids in apart for id in ids] == rendered_ids("".join(pieces), tokenizer):
        return apart
    before, placed = apart[0], [apart[0]]  # such as of a tokenizer that adds a blank before a text
    for number in range(1, len(pieces)):
        whole = rendered_ids("".join(pieces[: number + 1]), tokenizer)
        placed.append(whole[len(before) :] if whole[: len(before)] == before else apart[number])
        before = [*before, *placed[-1]]
    return placed


def disguise(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str]:
    """A function that hides the names of special tokens in texts until `rendered_ids`.

    Returns:
        A function that replaces each name in a text by a private-use character.
    """
    names = special_names(tokenizer)
    if not names:
        return lambda text: text
    pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
    return lambda text: pattern.sub(lambda match: chr(_STANDS_IN + names.index(match[0])), text)


def special_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The names of the special tokens, sorted by id."""
    added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    roles = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return [name for _, name in sorted({**roles, **added}.items()) if name]


def _undisguised(text: str, names: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The original text, and the spans of names in it that are plain text."""
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
    """The number of characters of each text that decoding its tokens does not restore.

    White space, case and Unicode normalisation are ignored, since many tokenizers change them.

    Args:
        texts: The texts.
        encoded: The token ids of each, with or without special tokens.
        tokenizer: The tokenizer that made them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        decoded = tokenizer.batch_decode(list(encoded), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    else:  # at once; transformers looks at every id in Python, which takes four times as long as decoding
        decoded = backend.decode_batch(list(encoded), skip_special_tokens=True)
    pairs = ((visible(text), visible(back)) for text, back in zip(texts, decoded, strict=True))
    return [0 if text == back else (Counter(text) - Counter(back)).total() for text, back in pairs]


def visible(text: str) -> str:
    """The characters that `lost_characters` counts."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
