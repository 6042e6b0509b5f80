"""Loads base models: from a directory, a hub name, a GGUF file or a PEFT adapter."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import BitsAndBytesConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel

from src.errors import ParleyError
from src.models.adapters import load_adapter, refuse_code
from src.models.classifiers import drawn_from, fresh_modules, says_classifier
from src.models.config import auto_class, load_config, set_dropout
from src.models.fingerprint import BaseRecord, base_record, keep_record, record_base
from src.models.finite import refuse_not_finite
from src.models.low_precision import check_quantization, is_quantized, settings_for, settle_quantized
from src.models.sources import adapter_base, first_line, is_adapter, locate, quietly, read_json, reading
from src.models.stored_weights import stored_fingerprint
from src.models.tokenizer import fit_embeddings, load_tokenizer
from src.models.tying import base_model as base_of
from src.models.tying import head_is_tied, load_state, settle_head, untie_head, wants_untied_head

logger = logging.getLogger(__name__)

__all__ = [
    "fit_embeddings",
    "identify",
    "load_model",
    "load_state",
    "load_tokenizer",
    "model_from_config",
]


def load_model(
    name_or_path: str | Path,
    *,
    gguf_file: str | None = None,
    dtype: torch.dtype | None = None,
    quantization: BitsAndBytesConfig | None = None,
    attn_implementation: str | None = None,
    dropout: float | None = None,
    is_trainable: bool = False,
    base_model: str | Path | None = None,
    outputs: int | None = None,
    trust_remote_code: bool = False,
    float32_files: Path | None = None,
) -> PreTrainedModel | PeftModel:
    """Load a base model, or a PEFT adapter on its base; the head stays tied or untied as in the files.

    A classifier made from a language model, or from a classifier with other outputs, gets a new head, initialised from
    the run's seed.

    Args:
        name_or_path: A directory or hub name, or a directory with an adapter.
        gguf_file: The GGUF file's name within the directory.
        dtype: Of the weights; float32 when left out, whatever the file holds (mixed precision is the trainer's).
        quantization: How to quantise linear layers, the output head's apart, as they are read; the rest has `dtype`.
        attn_implementation: Handed to `from_pretrained` ("sdpa", "eager", ...).
        dropout: Every dropout probability of the model; its own configuration's when left out.
        is_trainable: Whether an adapter's weights take gradients.
        base_model: For an adapter, its base where that has moved.
        outputs: Of a sequence classifier; a language model when left out.
        trust_remote_code: Run the code that the model's directory brings, as the user asked.
        float32_files: A directory with the same files in float32 (`write_in_float32`), to read instead.

    Returns:
        The model in evaluation mode: a `PeftModel` for an adapter directory.

    Raises:
        ParleyError: When anything cannot be found or read, has weights that are not finite, or an adapter was trained
            on another base.
    """
    if is_adapter(name_or_path):
        base, base_gguf = (base_model, None) if base_model else adapter_base(name_or_path)
        options: dict[str, Any] = {
            "gguf_file": gguf_file or base_gguf,
            "dtype": dtype,
            "quantization": quantization,
            "attn_implementation": attn_implementation,
            "dropout": dropout,
            "outputs": outputs,
            "trust_remote_code": trust_remote_code,
            "float32_files": float32_files,
        }
        return _load_adapter(name_or_path, base, is_trainable, options)
    config = load_config(name_or_path, gguf_file, outputs=outputs, trust_remote_code=trust_remote_code)
    if outputs is None and says_classifier(config):
        raise ParleyError(f"{name_or_path} is a classifier, such as a reward model, and answers nothing; give another.")
    if dropout is not None:
        set_dropout(config, dropout)
    name, local_only = locate(name_or_path)
    given: dict[str, Any] = {"gguf_file": gguf_file, "attn_implementation": attn_implementation}
    if gguf_file and (unpack := getattr(transformers, "GgufConfig", None)):
        given["quantization_config"] = unpack(dequantize=True)  # plain weights, which can be trained and saved
    if quantization is not None:
        check_quantization(quantization, gguf_file)
        if getattr(config, "quantization_config", None) is not None:
            raise ParleyError(
                f"{name} is quantised already (its config.json); leave quantization out, or give its base."
            )
        given["quantization_config"] = settings_for(quantization, outputs)
        given["device_map"] = {"": torch.get_default_device()}
    if (Path(name) / "generation_config.json").is_file():  # transformers ignores it if it is malformed
        with reading("generation_config.json", name):
            GenerationConfig.from_pretrained(name)
    drawing = nullcontext() if outputs is None else drawn_from(torch.initial_seed())
    reads = reading("the weights", name)
    with _attending(attn_implementation), reads, quietly(bars=not local_only), drawing:
        loaded: Any = auto_class(config, name, outputs).from_pretrained(
            str(float32_files or name),
            config=config,
            dtype=dtype or torch.float32,
            local_files_only=local_only or float32_files is not None,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, in one line
            **{key: value for key, value in given.items() if value is not None},
        )
    model, report = loaded
    if float32_files is not None:  # which are not where it is from
        model.name_or_path = model.config.name_or_path = name
    fresh = _fresh(model, report, name, outputs)
    if quantization is not None:
        settle_quantized(model, name)
    refuse_not_finite(((key, weight) for key, weight in model.named_parameters() if not is_quantized(weight)), name)
    settle_head(model, untied=_file_says_untied(name))
    rounded = dtype not in (None, torch.float32) or quantization is not None
    record_base(model, gguf_file, rounded=rounded, trusted=trust_remote_code, outputs=outputs, fresh=fresh)
    return model


@contextmanager
def _attending(implementation: str | None) -> Iterator[None]:
    """Turn an error about an unsupported attention into one that names the setting."""
    try:
        yield
    except ParleyError as error:
        if implementation is None or "attention" not in str(error.__cause__).lower():
            raise
        said = first_line(error.__cause__ or error).partition(". ")[0].rstrip(".")
        raise ParleyError(
            f"attn_implementation is {implementation!r}, which does not do here ({said}); give sdpa or eager, or leave "
            "it out."
        ) from error


def _fresh(model: PreTrainedModel, report: dict[str, Any], name: str, outputs: int | None) -> tuple[str, ...]:
    """The newly initialised modules of a classifier; for a language model nothing may be missing in the files."""
    missing, odd = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    if outputs is not None:
        return fresh_modules(model, missing, [key for key, *_ in odd])
    if odd:
        key, there, wanted = odd[0]
        raise ParleyError(
            f"the weights of {name} do not fit its config.json: {key} is {tuple(there)} instead of {tuple(wanted)}."
        )
    if unused := sorted(report["unexpected_keys"]):
        logger.warning("%d weights of %s are not used, %s among them.", len(unused), name, unused[0])
    if missing:
        raise ParleyError(f"the weights of {name} are incomplete: {len(missing)} are missing, {missing[0]} among them.")
    return ()


def model_from_config(
    config: PreTrainedConfig, *, outputs: int | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A model with random weights, also under `torch.device("meta")`; with an untied head for T5 v1.1.

    An untied T5 head starts at a standard deviation of d_model^-0.5, as in T5X (the 1.0 that transformers 4 used
    makes the first logits tens of units wide).

    Args:
        config: Any configuration of an encoder-decoder or decoder-only language model.
        outputs: The number of outputs of a sequence classifier; a language model when left out.
        trust_remote_code: Allow code from the model's directory to run.

    Raises:
        ParleyError: When the architecture is neither.
    """
    model = auto_class(config, config.model_type, outputs).from_config(
        config, dtype=torch.float32, trust_remote_code=trust_remote_code
    )
    if outputs is None and wants_untied_head(config):
        tied = head_is_tied(model)
        untie_head(model)
        if tied:
            std = getattr(config, "initializer_factor", 1.0) * config.hidden_size**-0.5
            torch.nn.init.normal_(model.get_output_embeddings().weight, std=std)
    return model.eval()


def identify(model: PreTrainedModel | PeftModel) -> BaseRecord:
    """The record of a model's base, whose files are asked again where its weights were rounded when they were read."""
    record = base_record(model)
    if record.fingerprint is None and (seen := stored_fingerprint(base_of(model), record)) is not None:
        record = replace(record, fingerprint=seen)
        keep_record(model, record)
    if record.fingerprint is None:
        with torch.device("cpu"):
            again = load_model(
                record.name, gguf_file=record.gguf_file, outputs=record.outputs, trust_remote_code=record.trusted
            )
            record = base_record(again)
        keep_record(model, record)
    return record


def _load_adapter(adapter: str | Path, base: str | Path, is_trainable: bool, options: dict[str, Any]) -> PeftModel:
    directory = str(Path(adapter).expanduser())
    if is_adapter(base):
        raise ParleyError(f"the adapter {directory} names another adapter, {base}, as its base; give a whole model.")
    model = load_model(base, **options)
    assert isinstance(model, PreTrainedModel)
    trusted = options["trust_remote_code"]
    tokenizer = load_tokenizer(directory, options["gguf_file"], trust_remote_code=trusted)
    if not trusted:
        refuse_code(read_json(Path(directory) / "adapter_config.json"), directory)
    return load_adapter(model, identify(model), directory, tokenizer, is_trainable=is_trainable)


def _file_says_untied(name: str) -> bool:
    """Whether config.json itself has `tie_word_embeddings: false`, which T5's and mT5's config classes do not keep."""
    path = Path(name) / "config.json"
    return path.is_file() and read_json(path).get("tie_word_embeddings") is False
