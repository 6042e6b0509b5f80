"""Configurations of base models: reading them, and what they say."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from src.errors import ParleyError
from src.models.classifiers import check_classifiable
from src.models.sources import adapter_base, is_adapter, locate, modified, quietly, reading


def load_config(
    name_or_path: str | Path,
    gguf_file: str | None = None,
    *,
    outputs: int | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedConfig:
    """The configuration of a base model; for an adapter directory, that of its base.

    Args:
        name_or_path: A directory or hub name.
        gguf_file: The GGUF file's name within it.
        outputs: The number of outputs, if a sequence classifier is to be made from it; a language model when left out.
        trust_remote_code: Allow code from the model's directory to run.

    Raises:
        ParleyError: There is none, or it is not of a generating language model (or of one that has a classifier).
    """
    if is_adapter(name_or_path):
        base, base_gguf = adapter_base(name_or_path)
        return load_config(base, gguf_file or base_gguf, outputs=outputs, trust_remote_code=trust_remote_code)
    name, local_only = locate(name_or_path)
    if local_only and Path(name).is_dir() and not gguf_file and not (Path(name) / "config.json").is_file():
        raise ParleyError(f"{name} is not a model directory: it has no config.json (nor adapter_config.json).")
    if gguf_file and Path(name).is_dir() and not (Path(name) / gguf_file).is_file():
        raise ParleyError(f"{name} has no file {gguf_file}; give the GGUF file's name within the directory.")
    with reading("the configuration", name), quietly(bars=True):
        if gguf_file:
            config = copy.deepcopy(_gguf_config(name, gguf_file, local_only, modified(Path(name) / gguf_file)))
        else:
            config = AutoConfig.from_pretrained(name, local_files_only=local_only, trust_remote_code=trust_remote_code)
    auto_class(config, name, outputs)
    if outputs is not None and config.num_labels != outputs:
        config.num_labels = outputs
    return config


@functools.lru_cache(maxsize=4)
def _gguf_config(name: str, gguf_file: str, local_only: bool, _modified: float) -> PreTrainedConfig:
    """The configuration in a GGUF file, cached: transformers reads the whole file, which takes seconds."""
    return AutoConfig.from_pretrained(name, local_files_only=local_only, gguf_file=gguf_file, trust_remote_code=False)


def is_encoder_decoder(
    name_or_path: str | Path, gguf_file: str | None = None, *, trust_remote_code: bool = False
) -> bool:
    """Whether the model has an encoder; reads the configuration only."""
    return bool(load_config(name_or_path, gguf_file, trust_remote_code=trust_remote_code).is_encoder_decoder)


def is_encoder_only(config: PreTrainedConfig) -> bool:
    """Whether a configuration is of an encoder-only model, such as BERT and RoBERTa.

    transformers has a causal class for many of these, which attends to later tokens, however.
    """
    writes = config.is_encoder_decoder or getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    return not writes and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def set_dropout(config: PreTrainedConfig, probability: float) -> None:
    """Set all dropout probabilities of a configuration, whatever their names."""
    names = (
        "dropout",
        "dropout_rate",
        "attention_dropout",
        "activation_dropout",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "classifier_dropout",
        "seq_classif_dropout",
        "summary_first_dropout",
    )
    for name in names:
        if hasattr(config, name):
            setattr(config, name, probability)


def auto_class(config: PreTrainedConfig, name: str, outputs: int | None = None) -> Any:
    """Transformers' class that makes a model of a configuration.

    Args:
        config: The configuration.
        name: What to call it in an error.
        outputs: The number of outputs of a sequence classifier; a language model when left out.

    Raises:
        ParleyError: It is not of a generating language model (or of one that has a classifier).
    """
    if outputs is not None:
        check_classifiable(config, name)
        return AutoModelForSequenceClassification
    own = getattr(config, "auto_map", {})  # only models with their own code have it
    if config.is_encoder_decoder and "AutoModelForSeq2SeqLM" in own:
        return AutoModelForSeq2SeqLM
    if not config.is_encoder_decoder and "AutoModelForCausalLM" in own:
        return AutoModelForCausalLM
    if config.is_encoder_decoder and config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForSeq2SeqLM
    if not config.is_encoder_decoder and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForCausalLM
    raise ParleyError(
        f"{name} is a {config.model_type} model, neither encoder-decoder nor decoder-only; give one that is."
    )
