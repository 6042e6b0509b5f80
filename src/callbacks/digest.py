"""What a checkpoint holds, in one number: over what torch reads back, and not over how the file stores it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


def content_digest(content: Any) -> str:
    """SHA-256 of nested containers, plain values and tensors; the same before it is written and after it is read.

    A tensor counts by its type, shape and bytes, wherever it is and however it lies in memory.

    Args:
        content: What `torch.load` reads with `weights_only=True`.

    Returns:
        64 hexadecimal digits.
    """
    tensors: list[Tensor] = []
    digest = hashlib.sha256()
    for word in _words(content, tensors):
        digest.update(len(word).to_bytes(8, "little") + word)
    each_once = {_memory(tensor): tensor for tensor in tensors}  # tied embeddings have several names
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing lets other threads run
        parts = dict(zip(each_once, pool.map(_tensor_digest, each_once.values()), strict=True))
    for tensor in tensors:
        digest.update(parts[_memory(tensor)])
    return digest.hexdigest()


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors share that have the same bytes, since these are at one place."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _words(value: Any, tensors: list[Tensor]) -> Any:
    """A value as words that tell it from every other, and its tensors, which are left for later."""
    if isinstance(value, Tensor):
        tensors.append(value)
        yield f"tensor {value.dtype} {tuple(value.shape)}".encode()
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for key, item in value.items():
            yield from _words(key, tensors)
            yield from _words(item, tensors)
    elif isinstance(value, (list, tuple)):
        yield f"{'list' if isinstance(value, list) else 'tuple'} {len(value)}".encode()
        for item in value:
            yield from _words(item, tensors)
    elif isinstance(value, (set, frozenset)):
        yield f"set {len(value)}".encode()
        yield from sorted(b"".join(_words(item, tensors)) for item in value)
    elif isinstance(value, str):
        yield b"text " + value.encode("utf-8", "surrogatepass")
    elif isinstance(value, (bytes, bytearray)):
        yield b"bytes " + value
    elif value is None or isinstance(value, (bool, int, float, complex, torch.dtype, torch.device)):
        yield f"{type(value).__name__} {value!r}".encode()
    else:
        yield f"{type(value).__qualname__}".encode()


def _tensor_digest(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").digest()
