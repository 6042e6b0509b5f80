"""Describes a model, an adapter or a checkpoint: sizes, settings, tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.callbacks.storage import is_checkpoint, lacking_to_go_on, read_checkpoint
from src.errors import ParleyError
from src.inference.export import restore
from src.models.endings import ending_ids
from src.models.loading import load_model, load_tokenizer
from src.models.lora import ParameterCount, add_lora, count_parameters
from src.models.sources import adapter_base, is_adapter, read_json
from src.models.tying import base_model, embedding_matrix, head_is_tied, positions

_SHOWN = ("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_rslora")


@dataclass(frozen=True)
class Inspection:
    """The description of a model.

    Attributes:
        sections: Tables by title, each from property to value: text, a number, or None.
        parameters: The number of parameters, and how many of them would be trained.
    """

    sections: dict[str, dict[str, Any]]
    parameters: ParameterCount


def inspect_model(
    name_or_path: str,
    *,
    lora: LoraConfig | None = None,
    base_model_name: str | None = None,
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
) -> Inspection:
    """Describe a model directory, an adapter directory, a checkpoint or a hub model.

    Args:
        name_or_path: Its path or hub name.
        lora: An adapter to add, to see how much of the model it trains.
        base_model_name: For an adapter or a checkpoint, its base where that has moved.
        gguf_file: The GGUF file's name within the directory.
        trust_remote_code: Allow code from the model's directory to run.

    Raises:
        ParleyError: It cannot be found or read, or the adapter does not fit.
    """
    place, sections = Path(name_or_path).expanduser(), dict[str, dict[str, Any]]()
    if is_checkpoint(place):
        restored = restore(place, base_model=base_model_name, trust_remote_code=trust_remote_code)
        model, tokenizer = restored.model, restored.tokenizer
        sections["checkpoint"] = _checkpoint(place)
    else:
        options: dict[str, Any] = {"gguf_file": gguf_file, "trust_remote_code": trust_remote_code}
        is_trainable = is_adapter(place)
        model = load_model(name_or_path, base_model=base_model_name, is_trainable=is_trainable, **options)
        tokenizer = load_tokenizer(name_or_path, **options)
        if is_trainable:
            sections["adapter"] = _adapter(place)
        sections["files"] = _files(place)
    if lora is not None:
        if isinstance(model, PeftModel):
            raise ParleyError(f"{name_or_path} has an adapter already; leave --lora out, or give its base.")
        model = add_lora(model, lora)
        sections["adapter to be"] = _settings(model.active_peft_config.to_dict())
    count = count_parameters(model)
    if not isinstance(model, PeftModel):
        count = ParameterCount(count.total, count.total)
    sections["model"] = _model(model)
    sections["parameters"] = {"all": count.total, "trainable": count.trainable, "frozen": count.total - count.trainable}
    sections["generation"] = _generation(model, tokenizer)
    sections["tokenizer"] = _tokenizer(tokenizer)
    return Inspection(sections, count)


def _model(model: PreTrainedModel | PeftModel) -> dict[str, Any]:
    base = base_model(model)
    config = base.config.get_text_config()
    named = {
        "width": ("hidden_size", "d_model", "n_embd"),
        "layers": ("num_hidden_layers", "num_layers", "encoder_layers", "n_layer"),
        "decoder layers": ("num_decoder_layers", "decoder_layers"),
        "attention heads": ("num_attention_heads", "num_heads", "encoder_attention_heads", "n_head"),
        "feed-forward width": ("intermediate_size", "d_ff", "encoder_ffn_dim", "n_inner"),
    }
    sizes = {
        label: next((getattr(config, name) for name in names if getattr(config, name, None) is not None), None)
        for label, names in named.items()
    }
    both = base.config.is_encoder_decoder
    return {
        "class": type(base).__name__,
        "architecture": f"{base.config.model_type}, {'encoder and decoder' if both else 'decoder only'}",
        **{label: size for label, size in sizes.items() if size is not None and (both or label != "decoder layers")},
        "vocabulary": embedding_matrix(base).shape[0],
        "positions": positions(model) or "any number",
        "output head": "tied to the embeddings" if head_is_tied(base) else "of its own",
        "weights": _bytes(sum(tensor.numel() * tensor.element_size() for tensor in base.parameters())),
        "precision": ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in base.parameters()})),
    }


def _generation(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    base = base_model(model)
    settings = base.generation_config.to_diff_dict()
    own = {key: value for key, value in settings.items() if not key.startswith("_") and key != "transformers_version"}
    endings = [f"{tokenizer.convert_ids_to_tokens(id)} ({id})" for id in ending_ids(tokenizer, base)]
    return {**own, "an answer ends at": ", ".join(endings)}


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "class": type(tokenizer).__name__,
        "vocabulary": len(tokenizer),
        "special tokens": ", ".join(f"{role.removesuffix('_token')} {token}" for role, token in _special(tokenizer)),
        "chat template": f"{len(tokenizer.chat_template):,} characters" if tokenizer.chat_template else "none",
    }


def _special(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
    return [(role, str(token)) for role, token in tokenizer.special_tokens_map.items() if isinstance(token, str)]


def _adapter(place: Path) -> dict[str, Any]:
    base, _ = adapter_base(place)
    weights = sum(file.stat().st_size for file in place.glob("adapter_model.*"))
    return {"base": base, **_settings(read_json(place / "adapter_config.json")), "size on disk": _bytes(weights)}


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: config[name] for name in _SHOWN if config.get(name) not in (None, [], {})}
    return {
        name: ", ".join(sorted(value)) if isinstance(value, (list, set)) else str(getattr(value, "value", value))
        for name, value in found.items()
    }


def _files(place: Path) -> dict[str, Any]:
    if not place.is_dir():
        return {"from": "the hub, or its cache here"}
    sizes = {file.name: file.stat().st_size for file in sorted(place.iterdir()) if file.is_file()}
    return {file: _bytes(size) for file, size in sizes.items()}


def _checkpoint(path: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(path, mmap=True)
    written, state = checkpoint["parley"], checkpoint["state_dict"]
    adapter = written.get("adapter")
    moments = [
        tensor
        for optimizer in checkpoint.get("optimizer_states", ())
        for values in optimizer.get("state", {}).values()
        for tensor in values.values()
        if isinstance(tensor, Tensor)
    ]
    lacks = lacking_to_go_on(checkpoint)
    beside = sorted({key.split(".")[0] for key in state} - {"model"})
    return {
        "written by": f"Parley {written['version']}",
        "trained from": written["base"]["name"],
        "holds": f"an adapter ({adapter['peft_type']})" if adapter else "a whole model",
        "beside it": ", ".join(beside) or None,
        "steps": checkpoint.get("global_step"),
        "epoch": checkpoint.get("epoch"),
        "weights": f"{len(state)} tensors, {_bytes(_size(state.values()))}",
        "optimiser": f"{len(moments)} tensors, {_bytes(_size(moments))}",
        "callbacks": ", ".join(sorted(key.split("{")[0] for key in checkpoint.get("callbacks", {}))),
        "training can go on": "yes" if lacks is None else f"no: {lacks}",
        "size on disk": _bytes(sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))),
    }


def _size(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, torch.Tensor))


def _bytes(size: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024  # type: ignore[assignment]
    return f"{size:,.1f} GiB"
