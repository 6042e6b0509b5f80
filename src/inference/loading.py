"""Loads a model for generation: from a run's checkpoint, an adapter, a model directory or the hub."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.callbacks.storage import is_checkpoint
from src.errors import ParleyError
from src.inference.export import restore
from src.models.classifiers import is_classifier
from src.models.loading import load_model, load_tokenizer
from src.models.lora import can_merge, merge_lora
from src.models.sources import is_adapter
from src.models.tying import positions


@dataclass(frozen=True)
class FinishedModel:
    """A model to generate with.

    Attributes:
        model: In evaluation mode, its adapter merged where possible.
        tokenizer: Its tokenizer.
        name: The path or hub name that the user gave.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether it has an encoder."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return next(self.model.parameters()).device

    @property
    def positions(self) -> int | None:
        """The number of positions (prompt and answer together if it has no encoder); None if it has no limit."""
        return positions(self.model)


def load_finished(
    name_or_path: str,
    *,
    base_model: str | None = None,
    gguf_file: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    trust_remote_code: bool = False,
) -> FinishedModel:
    """Load a model to generate with.

    Args:
        name_or_path: A checkpoint (.ckpt), an adapter directory, a model directory or a hub name.
        base_model: For a checkpoint or an adapter, its base where that has moved.
        gguf_file: The GGUF file's name within the model's directory.
        device: `cpu`, `cuda`, `cuda:1`, ...; `auto` is CUDA where there is one.
        dtype: The weights' type: `float32`, `bfloat16` or `float16`.
        trust_remote_code: Allow code from the model's directory to run.

    Raises:
        ParleyError: It cannot be found or read, has weights that are not finite, or an option does not apply to it.
    """
    place, where = Path(name_or_path).expanduser(), _device(device)
    weights = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", message="The PEFT config's `base_model_name_or_path` was renamed")
        if is_checkpoint(place):
            if gguf_file:
                raise ParleyError("a checkpoint knows its base's GGUF file by itself; leave --gguf-file out.")
            restored = restore(place, base_model=base_model, trust_remote_code=trust_remote_code)
            if is_classifier(restored.model):
                raise ParleyError(
                    f"{name_or_path} is a reward model, which answers nothing; export it, and give it to "
                    "ClassifierReward."
                )
            model, tokenizer = restored.model, restored.tokenizer
        else:
            if base_model and not is_adapter(place):
                raise ParleyError(f"{name_or_path} is a whole model; leave --base-model out (it is for adapters).")
            _refuse_run(place)
            exact = None if is_adapter(place) else weights  # the base is checked by a fingerprint
            model = load_model(
                name_or_path,
                gguf_file=gguf_file,
                base_model=base_model,
                dtype=exact,
                trust_remote_code=trust_remote_code,
            )
            tokenizer = load_tokenizer(name_or_path, gguf_file=gguf_file, trust_remote_code=trust_remote_code)
    if isinstance(model, PeftModel) and can_merge(model):
        model = merge_lora(model)
    nn.Module.to(model, device=where, dtype=weights)
    return FinishedModel(model.eval(), tokenizer, name_or_path)


def _refuse_run(place: Path) -> None:
    """Refuse the directory of a run, naming one of its checkpoints."""
    if place.is_dir() and not (place / "config.json").is_file() and not is_adapter(place):
        checkpoints = sorted(place.glob("checkpoints/*.ckpt")) or sorted(place.glob("*.ckpt"))
        if checkpoints:
            raise ParleyError(f"{place} is a run, not a model; give one of its checkpoints, such as {checkpoints[-1]}.")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ParleyError(f"there is no device {name!r} here; give cpu, or leave --device out.") from error
    return device
