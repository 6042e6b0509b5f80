"""A digest of a checkpoint's content: of the values that torch reads back, not of the file's bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


def content_digest(content: Any) -> str:
    """SHA-256 of nested containers, plain values and tensors; equal before saving and after loading.

    A tensor counts by its dtype, shape and bytes, whatever its device and memory layout.

    Args:
        content: A checkpoint's content; only types that `torch.load` reads with `weights_only=True`.

    Returns:
        64 hexadecimal digits.
    """
    tensors: list[Tensor] = []
    digest = hashlib.sha256()
    for word in _words(content, tensors):
        digest.update(len(word).to_bytes(8, "little") + word)
    each_once = {_memory(tensor): tensor for tensor in tensors}  # tied embeddings have several names
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib releases the GIL
        parts = dict(zip(each_once, pool.map(_tensor_digest, each_once.values()), strict=True))
    for tensor in tensors:
        digest.update(parts[_memory(tensor)])
    return digest.hexdigest()


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """A key that is equal for tensors that view the same memory in the same way."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _words(value: Any, tensors: list[Tensor]) -> Any:
    """Serialise a value unambiguously, word by word; its tensors are appended to `tensors` and hashed separately."""
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
