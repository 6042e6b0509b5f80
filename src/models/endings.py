"""Where an answer ends: decided here for data, training, rollouts, evaluation, generation, chat and export."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from src.models.tying import base_model, embedding_matrix

TURN_START, TURN_END = "<s>", "</s>"  # the published turns, by name: KoGPT2 has both but calls `</s>` its BOS
_ANSWER = "answer"
# Settings that name tokens rather than say how to decode.
TOKEN_SETTINGS = (
    "bos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
)


def ending_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | PeftModel | None = None) -> list[int]:
    """The tokens that end an answer, each of them enough.

    These are the tokenizer's EOS, what the chat template puts after an assistant's turn, `</s>` where the tokenizer has
    the published turns, and what the model's generation settings name. Ids that there is no token for do not count:
    `GPT2Config(vocab_size=600)` has an EOS of 50256.

    Args:
        tokenizer: The model's.
        model: With or without an adapter; data is made without one.

    Returns:
        The ids, the tokenizer's EOS first.
    """
    ids = [tokenizer.eos_token_id, _end_of_turn(tokenizer), _published_end(tokenizer)]
    if model is None:
        return _known(ids, tokenizer)
    base = base_model(model)
    return _known([*ids, *_listed(base.generation_config.eos_token_id)], tokenizer, embedding_matrix(base).shape[0])


def token_settings(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Of a model's generation settings those that name tokens, without ids that there is no token for.

    Args:
        model: With or without an adapter.
        tokenizer: Its tokenizer, whose BOS and padding stand in or count.
    """
    base = base_model(model)
    rows = embedding_matrix(base).shape[0]
    chosen: dict[str, Any] = {}
    for name in TOKEN_SETTINGS:
        value = getattr(base.generation_config, name, None)
        if name == "bad_words_ids":
            lists = [ids for ids in value or () if len(_known(ids, tokenizer, rows)) == len(set(ids))]
            chosen[name] = lists or None
        elif isinstance(value, (list, tuple)):
            chosen[name] = _known(value, tokenizer, rows) or None
        else:
            chosen[name] = next(iter(_known([value], tokenizer, rows)), None)
    if chosen["bos_token_id"] is None:
        chosen["bos_token_id"] = tokenizer.bos_token_id
    ends = ending_ids(tokenizer, base)
    chosen |= {"eos_token_id": ends or None, "pad_token_id": tokenizer.pad_token_id}
    return GenerationConfig(**chosen)


def until_end(ids: Sequence[int], endings: Iterable[int]) -> list[int]:
    """Token ids up to the first that ends an answer, which is no part of it."""
    ends = set(endings)
    return list(ids[: next((place for place, id in enumerate(ids) if id in ends), len(ids))])


def close_answer(ids: list[int], tokenizer: PreTrainedTokenizerBase, endings: Sequence[int]) -> list[int]:
    """An answer with the one token that ends it, where the tokenizer has any.

    A chat template may put several there, or white space after it, which nobody generates.

    Args:
        ids: An answer's, with whatever a template put behind it.
        tokenizer: The model's.
        endings: What `ending_ids` gave.
    """
    place = len(ids)
    for end in range(len(ids) - 1, -1, -1):
        if ids[end] in endings:
            place = end
        elif str(tokenizer.decode([ids[end]])).strip():
            break
    if place < len(ids):
        return ids[: place + 1]
    return [*ids, endings[0]] if endings else ids


def decode_answers(tokenizer: PreTrainedTokenizerBase, ids: Tensor, endings: Iterable[int]) -> list[str]:
    """Answers as text, up to their ends.

    Args:
        tokenizer: The model's.
        ids: (answers, time), whatever fills them up after their ends.
        endings: What `ending_ids` gave.
    """
    ends = set(endings)
    return list(tokenizer.batch_decode([until_end(row, ends) for row in ids.tolist()], skip_special_tokens=True))


def answer_mask(
    ids: Tensor, ending_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str] = ()
) -> Tensor:
    """Which tokens belong to generated answers: (answers, time) 1 = up to the one that ended it, which counts.

    Args:
        ids: (answers, time), filled up with anything after their ends.
        ending_ids: Each of these ends an answer.
        tokenizer: The model's.
        stop_strings: Texts that end an answer too: with the token that completes one.
    """
    ends = torch.isin(ids, torch.tensor(list(ending_ids), dtype=torch.long, device=ids.device)).long()
    mask = (ends.cumsum(-1) - ends == 0).long()
    if not stop_strings:
        return mask
    for row, length in zip(ids, mask, strict=True):

        def has_stopped(size: int, row: Tensor = row) -> bool:
            text = tokenizer.decode(row[:size], skip_special_tokens=True)
            return any(stop in text for stop in stop_strings)

        length[bisect_left(range(1, len(row) + 1), True, key=has_stopped) + 1 :] = 0
    return mask


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template puts after an assistant's turn, where it is one."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # a template is a program that raises what it likes; whoever asks by it is told so
        return None
    before, _, after = text.rpartition(_ANSWER)
    if not before or not after.strip():
        return None
    id = tokenizer(after.lstrip(), add_special_tokens=False, verbose=False)["input_ids"][0]
    is_added = id in tokenizer.added_tokens_decoder or id in tokenizer.all_special_ids
    return id if is_added else None


def _published_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    marks: list[str] = [TURN_START, TURN_END]
    ids: list[int | None] = [tokenizer.convert_tokens_to_ids(mark) for mark in marks]  # type: ignore[misc]
    found = [
        id is not None and tokenizer.convert_ids_to_tokens(id) == mark for id, mark in zip(ids, marks, strict=True)
    ]
    return ids[1] if all(found) else None  # of one that it lacks, the id is the unknown token's or None


def _listed(ids: Any) -> list[int]:
    return [] if ids is None else list(ids) if isinstance(ids, (list, tuple)) else [int(ids)]


def _known(ids: Iterable[int | None], tokenizer: PreTrainedTokenizerBase, rows: int | None = None) -> list[int]:
    """Those that there is a token for, each once."""
    found = dict.fromkeys(id for id in ids if id is not None and id >= 0 and (rows is None or id < rows))
    return [id for id in found if _has(tokenizer, id)]


def _has(tokenizer: PreTrainedTokenizerBase, id: int) -> bool:
    try:
        token = tokenizer.convert_ids_to_tokens(id)
    except (IndexError, KeyError, OverflowError):  # a tokenizer written in Python
        return False
    return token is not None and tokenizer.convert_tokens_to_ids(token) == id
