"""Exports a run's checkpoint as a directory that transformers or PEFT can load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_config
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from src.callbacks.storage import read_checkpoint
from src.errors import ParleyError
from src.models.adapters import refuse_code, save_adapter
from src.models.config import load_config
from src.models.fingerprint import base_record
from src.models.finite import refuse_not_finite
from src.models.loading import fit_embeddings, load_model, load_state, load_tokenizer, model_from_config
from src.models.lora import add_lora, merge_lora
from src.models.saving import save_model
from src.models.sources import FOREIGN_CODE, reading
from src.models.texts_to_classify import load_classifier_tokenizer

MODEL_PREFIX = "model."


@dataclass(frozen=True)
class Restored:
    """A trained model restored from a checkpoint.

    Attributes:
        model: The whole model, or a `PeftModel` on its base.
        tokenizer: Its tokenizer.
        base: The directory or hub name that training started from.
        step: Optimiser steps done; None if the checkpoint does not record them.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    base: str
    step: int | None


def restore(path: str | Path, *, base_model: str | None = None, trust_remote_code: bool = False) -> Restored:
    """Build the trained model that a checkpoint holds.

    Args:
        path: The checkpoint.
        base_model: The base's current path, if it has moved.
        trust_remote_code: Allow code from the base's directory to run.

    Raises:
        ParleyError: The base cannot be found, or has other weights than the one trained on; or weights are not finite.
    """
    checkpoint = read_checkpoint(path, mmap=True)
    description, saved = checkpoint["parley"], checkpoint["parley"]["base"]
    outputs = description.get("outputs")  # only a reward model has them
    base, gguf_file, adapter = base_model or saved["name"], saved.get("gguf_file"), description.get("adapter")
    state = {
        name.removeprefix(MODEL_PREFIX): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(MODEL_PREFIX)
    }
    refuse_not_finite(state.items(), str(path))
    if adapter is None:
        with reading("the model", str(path)):
            config = _config(description["config"], base, trust_remote_code)
            tokenizer = _tokenizer(base, config, outputs, gguf_file, trust_remote_code)
            model = model_from_config(config, outputs=outputs, trust_remote_code=trust_remote_code)
            load_state(model, state)
            if settings := description.get("generation"):  # older checkpoints have none
                model.generation_config = GenerationConfig.from_dict(settings)
        return Restored(model.eval(), tokenizer, base, checkpoint.get("global_step"))
    foundation = load_model(base, gguf_file=gguf_file, outputs=outputs, trust_remote_code=trust_remote_code)
    tokenizer = _tokenizer(base, foundation.config, outputs, gguf_file, trust_remote_code)
    if isinstance(foundation, PeftModel) or base_record(foundation).fingerprint != saved.get("fingerprint"):
        raise ParleyError(
            f"the checkpoint's adapter was trained on {saved['name']!r}, and {base!r} has other weights; "
            "give the base model that it was trained on with --base-model."
        )
    fit_embeddings(foundation, tokenizer)
    if not trust_remote_code:
        refuse_code(adapter, str(path))
    with reading("the adapter", str(path)):
        adapted = add_lora(foundation, _adapter_config(adapter))
        missing = adapted.load_state_dict(state, strict=False)
    if missing.unexpected_keys:
        raise ParleyError(
            f"{path} has weights that its own adapter settings do not explain: {missing.unexpected_keys[0]}."
        )
    return Restored(adapted.eval(), tokenizer, base, checkpoint.get("global_step"))


def _tokenizer(
    base: str, config: PreTrainedConfig, outputs: int | None, gguf_file: str | None, trusted: bool
) -> PreTrainedTokenizerBase:
    if outputs is not None:
        return load_classifier_tokenizer(base, config, gguf_file, trust_remote_code=trusted)
    return load_tokenizer(base, gguf_file=gguf_file, trust_remote_code=trusted)


def _config(saved: dict[str, Any], base: str, trusted: bool) -> PreTrainedConfig:
    """A whole model's configuration; of the class in the base's own code, where it has any and that is trusted."""
    options = {key: value for key, value in saved.items() if key != "model_type"}
    has_code = bool(options.get("auto_map"))
    if has_code and not trusted and saved["model_type"] not in CONFIG_MAPPING:
        raise ParleyError(f"{base} {FOREIGN_CODE}")
    if not (has_code and trusted):
        return AutoConfig.for_model(saved["model_type"], **options)
    of_base = load_config(base, trust_remote_code=True)
    config = type(of_base)(**options)
    config.name_or_path, config.auto_map = of_base.name_or_path, of_base.auto_map  # the location of the code
    return config


def _adapter_config(options: dict[str, Any]) -> PeftConfig:
    return get_peft_config({key: value for key, value in options.items() if key != "peft_version"})


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    merge: bool,
    base_model: str | None,
    overwrite: bool,
    trust_remote_code: bool = False,
) -> Restored:
    """Write a checkpoint's model as a plain directory.

    Args:
        checkpoint: A run's checkpoint.
        output: The directory to write.
        merge: Fold an adapter into its base and write the whole model.
        base_model: The base's current path, if it has moved.
        overwrite: Replace a directory that is not empty.
        trust_remote_code: Allow code from the base's directory to run.

    Returns:
        The restored model.

    Raises:
        ParleyError: The checkpoint or its base cannot be used, or the directory cannot be written.
    """
    restored = restore(checkpoint, base_model=base_model, trust_remote_code=trust_remote_code)
    if isinstance(restored.model, PeftModel) and not merge:
        save_adapter(restored.model, restored.tokenizer, output, overwrite=overwrite)
        return restored
    whole = merge_lora(restored.model) if isinstance(restored.model, PeftModel) else restored.model
    save_model(whole, restored.tokenizer, output, overwrite=overwrite)
    return restored
