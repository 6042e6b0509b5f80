"""PEFT adapter directories: writing one, and loading one onto its base."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.errors import ParleyError
from src.models.fingerprint import BaseRecord, base_record
from src.models.finite import refuse_not_finite
from src.models.low_precision import train_in_float32
from src.models.saving import fresh_directory, rewrite_json, save_tokenizer
from src.models.sources import BASE_FILE, FOREIGN_CODE, is_adapter, read_json, reading
from src.models.tokenizer import fit_embeddings
from src.models.tying import base_model, embedding_matrix


def save_adapter(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, directory: str | Path, *, overwrite: bool = False
) -> Path:
    """Write a PEFT adapter directory with the base's name, which `PeftModel.from_pretrained` takes.

    Beside PEFT's files lies `parley_base.json` with the base's fingerprint, so that `load_adapter` can refuse
    another base.

    Args:
        model: The PEFT model.
        tokenizer: Its tokenizer.
        directory: The directory to write, atomically.
        overwrite: Replace a directory that is not empty.

    Raises:
        ParleyError: The directory is not empty, or cannot be written.
    """
    base = base_record(model)
    name = _absolute(base.name)
    rows = embedding_matrix(base_model(model)).shape[0]
    with fresh_directory(directory, overwrite) as folder:
        # PEFT would find out by itself whether embeddings have grown, but asks the hub for it, and waits where it
        # does not answer.
        model.save_pretrained(str(folder), save_embedding_layers=rows != base.rows)
        rewrite_json(folder / "adapter_config.json", {"base_model_name_or_path": name})
        record: dict[str, Any] = {"name": name, "gguf_file": base.gguf_file, "rows": rows}
        record["fingerprint"] = base.fingerprint
        if base.outputs is not None:
            record["outputs"] = base.outputs
        (folder / BASE_FILE).write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        save_tokenizer(tokenizer, folder)
    return Path(directory)


def load_adapter(
    model: PreTrainedModel,
    base: BaseRecord,
    directory: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    is_trainable: bool = False,
    beside: PeftModel | None = None,
    name: str = "default",
) -> PeftModel:
    """Load an adapter onto its base, whose embeddings are grown if the adapter was trained with grown ones.

    An adapter of another program has no record of its base: the base is not checked, and grown if the tokenizer needs
    it.

    Args:
        model: The base; changed in place.
        base: Its record.
        directory: The adapter.
        tokenizer: The adapter's.
        is_trainable: Whether the adapter's weights take gradients.
        beside: The base with other adapters, to which this one is added.
        name: PEFT's name of the adapter.

    Raises:
        ParleyError: When the adapter was trained on another base (with the names of both), cannot be read, or has
            weights that are not finite.
    """
    path = Path(directory) / BASE_FILE
    record = read_json(path) if path.is_file() else {}
    if record.get("outputs") != base.outputs:
        told = "is a language model's; fold it into its base first (parley export --merge)"
        if base.outputs is None:
            told = "is a reward model's, which answers nothing; give another"
        raise ParleyError(f"the adapter {directory} {told}.")
    if record.get("fingerprint") not in (None, base.fingerprint):
        raise ParleyError(
            f"the adapter {directory} was trained on {record.get('name')}, whose weights differ from those of "
            f"{model.name_or_path}; give the base it was trained on."
        )
    if record.get("rows", math.inf) > embedding_matrix(model).shape[0]:
        fit_embeddings(model, tokenizer)
    with reading("the adapter", str(directory)):
        if beside is None:
            adapted = PeftModel.from_pretrained(model, str(directory), adapter_name=name, is_trainable=is_trainable)
        else:
            adapted = beside
            adapted.load_adapter(str(directory), adapter_name=name, is_trainable=is_trainable)
        if train_in_float32(adapted):  # what had been read in the base's precision
            set_peft_model_state_dict(adapted, load_peft_weights(str(directory), device="cpu"), adapter_name=name)
    refuse_not_finite(_own_weights(adapted, base.rows, name).items(), str(directory))
    return adapted


def _own_weights(model: PeftModel, rows: int, name: str) -> dict[str, Tensor]:
    """The weights to save in an adapter's directory; with the embeddings if they were grown beyond `rows`."""
    # PEFT would find out by itself whether they have, but asks the hub for it, and waits where it does not answer.
    has_grown = embedding_matrix(base_model(model)).shape[0] != rows
    weights: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=has_grown)
    return weights


def classifier_outputs(directory: str | Path) -> int | None:
    """The number of outputs of a classifier whose adapter Parley wrote; None for anything else."""
    path = Path(directory).expanduser() / BASE_FILE
    return read_json(path).get("outputs") if is_adapter(directory) and path.is_file() else None


def refuse_code(settings: dict[str, Any], name: str) -> None:
    """Refuse an adapter whose settings would run a tokenizer's own code, as PEFT passes them on unchecked.

    Args:
        settings: The content of its adapter_config.json, or the same in a checkpoint.
        name: Their source, for the message.

    Raises:
        ParleyError: They would.
    """
    if (settings.get("tokenizer_kwargs") or {}).get("trust_remote_code"):
        raise ParleyError(f"{name} {FOREIGN_CODE}")


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if name and path.is_dir() else name
