"""Sequence classifiers made from any base: supported architectures, the head, and newly initialised modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from src.errors import ParleyError
from src.models.head import in_float32
from src.models.tying import base_model

HEADS = ("score", "classifier", "classification_head", "logits_proj")  # names of the head in transformers' classifiers
ENDING = "ForSequenceClassification"


def is_classifier(model: nn.Module) -> bool:
    """Whether a model, with or without an adapter, is a sequence classifier."""
    return type(base_model(model)).__name__.endswith(ENDING)


def says_classifier(config: PreTrainedConfig) -> bool:
    """Whether a model's files are those of a sequence classifier."""
    return any(str(name).endswith(ENDING) for name in config.architectures or [])


def check_classifiable(config: PreTrainedConfig, name: str) -> None:
    """Refuse an architecture for which transformers has no classifier.

    Raises:
        ParleyError: There is none.
    """
    own = getattr(config, "auto_map", None) or {}  # only models with their own code have it
    if (
        config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
        and AutoModelForSequenceClassification.__name__ not in own
    ):
        raise ParleyError(
            f"{name} is a {config.model_type} model, of which transformers has no sequence classifier; give a base of "
            "another kind (BERT, GPT-2, Llama, Qwen, T5, BART, ...)."
        )


def head_name(model: nn.Module) -> str:
    """The attribute name of a classifier's head.

    Raises:
        ParleyError: It is not known.
    """
    base = base_model(model)
    for name in HEADS:
        if isinstance(getattr(base, name, None), nn.Module):
            return name
    raise ParleyError(f"the head of {type(base).__name__} is none of {', '.join(HEADS)}; give a base of another kind.")


def fresh_modules(model: PreTrainedModel, missing: list[str], mismatched: list[str]) -> tuple[str, ...]:
    """The modules of a classifier that are missing in its base's files, and so newly initialised.

    Args:
        model: The classifier.
        missing: Names of weights that the files lack.
        mismatched: Names of weights with another shape, such as those of a head with more outputs.

    Returns:
        The last parts of the modules' names: the head, and what some encoders have below it (a pooler).

    Raises:
        ParleyError: The files lack more than that, or a weight of the rest has another shape.
    """
    prefix = f"{model.base_model_prefix}."
    fresh: dict[str, None] = {}
    for key in [*missing, *mismatched]:
        parts = key.removeprefix(prefix).split(".")
        if key.startswith(prefix) and "pooler" not in parts:
            raise ParleyError(
                f"the weights of {model.name_or_path} do not fit its config.json: {key} is missing or has another "
                "shape; give a base whose files are whole."
            )
        fresh["pooler" if key.startswith(prefix) else parts[0]] = None
    return tuple(fresh)


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Within the block draw random numbers from a seed; the run's random state is restored afterwards.

    So a new head is the same on every process.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def head_in_float32(model: nn.Module) -> Iterator[None]:
    """Within the block compute a classifier's head in float32, regardless of autocast; see `in_float32`."""
    base: Any = base_model(model)
    name = head_name(base)
    head = getattr(base, name)
    setattr(base, name, _InFloat32(head))
    try:
        yield
    finally:
        setattr(base, name, head)


class _InFloat32(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return in_float32(self.head, hidden)
