"""Loads tokenizers, also those without padding token, in old file layouts, or larger than the model's embeddings."""

from __future__ import annotations

import copy
import functools
import logging
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer, SentencePieceBPETokenizer, Tokenizer
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from src.errors import ParleyError
from src.models.sources import adapter_base, find_file, is_adapter, locate, modified, quietly, read_json, reading
from src.models.texts import tell_names_from_tokens
from src.models.tying import embedding_matrix, head_is_tied

logger = logging.getLogger(__name__)
ADDED_PADDING = "<pad>"
FEWEST_WORDS = 8
PROBES, PROBE_WORDS = 256, 16  # number of texts for comparing two tokenizers, and words in each
UNKNOWN = "\U0010fffd"  # a private-use character, which no vocabulary has
SPECIAL_TOKENS = {
    "bos_token": ("<s>", "</s>", "<|endoftext|>"),
    "eos_token": ("</s>", "<|endoftext|>"),
    "pad_token": ("<pad>",),
    "unk_token": ("<unk>", "<|endoftext|>"),
}
UNBOUNDED_LENGTH = int(1e30)  # transformers' value for no limit


def load_tokenizer(
    name_or_path: str | Path, gguf_file: str | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer, with a padding token, that encodes names of special tokens in texts as plain text.

    Without a padding token one is chosen, in this order: `<pad>` if it is in the vocabulary, the unknown token, EOS, an
    added `<pad>` (then the embeddings must grow: see `fit_embeddings`). EOS is still learned in every case, because
    batches mark padding by the attention mask and labels of -100, never by the id.

    Args:
        name_or_path: A model directory or hub name, or a PEFT adapter directory (its own tokenizer, or its base's).
        gguf_file: The GGUF file's name within the directory, which then holds the tokenizer too.
        trust_remote_code: Allow code from the model's directory to run.

    Raises:
        ParleyError: When there is none, or it cannot be read.
    """
    if is_adapter(name_or_path) and not _has_tokenizer(Path(name_or_path).expanduser()):
        base, base_gguf = adapter_base(name_or_path)
        return load_tokenizer(base, gguf_file or base_gguf, trust_remote_code=trust_remote_code)
    if is_adapter(name_or_path):
        gguf_file = None  # the GGUF file is the base's; the adapter has its own tokenizer files
    tokenizer = read_tokenizer(name_or_path, gguf_file, trust_remote_code=trust_remote_code)
    _ensure_eos(tokenizer, *locate(name_or_path))
    ensure_padding(tokenizer)
    tell_names_from_tokens(tokenizer)
    return tokenizer


def read_tokenizer(
    name_or_path: str | Path, gguf_file: str | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Read a tokenizer as its files define it, without adding special tokens.

    Args:
        name_or_path: A directory or hub name.
        gguf_file: As for `load_tokenizer`.
        trust_remote_code: As for `load_tokenizer`.

    Raises:
        ParleyError: As `load_tokenizer`.
    """
    name, local_only = locate(name_or_path)
    with reading("the tokenizer", name), quietly(bars=True):
        tokenizer: PreTrainedTokenizerBase | None
        if gguf_file:
            kept = _gguf_tokenizer(name, gguf_file, local_only, trust_remote_code, modified(Path(name) / gguf_file))
            tokenizer = copy.deepcopy(kept)
        else:
            tokenizer = _without_settings(name, local_only)
            if tokenizer is None:
                tokenizer = _as_its_file_says(name, local_only, trust_remote_code)
        if tokenizer is None:
            try:
                tokenizer = AutoTokenizer.from_pretrained(
                    name, local_files_only=local_only, trust_remote_code=trust_remote_code
                )
            except ValueError as error:
                if "backend tokenizer" not in str(error):  # transformers then lists, over lines, what it looked for
                    raise
                raise ParleyError(f"{name} has no tokenizer: its files (tokenizer.json, ...) are missing.") from error
    words = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
    if len(words) < FEWEST_WORDS:  # if files are missing, transformers makes a nearly empty tokenizer
        raise ParleyError(f"the tokenizer of {name} has no vocabulary; its files (tokenizer.json, ...) are missing.")
    return tokenizer


@functools.lru_cache(maxsize=4)
def _gguf_tokenizer(
    name: str, gguf_file: str, local_only: bool, trust_remote_code: bool, _modified: float
) -> PreTrainedTokenizerBase:
    """The tokenizer in a GGUF file, cached: transformers reads the whole file, which takes seconds."""
    return AutoTokenizer.from_pretrained(
        name, local_files_only=local_only, gguf_file=gguf_file, trust_remote_code=trust_remote_code
    )


def ensure_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Choose a padding token if there is none; see `load_tokenizer` for the order."""
    if tokenizer.pad_token_id is not None:
        return
    vocabulary = tokenizer.get_vocab()
    if ADDED_PADDING in vocabulary:
        tokenizer.pad_token = ADDED_PADDING
    elif tokenizer.unk_token_id is not None and tokenizer.unk_token_id != tokenizer.eos_token_id:
        tokenizer.pad_token = tokenizer.unk_token
    elif tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    else:
        tokenizer.add_special_tokens({"pad_token": ADDED_PADDING})
    logger.info("The tokenizer has no padding token: padding with %s.", tokenizer.pad_token)


def fit_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Add rows to embeddings and head if the tokenizer has more tokens than the model has rows.

    Old rows are unchanged; each new row is the mean of the old ones, which is deterministic, so that all processes get
    the same model. Spare rows (FLAN-T5 has 28) are kept.

    Returns:
        The number of added rows.
    """
    rows = embedding_matrix(model).shape[0]
    added = len(tokenizer) - rows
    if added <= 0:
        return 0
    untied = not head_is_tied(model)
    head = model.get_output_embeddings()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    _fill_with_mean(embedding_matrix(model), rows)
    if untied and head is not None:
        if head.weight.shape[0] == rows:  # transformers takes an untied T5 for a tied one, and does not resize its head
            grown = nn.Linear(
                head.in_features,
                len(tokenizer),
                bias=head.bias is not None,
                dtype=head.weight.dtype,
                device=head.weight.device,
            )
            with torch.no_grad():
                for name, parameter in head.named_parameters():
                    grown.get_parameter(name)[:rows] = parameter
            model.set_output_embeddings(grown)
        for parameter in model.get_output_embeddings().parameters():
            _fill_with_mean(parameter, rows)
    logger.info("The tokenizer has %d tokens more than the model: as many embeddings added.", added)
    return added


@torch.no_grad()
def _fill_with_mean(matrix: torch.Tensor, rows: int) -> None:
    matrix[rows:] = matrix[:rows].float().mean(dim=0).to(matrix.dtype)


def _ensure_eos(tokenizer: PreTrainedTokenizerBase, name: str, local_only: bool) -> None:
    """Find the special tokens if no EOS is named: without one, a model does not learn to end answers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if tokenizer.eos_token_id is not None or backend is None:
        return
    config = find_file(name, "config.json", local_only)
    roles = _roles(backend, read_json(config) if config is not None else {})
    tokenizer.add_special_tokens({role: token for role, token in roles.items() if getattr(tokenizer, role) is None})
    if tokenizer.eos_token_id is None:
        logger.warning("No token of %s is known to end an answer: what is trained with it goes on to the limit.", name)


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json"))


def _without_settings(name: str, local_only: bool) -> PreTrainedTokenizerBase | None:
    """Read a tokenizer without `tokenizer_config.json`, such as KoGPT2's; None for any other.

    `AutoTokenizer` then goes by the model's type, which for a GPT-2 is byte-level: it keeps the vocabulary of
    `tokenizer.json` and drops the pre-tokeniser, so that all Korean characters are lost.
    """
    if find_file(name, "tokenizer_config.json", local_only) is not None:
        return None
    if (whole := find_file(name, "tokenizer.json", local_only)) is not None:
        backend = Tokenizer.from_file(str(whole))
    else:
        vocabulary, merges = (find_file(name, file, local_only) for file in ("vocab.json", "merges.txt"))
        if vocabulary is None or merges is None:
            return None
        backend = _bare_bpe(vocabulary, merges)
    config = find_file(name, "config.json", local_only)
    settings = read_json(config) if config is not None else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=settings.get("n_positions") or settings.get("max_position_embeddings") or UNBOUNDED_LENGTH,
        clean_up_tokenization_spaces=False,
        **_roles(backend, settings),
    )


def _as_its_file_says(name: str, local_only: bool, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """Read `tokenizer.json` unchanged if the class named in `tokenizer_config.json` would tokenise differently.

    transformers 5 takes the vocabulary from the file and builds the class's usual pipeline around it. A KoBART of class
    `BartTokenizer` is then byte-level, and loses all Korean characters.

    Returns:
        The tokenizer; None if there is no such file, or the class tokenises in the same way.
    """
    whole = find_file(name, "tokenizer.json", local_only)
    if whole is None:
        return None
    backend = Tokenizer.from_file(str(whole))
    try:
        rebuilt: PreTrainedTokenizerBase | None = AutoTokenizer.from_pretrained(
            name, local_files_only=local_only, trust_remote_code=trust_remote_code
        )
    except (TypeError, ValueError):  # the class does not fit the kind of tokenizer in the file
        rebuilt = None
    if rebuilt is not None and _cuts_alike(backend, rebuilt):
        return rebuilt
    config = find_file(name, "config.json", local_only)
    roles = _roles(backend, read_json(config) if config is not None else {})
    if rebuilt is not None:  # special tokens that the class knows by itself
        usual = {role: getattr(rebuilt, role) for role in SPECIAL_TOKENS}
        roles |= {role: str(token) for role, token in usual.items() if backend.token_to_id(str(token)) is not None}
    as_it_is = PreTrainedTokenizerFast.from_pretrained(name, local_files_only=local_only)
    as_it_is.add_special_tokens({role: token for role, token in roles.items() if getattr(as_it_is, role) is None})
    logger.info("tokenizer.json of %s is read as it is: its class would cut texts otherwise.", name)
    return as_it_is


def _cuts_alike(backend: Tokenizer, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers agree on texts made of the first one's vocabulary, which covers its languages."""
    rebuilt = getattr(tokenizer, "backend_tokenizer", None)
    size = backend.get_vocab_size(with_added_tokens=False)
    starts = range(0, size, max(size // PROBES, PROBE_WORDS))
    texts = [backend.decode(list(range(start, min(start + PROBE_WORDS, size)))) for start in starts] + [UNKNOWN]
    if rebuilt is None:
        cuts = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        cuts = [cut.ids for cut in rebuilt.encode_batch(texts, add_special_tokens=False)]
    return bool(cuts == [cut.ids for cut in backend.encode_batch(texts, add_special_tokens=False)])


def _bare_bpe(vocabulary: Path, merges: Path) -> Tokenizer:
    """Read `vocab.json` and `merges.txt`: byte-level as GPT-2's, or with SentencePiece's `▁` as KoGPT2's."""
    words = read_json(vocabulary)
    if not any(word.startswith("▁") for word in words):
        return ByteLevelBPETokenizer.from_file(str(vocabulary), str(merges))._tokenizer
    unknown = "<unk>" if "<unk>" in words else "<|endoftext|>"
    return SentencePieceBPETokenizer.from_file(str(vocabulary), str(merges), unk_token=unknown)._tokenizer


def _roles(backend: Tokenizer, settings: dict[str, Any]) -> dict[str, str]:
    """The special tokens by role: from the ids in the model's config, else by their usual names."""
    roles: dict[str, str] = {}
    for role, usual in SPECIAL_TOKENS.items():
        given = settings.get(f"{role}_id")
        token = backend.id_to_token(given) if isinstance(given, int) and given >= 0 else None
        token = token or next((name for name in usual if backend.token_to_id(name) is not None), None)
        if token is not None:
            roles[role] = token
    return roles
