"""The tokens that end an answer, the same for data, training, rollouts, evaluation, generation, chat and export."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from src.models.tying import base_model, embedding_matrix

TURN_START, TURN_END = "<s>", "</s>"  # of `published` turns, by name: KoGPT2 has both but calls `</s>` its BOS
_ANSWER = "answer"
# Generation settings that name tokens, as opposed to decoding options.
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
    """The tokens that end an answer; any one of them does.

    These are the tokenizer's EOS, the token that the chat template puts after an assistant's turn, `</s>` if the
    tokenizer has both `<s>` and `</s>`, and the EOS of the model's generation settings. Ids outside of the vocabulary
    are left out: `GPT2Config(vocab_size=600)` has an EOS of 50256.

    Args:
        tokenizer: The model's.
        model: The model, with or without an adapter; left out for encoding data.

    Returns:
        The ids, the tokenizer's EOS first.
    """
    ids = [tokenizer.eos_token_id, _end_of_turn(tokenizer), _published_end(tokenizer)]
    if model is None:
        return _known(ids, tokenizer)
    base = base_model(model)
    return _known([*ids, *_listed(base.generation_config.eos_token_id)], tokenizer, embedding_matrix(base).shape[0])


def token_settings(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Those of a model's generation settings that name tokens, without ids outside of the vocabulary.

    Args:
        model: With or without an adapter.
        tokenizer: Its tokenizer, whose BOS and padding are used too.
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
    """Token ids up to, but without, the first one that ends an answer."""
    ends = set(endings)
    return list(ids[: next((place for place, id in enumerate(ids) if id in ends), len(ids))])


def close_answer(ids: list[int], tokenizer: PreTrainedTokenizerBase, endings: Sequence[int]) -> list[int]:
    """An answer with exactly one end token, if the tokenizer has any.

    A chat template may put several there, or white space after it, which is never generated.

    Args:
        ids: The answer's ids, with whatever a template put after it.
        tokenizer: The model's tokenizer.
        endings: What `ending_ids` returned.
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
    """Decode answers up to their ends.

    Args:
        tokenizer: The model's.
        ids: (answers, time), with any padding after their ends.
        endings: What `ending_ids` returned.
    """
    ends = set(endings)
    return list(tokenizer.batch_decode([until_end(row, ends) for row in ids.tolist()], skip_special_tokens=True))


def answer_mask(
    ids: Tensor, ending_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str] = ()
) -> Tensor:
    """The mask of generated answers' tokens: (answers, time) 1 = up to and including the end token.

    Args:
        ids: (answers, time), with any padding after their ends.
        ending_ids: The tokens that end an answer.
        tokenizer: The model's tokenizer.
        stop_strings: Texts that also end an answer, at the token that completes one.
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
    """The token that the chat template puts after an assistant's turn; None if there is no single one."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # templates may raise anything; encoding by the template reports it
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
    return ids[1] if all(found) else None  # for a missing token, the id is that of the unknown token or None


def _listed(ids: Any) -> list[int]:
    return [] if ids is None else list(ids) if isinstance(ids, (list, tuple)) else [int(ids)]


def _known(ids: Iterable[int | None], tokenizer: PreTrainedTokenizerBase, rows: int | None = None) -> list[int]:
    """The ids within the vocabulary, without duplicates."""
    found = dict.fromkeys(id for id in ids if id is not None and id >= 0 and (rows is None or id < rows))
    return [id for id in found if _has(tokenizer, id)]


def _has(tokenizer: PreTrainedTokenizerBase, id: int) -> bool:
    try:
        token = tokenizer.convert_ids_to_tokens(id)
    except (IndexError, KeyError, OverflowError):  # slow tokenizers raise
        return False
    return token is not None and tokenizer.convert_tokens_to_ids(token) == id
