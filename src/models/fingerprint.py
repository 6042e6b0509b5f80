"""Identifies base models: a model's name, and a hash of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.models.tying import base_model, embedding_matrix
from src.parallel.gathering import whole

SAMPLES_PER_PARAMETER = 64
_RECORD = "parley_base"


@dataclass(frozen=True)
class BaseRecord:
    """A base model as in its files, before its embeddings are grown or an adapter changes it.

    Attributes:
        name: The directory or hub name.
        gguf_file: The GGUF file within it.
        rows: Of the embeddings.
        fingerprint: Of the weights in float32; None where they were rounded or quantised when they were read.
        trusted: Whether its own code may be run to read it.
        outputs: Of a sequence classifier; None of a language model.
        fresh: Modules of a classifier that its files do not have, by their last names.
    """

    name: str
    gguf_file: str | None
    rows: int
    fingerprint: str | None
    trusted: bool = False
    outputs: int | None = None
    fresh: tuple[str, ...] = ()


def record_base(
    model: PreTrainedModel,
    gguf_file: str | None = None,
    *,
    rounded: bool = False,
    trusted: bool = False,
    outputs: int | None = None,
    fresh: tuple[str, ...] = (),
) -> BaseRecord:
    """Record a model that was just loaded, and attach the record to it.

    Args:
        model: The model, with its `name_or_path`.
        gguf_file: The GGUF file that it was read from.
        rounded: Whether its weights were rounded when loaded.
        trusted: Whether its own code may be run to load it.
        outputs: The number of outputs of a sequence classifier; None for a language model.
        fresh: Newly initialised modules of a classifier, which the fingerprint leaves out.
    """
    seen = None if rounded else fingerprint(model, fresh)
    rows = embedding_matrix(model).shape[0]
    record = BaseRecord(model.name_or_path or "", gguf_file, rows, seen, trusted, outputs, fresh)
    keep_record(model, record)
    return record


def keep_record(model: nn.Module, record: BaseRecord) -> None:
    """Attach a record to the base model as an attribute; copies of the model have it too."""
    setattr(base_model(model), _RECORD, record)


def base_record(model: nn.Module) -> BaseRecord:
    """The record of a model's base; made now if the model was not loaded from files."""
    base = base_model(model)
    record = getattr(base, _RECORD, None)
    return record if isinstance(record, BaseRecord) else record_base(base)


def fingerprint(model: nn.Module, without: tuple[str, ...] = ()) -> str:
    """Hash a module's weights cheaply: names, shapes and an evenly spaced sample of each parameter's values.

    The model's directory is not included. Values are hashed as float32; on the meta device only names and shapes are.
    For a sharded model every process must call this.

    Args:
        model: Any module.
        without: Modules to leave out, by the last parts of their names.

    Returns:
        Sixteen hexadecimal digits.
    """
    return digest_of((names[0], parameter) for names, parameter in parameters_once(model, without))


def parameters_once(model: nn.Module, without: tuple[str, ...] = ()) -> list[tuple[list[str], nn.Parameter]]:
    """A module's parameters, each with all its names, in the order of the first of these.

    Args:
        model: Any module.
        without: Modules that do not count, by their last names.
    """
    found: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if set(without).isdisjoint(name.split(".")):
            found.setdefault(id(parameter), ([], parameter))[0].append(name)
    return sorted(((sorted(names), parameter) for names, parameter in found.values()), key=lambda one: one[0])


def digest_of(weights: Iterable[tuple[str, Tensor]]) -> str:
    """The fingerprint of named weights.

    Args:
        weights: As `parameters_once` names and orders them.
    """
    digest = hashlib.sha256()
    for name, weight in weights:
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        if not weight.is_meta:
            digest.update(sample(weight).numpy().tobytes())
    return digest.hexdigest()[:16]


def sample(weight: Tensor) -> Tensor:
    """Some of a weight's values, evenly taken, in float32 on the CPU: fewer than twice `SAMPLES_PER_PARAMETER`.

    Args:
        weight: In shards or not.
    """
    flat = whole(weight.detach()).as_subclass(Tensor).flatten()  # bitsandbytes' own class would not be cast
    step = max(1, flat.numel() // SAMPLES_PER_PARAMETER)
    return flat[::step].to(device="cpu", dtype=torch.float32)
