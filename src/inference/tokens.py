"""Shows how a tokenizer splits a text, and whether decoding restores the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from src.callbacks.storage import is_checkpoint, read_checkpoint
from src.errors import ParleyError
from src.models.loading import load_tokenizer
from src.models.texts import lost_characters, special_names, text_ids


@dataclass(frozen=True)
class Token:
    """One token of a text.

    Attributes:
        id: Its number in the vocabulary.
        token: Its spelling in the vocabulary.
        text: What it decodes to by itself; a character spread over several tokens shows as `�` in each.
        special: Whether it is one of the special tokens.
    """

    id: int
    token: str
    text: str
    special: bool


@dataclass(frozen=True)
class TokenisedText:
    """A text and its tokens.

    Attributes:
        text: The given text.
        tokens: Its tokens, including special ones.
        back: What the tokens decode to, without special ones.
        lost: The number of characters that decoding does not restore, ignoring blanks, case and Unicode normalisation.
    """

    text: str
    tokens: list[Token]
    back: str
    lost: int

    @property
    def survived(self) -> str:
        """`exactly`, `but for blanks or case`, or how many characters are lost."""
        if self.back == self.text:
            return "exactly"
        return f"{self.lost} characters are lost" if self.lost else "but for blanks or case"


def read_tokenizer_of(
    name_or_path: str, *, gguf_file: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint, an adapter or model directory, or a hub name.

    Raises:
        ParleyError: There is none, or it cannot be read.
    """
    place = Path(name_or_path).expanduser()
    if is_checkpoint(place):
        base = read_checkpoint(place, mmap=True).get("parley", {}).get("base")
        if base is None:
            raise ParleyError(f"{place} was not written by Parley; give the directory of its model.")
        name_or_path, gguf_file = base["name"], base["gguf_file"]
    return load_tokenizer(name_or_path, gguf_file=gguf_file, trust_remote_code=trust_remote_code)


def tokenise(text: str, tokenizer: PreTrainedTokenizerBase, *, special: bool = True) -> TokenisedText:
    """Tokenise a text as training and generation do: names of special tokens in it stay plain text.

    Args:
        text: The text.
        tokenizer: The model's.
        special: Add the tokens that the tokenizer puts around a text.
    """
    [ids] = text_ids([text], tokenizer, special=special)
    back = str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    [lost] = lost_characters([text], [ids], tokenizer)
    return TokenisedText(text, named(ids, tokenizer), back, lost)


def named(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[Token]:
    """Describe token ids."""
    specials = set(special_names(tokenizer))
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    texts = [str(tokenizer.decode([id], clean_up_tokenization_spaces=False)) for id in ids]
    return [Token(id, str(token), text, token in specials) for id, token, text in zip(ids, tokens, texts, strict=True)]


def look_up(asked: str, tokenizer: PreTrainedTokenizerBase) -> Token:
    """Find a token by its id or by its spelling.

    Args:
        asked: An id, or a spelling, either as in the vocabulary (`▁the`) or as plain text.
        tokenizer: The model's.

    Raises:
        ParleyError: The vocabulary has no such token.
    """
    vocabulary = tokenizer.get_vocab()
    if asked in vocabulary and not asked.isdigit():
        return named([vocabulary[asked]], tokenizer)[0]
    if asked.isdigit():
        if int(asked) >= len(tokenizer):
            raise ParleyError(f"there is no token {asked}: the vocabulary has {len(tokenizer):,}, from 0.")
        return named([int(asked)], tokenizer)[0]
    [ids] = text_ids([asked], tokenizer)
    if len(ids) == 1:
        return named(ids, tokenizer)[0]
    raise ParleyError(f"{asked!r} is not one token here but {len(ids)}; tokenise it as a text to see them.")
