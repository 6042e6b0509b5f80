"""Checks of PEFT configurations and adapters, so that unsupported ones are refused before training."""

from __future__ import annotations

import difflib
import re

import torch
from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from src.errors import ParleyError
from src.models.classifiers import is_classifier
from src.models.sources import first_line
from src.models.tying import base_model

ALL_LINEAR = "all-linear"  # PEFT's own word
STARTS = (True, False, "gaussian", "pissa", "olora", "orthogonal", "mica")


def check_config(model: nn.Module, config: PeftConfig) -> None:
    """Refuse a configuration that PEFT accepts but that would not work as intended here.

    Args:
        model: The base.
        config: The adapter's configuration.

    Raises:
        ParleyError: A target is not in the model, or the method needs calls or data that training does not give it.
    """
    if config.peft_type == PeftType.ADALORA:
        raise ParleyError(
            "AdaLoRA would keep all its ranks here, since nothing tells it which step it is; use LoRA with the rank "
            "that you want to end with."
        )
    start = getattr(config, "init_lora_weights", True)
    if start not in STARTS:
        raise ParleyError(
            f"lora.init_lora_weights {start!r} draws from data, quantisation or chance, so that the base that it "
            f"changes could not be rebuilt; give one of {', '.join(map(str, STARTS))}."
        )
    _check_targets(model, config)


@torch.no_grad()
def check_adapter(model: PeftModel) -> None:
    """Test a model with its new adapter on two tokens, of which one is padding; does nothing on the meta device.

    Raises:
        ParleyError: It raises, gives NaN, or has weights that cannot be copied; or a target module is never called.
    """
    if getattr(model.active_peft_config, "target_modules_to_tie", None):
        raise ParleyError(
            "lora.ensure_weight_tying makes adapters of embeddings and head one in a way that cannot be copied; "
            "leave it out, or put the embeddings into modules_to_save."
        )
    base = base_model(model)
    if any(parameter.is_meta for parameter in base.parameters()):
        return
    run: set[str] = set()
    adapted: set[str] = set()
    handles = []
    for name, module in base.named_modules():
        if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)) and not isinstance(module, TrainableTokensLayer):
            adapted.add(last := name.rpartition(".")[2])
            handles.append(module.register_forward_pre_hook(lambda *_, last=last: run.add(last)))  # type: ignore[union-attr]
    tokens = [0, getattr(base.config, "pad_token_id", None) or 0]
    if base.config.is_encoder_decoder and is_classifier(base):
        tokens.append(base.config.eos_token_id)  # the token from which it reads its output
    ids = torch.tensor([tokens], device=base.device)
    inputs: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if base.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    training = [module for module in model.modules() if module.training]  # PEFT's own are, whatever the base's are
    try:
        logits = model.eval()(**inputs).logits
    except Exception as error:  # a tuner may raise anything for an unsupported layer
        raise ParleyError(f"this adapter does not run on {type(base).__name__}: {first_line(error)}") from error
    finally:
        for module in training:
            module.training = True
        for handle in handles:
            handle.remove()
    if not torch.isfinite(logits).all():  # DoRA divides by the norm of the padding token's embedding, which is 0
        raise ParleyError("this adapter's first answers are not finite; use other target_modules, or no DoRA on them.")
    if idle := sorted(adapted - run):
        raise ParleyError(
            f"an adapter on {', '.join(idle)} would do nothing: {type(base).__name__} holds the module, but does not "
            "run it; leave it out of target_modules and modules_to_save."
        )


def acts_in_layers(config: PeftConfig) -> bool:
    """Whether an adapter of this configuration acts inside the base's layers alone, at every token.

    The base called by itself then computes all of it. Otherwise PEFT's model does part of it around the base: it adds
    virtual tokens (prompt learning), or finds the text in a prompt from which on the adapter acts (aLoRA).
    """
    return not (config.is_prompt_learning or getattr(config, "alora_invocation_tokens", None))


def base_is_whole(model: nn.Module) -> bool:
    """Whether `base_model(model)`, called by itself, computes what the model does: see `acts_in_layers`."""
    return not isinstance(model, PeftModel) or acts_in_layers(model.active_peft_config)


def _check_targets(model: nn.Module, config: PeftConfig) -> None:
    targets = getattr(config, "target_modules", None)
    if not targets or targets == ALL_LINEAR:
        return
    names = [name for name, _ in model.named_modules() if name]
    if isinstance(targets, str):
        missing = [] if any(re.fullmatch(targets, name) for name in names) else [targets]
    else:
        missing = [t for t in sorted(targets) if not any(name == t or name.endswith(f".{t}") for name in names)]
    if missing:
        raise ParleyError(
            f"LoRA target {', '.join(missing)} matches no module of this {type(model).__name__}; "
            f"some that would: {', '.join(_candidates(model, missing[0]))}."
        )


def _candidates(model: nn.Module, wanted: str, most: int = 8) -> list[str]:
    """Names of linear layers (last parts), those most similar to the wanted one first."""
    kinds = (nn.Linear, Conv1D)
    names = list(dict.fromkeys(name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, kinds)))
    close = difflib.get_close_matches(wanted, names, n=most, cutoff=0.3)
    return [*close, *(name for name in names if name not in close)][:most]
