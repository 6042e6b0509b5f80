"""A model's weights as float32 files: mapped by all processes of a machine, they are in its memory once.

transformers leaves the float32 weights of a safetensors file where they are, in the system's cache, until something
writes to them. Those of a bfloat16 file it turns into float32 in the memory of each process.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from src.models.sources import adapter_base, find_file, is_adapter, locate, read_json
from src.writing import writing

HALF = {"BF16", "F16"}
_AS_THEY_ARE = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool}
_INDEX, _ONE_FILE = "model.safetensors.index.json", "model.safetensors"


def half_precision_directory(name_or_path: str | Path) -> Path | None:
    """Where a model's safetensors files are, if they hold weights in half precision.

    Args:
        name_or_path: A directory or hub name; of an adapter directory, its base's are meant.

    Returns:
        The directory; None where the weights are in float32, or in files of another kind.
    """
    if is_adapter(name_or_path):
        base, gguf_file = adapter_base(name_or_path)
        return None if gguf_file else half_precision_directory(base)
    name, local_only = locate(name_or_path)
    found = find_file(name, _INDEX, local_only) or find_file(name, _ONE_FILE, local_only)
    if found is None or not all(find_file(name, file.name, local_only) for file in _weight_files(found.parent)):
        return None
    kinds = {kind for file in _weight_files(found.parent) for _, kind, _ in _tensors(file)}
    return found.parent if kinds & HALF and kinds <= HALF | _AS_THEY_ARE.keys() else None


def _weight_files(directory: Path) -> list[Path]:
    index = directory / _INDEX
    names = set(read_json(index)["weight_map"].values()) if index.is_file() else {_ONE_FILE}
    return [directory / name for name in sorted(names)]


def _tensors(file: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Name, type and shape of what a safetensors file holds."""
    with safe_open(str(file), framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118  (no mapping)
            part = opened.get_slice(name)
            yield name, part.get_dtype(), part.get_shape()


def write_in_float32(directory: Path, target: Path) -> None:
    """Write a model's directory anew, with float32 in the place of half precision, a tensor at a time.

    Args:
        directory: As `half_precision_directory` gives it.
        target: A directory that is there; takes four bytes a parameter, and links to the other files.

    Raises:
        ParleyError: There is no room.
    """
    with writing(target, "make room there, or set TMPDIR to where there is some"):
        weights = _weight_files(directory)
        for file in directory.iterdir():
            if file not in weights:
                (target / file.name).symlink_to(file.resolve())
        for file in weights:
            _write_file(file, target / file.name)


def _write_file(source: Path, target: Path) -> None:
    """In the format of https://huggingface.co/docs/safetensors: the length of a header, the header, the tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, kind, shape in _tensors(source):
        kind = "F32" if kind in HALF else kind
        start, end = end, end + _AS_THEY_ARE[kind].itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with safe_open(str(source), framework="pt") as opened, target.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in list(header)[1:]:
            tensor = opened.get_tensor(name)
            tensor = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
            stream.write(tensor.contiguous().numpy().tobytes())
