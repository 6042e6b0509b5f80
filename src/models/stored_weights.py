"""A base's fingerprint out of its files, a tensor at a time, where the model in memory has been rounded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from src.models.fingerprint import BaseRecord, digest_of, parameters_once
from src.models.finite import refuse_not_finite
from src.models.low_precision import dequantized, elements, is_quantized
from src.models.sources import find_file, locate, read_json

FURTHEST = 0.5  # from a weight to what 4 bits make of it, relative; another weight is at about 1.4


def stored_fingerprint(model: PreTrainedModel, record: BaseRecord) -> str | None:
    """What `fingerprint` would be of the base in float32, without a copy of it in memory.

    Args:
        model: As it was read, rounded or quantised; its embeddings may have grown since.
        record: Of its base.

    Returns:
        None where the files are not safetensors, or their names and shapes are not the model's, as transformers maps
        some when it reads them: then only reading the whole model tells.

    Raises:
        ParleyError: A weight is not finite.
    """
    if record.gguf_file is not None:
        return None
    prefix = f"{model.base_model_prefix}."
    found: list[tuple[str, Tensor]] = []
    with _opened(*locate(record.name)) as tensors:
        for names, parameter in parameters_once(model, record.fresh):
            asked = [form for name in names for form in (name, name.removeprefix(prefix), prefix + name)]
            key = next((form for form in asked if form in tensors), None)
            if key is None:
                return None
            weight = tensors[key].get_tensor(key)  # of the file, mapped into memory: what is read goes again
            refuse_not_finite([(key, weight)], record.name)
            if not _is_of(weight, parameter):
                return None
            found.append((names[0], weight))
        return digest_of(found)


@contextlib.contextmanager
def _opened(name: str, local_only: bool) -> Iterator[dict[str, safe_open]]:
    """The open files by the names of the tensors in them; nothing where they are not safetensors."""
    index = find_file(name, "model.safetensors.index.json", local_only)
    names = ["model.safetensors"] if index is None else sorted(set(read_json(index)["weight_map"].values()))
    with contextlib.ExitStack() as stack:
        files: list[Path | None] = [find_file(name, file, local_only) for file in names]
        opened = [stack.enter_context(safe_open(file, "pt")) for file in files if file is not None]
        yield {key: file for file in opened for key in file.keys()}  # noqa: SIM118


@torch.no_grad()
def _is_of(weight: Tensor, parameter: Tensor) -> bool:
    """Whether a parameter, or its first rows, is what a file's weight became when it was read."""
    if not is_quantized(parameter):
        own = parameter[: len(weight)] if weight.ndim == parameter.ndim and weight.ndim else parameter
        if own.shape != weight.shape:
            return False
        return torch.equal(own.cpu(), weight.to(own.dtype))
    if elements(parameter) != weight.numel():
        return False
    own, weight = dequantized(parameter).float().cpu(), weight.float()
    forms = [form for form in (own, own.T) if form.shape == weight.shape]  # GPT-2's layers are the other way round
    return any(float((form - weight).norm()) <= FURTHEST * float(weight.norm()) for form in forms)
