"""Writes plain Hugging Face directories that both transformers 5 and 4.45 can load."""

from __future__ import annotations

import copy
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from src.errors import ParleyError
from src.models.endings import ending_ids
from src.models.sources import quietly, read_json
from src.models.tying import T5_FAMILY, head_is_tied
from src.writing import writing


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: str | Path, *, overwrite: bool = False
) -> Path:
    """Write a model directory that gives the same logits in transformers 5 and in 4.45.

    Args:
        model: A whole model (merge an adapter first, or use `save_adapter`).
        tokenizer: Its tokenizer.
        directory: The directory; written under a temporary name and renamed, so it is never incomplete.
        overwrite: Replace a directory that is not empty.

    Returns:
        The directory.

    Raises:
        ParleyError: The directory is not empty, or cannot be written.
    """
    if isinstance(model, PeftModel):
        raise ParleyError("this model carries an adapter; merge it first, or save the adapter alone.")
    with fresh_directory(directory, overwrite) as folder:
        changes = _tying_for_both_versions(model)
        with quietly(), _all_weights(model):
            model.save_pretrained(folder, state_dict=_state_for_both_versions(model, changes))
        rewrite_json(folder / "config.json", changes | _rope_for_both_versions(model.config.to_dict()))
        if model.can_generate():
            _save_settings(model, tokenizer, folder)
        save_tokenizer(tokenizer, folder)
    return Path(directory)


@contextmanager
def _all_weights(model: PreTrainedModel) -> Iterator[None]:
    """Within the block save positions too, which Marian and others leave out, and no generation settings.

    The settings are written separately, since transformers refuses contradictory ones, which some published models
    have.
    """
    skipped, settings = model._keys_to_ignore_on_save, getattr(model, "generation_config", None)
    model._keys_to_ignore_on_save = None
    if settings is not None:
        model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model._keys_to_ignore_on_save = skipped
        if settings is not None:
            model.generation_config = settings


def _save_settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the model's generation settings unchanged, except that EOS lists all tokens that end an answer."""
    settings, ends = copy.deepcopy(model.generation_config), ending_ids(tokenizer, model)
    settings.eos_token_id = ends if len(ends) > 1 else next(iter(ends), None)
    settings.to_json_file(folder / "generation_config.json")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write a tokenizer that both versions load: tokenizer.json is complete, so the generic class is named."""
    tokenizer.save_pretrained(str(directory), save_jinja_files=False)
    path = directory / "tokenizer_config.json"
    config = read_json(path)
    if (directory / "tokenizer.json").is_file():
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config.pop("backend", None)
    if isinstance(extra := config.pop("extra_special_tokens", None), list):
        config["additional_special_tokens"] = extra  # a name that both versions know
    config.setdefault("clean_up_tokenization_spaces", bool(tokenizer.clean_up_tokenization_spaces))
    _write_json(path, config)


def _tying_for_both_versions(model: PreTrainedModel) -> dict[str, Any]:
    """The entries of config.json with which both versions tie and scale the head as this model does.

    In transformers 4 the flag of the T5 family means tied *and* scaled by d_model^-0.5; in 5, T5 ties by what the
    weights are and scales by `scale_decoder_outputs`, mT5 never scales. "Not tied" with both matrices in the file
    is right everywhere for a model that does not scale.
    """
    if model.get_output_embeddings() is None:
        return {}
    tied = head_is_tied(model)
    if model.config.model_type not in T5_FAMILY:
        return {"tie_word_embeddings": tied}
    scaled = model.config.model_type != "mt5" and bool(getattr(model.config, "scale_decoder_outputs", True))
    if tied and scaled:
        return {"tie_word_embeddings": True}
    changes: dict[str, Any] = {"tie_word_embeddings": False}
    return changes | {"scale_decoder_outputs": False} if model.config.model_type == "t5" else changes


def _state_for_both_versions(model: PreTrainedModel, changes: dict[str, Any]) -> dict[str, Tensor]:
    """The weights under every name that a version without tying looks for, without shared memory."""
    state = model.state_dict()
    if changes.get("tie_word_embeddings", True):
        return state
    head = model.get_output_embeddings()
    names = {f"{name}.weight" for name, module in model.named_modules() if module is head}
    by_storage: dict[int, str] = {}
    for name, tensor in state.items():
        first = by_storage.setdefault(tensor.data_ptr(), name)
        needed = name in names or model.config.model_type not in T5_FAMILY
        if first != name and needed and not tensor.is_meta:
            state[name] = tensor.clone()
    if model.config.model_type == "t5" and model.config.scale_decoder_outputs:
        for name in names:  # transformers 4 cannot express untied but scaled: multiply the factor into the head
            state[name] = (state[name].float() * model.config.d_model**-0.5).to(state[name].dtype)
    return state


def _rope_for_both_versions(config: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` under transformers 4's names too; without them it assumes a base of 10,000."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return {}
    changes = {"rope_theta": rope["rope_theta"]}
    if rope.get("rope_type", "default") != "default":
        changes["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return changes


@contextmanager
def fresh_directory(directory: str | Path, overwrite: bool) -> Iterator[Path]:
    """A temporary directory that is renamed to `directory` if the block succeeds, and deleted otherwise."""
    target = Path(directory).expanduser()
    check_output(target, overwrite)
    folder, earlier = (target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}" for _ in range(2))
    try:
        with writing(target):
            folder.mkdir(parents=True)
            yield folder
            if target.is_dir():
                target.rename(earlier)
            folder.rename(target)
    finally:
        if earlier.is_dir() and not target.exists():
            earlier.rename(target)
        for gone in (folder, earlier):
            shutil.rmtree(gone, ignore_errors=True)


def check_output(directory: str | Path, overwrite: bool) -> None:
    """Refuse a directory whose content would be lost.

    Raises:
        ParleyError: It is a file, or not empty and `overwrite` is not set.
    """
    target = Path(directory).expanduser()
    if target.is_file():
        raise ParleyError(f"{target} is a file; give a directory.")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise ParleyError(f"{target} exists and is not empty; give another directory, or overwrite it (--overwrite).")


def rewrite_json(path: Path, changes: dict[str, Any]) -> None:
    """Change some of the values of a JSON object in a file."""
    _write_json(path, read_json(path) | changes)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n", encoding="utf-8")
