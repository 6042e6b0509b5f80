"""Hidden states at response tokens, and the output head, for scoring responses in slices."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from src.errors import ParleyError
from src.models.head import in_float32
from src.models.tying import base_model
from src.parallel.sharding import run_part

Model = PreTrainedModel | PeftModel


class ResponseStates(NamedTuple):
    """Hidden states at the positions that predict each response token, each of shape (batch, time, hidden).

    Attributes:
        head_input: The input of the output head, after anything that the architecture does before it (T5's scaling).
        last_hidden: The decoder's output, which is the input of the value head.
    """

    head_input: Tensor
    last_hidden: Tensor


def encode(model: Model, query_ids: Tensor, query_mask: Tensor) -> Tensor | None:
    """The encoder's output, (batch, query time, hidden); None for a decoder-only model."""
    base = base_model(model)
    if not base.config.is_encoder_decoder:
        return None
    found = run_part(base, base.get_encoder(), input_ids=query_ids, attention_mask=query_mask)
    return found.last_hidden_state


def encoder_is_frozen(model: Model) -> bool:
    """Whether the encoder's output never changes: no encoder parameter is trained or belongs to an adapter."""
    base = base_model(model)
    if not base.config.is_encoder_decoder:
        return False
    prefix = getattr(getattr(model, "base_model", None), "prefix", None) if isinstance(model, PeftModel) else None
    parameters = base.get_encoder().named_parameters()
    return not any(parameter.requires_grad or (prefix and prefix in name) for name, parameter in parameters)


def response_states(
    model: Model,
    query_ids: Tensor,
    query_mask: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
    encoder_hidden: Tensor | None = None,
    *,
    from_prompt: bool = False,
) -> ResponseStates:
    """Run the model over given responses, all tokens at once, without its output head.

    Args:
        model: The model.
        query_ids: (batch, query time), left-padded for a decoder-only model.
        query_mask: (batch, query time).
        response_ids: (batch, time), padded on the right.
        response_mask: (batch, time).
        encoder_hidden: What `encode` returned for these queries; computed when left out.
        from_prompt: Decoder-only: also return the positions that predict the query's tokens, from the second on.

    Returns:
        Two tensors of shape (batch, time, hidden); (batch, query time + time - 1, hidden) with `from_prompt`.
    """
    base, time = base_model(model), response_ids.shape[1]
    inputs: dict[str, Any]
    if base.config.is_encoder_decoder:
        hidden = encode(model, query_ids, query_mask) if encoder_hidden is None else encoder_hidden
        start = response_ids.new_full((len(response_ids), 1), decoder_start(base))
        inputs = {
            "encoder_outputs": BaseModelOutput(last_hidden_state=hidden),
            "attention_mask": query_mask,
            "decoder_input_ids": torch.cat([start, response_ids[:, :-1]], dim=1),
        }
    else:
        mask = torch.cat([query_mask, response_mask[:, :-1].to(query_mask.dtype)], dim=1)
        inputs = {"input_ids": torch.cat([query_ids, response_ids[:, :-1]], dim=1), "attention_mask": mask}
        inputs |= position_ids(base, mask)
        time = mask.shape[1] if from_prompt else time
    with states_caught(base) as caught:
        base(**inputs, use_cache=False)
    return ResponseStates(caught["head_input"][:, -time:], caught["last_hidden"][:, -time:])


@contextmanager
def states_caught(base: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Within the block record `ResponseStates` by name at every call of the model; its head gets an empty input."""
    caught: dict[str, Tensor] = {}

    def before_head(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        caught["head_input"] = inputs[0]
        return (inputs[0][:, :0], *inputs[1:])

    def after_decoder(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
        caught["last_hidden"] = outputs[0]

    handles = [
        base.get_output_embeddings().register_forward_pre_hook(before_head),
        base.get_decoder().register_forward_hook(after_decoder),
    ]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def output_head(model: Model, *, in_own_precision: bool = False) -> Callable[[Tensor], Tensor]:
    """A function from the head's input, (tokens, hidden), to the model's logits, (tokens, vocabulary), float32.

    Args:
        model: Any model that `check_output_head` takes.
        in_own_precision: Multiply as the model would, under autocast too; in float32 otherwise.
    """
    base = base_model(model)
    head, bias = base.get_output_embeddings(), getattr(base, "final_logits_bias", None)  # BART has the bias
    cap = getattr(base.config, "final_logit_softcapping", None)  # Gemma 2 has it

    def apply(hidden: Tensor) -> Tensor:
        logits = head(hidden).float() if in_own_precision else in_float32(head, hidden)
        logits = logits if bias is None else logits + bias
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return apply


def same_logits(found: Tensor, wanted: Tensor) -> bool:
    """Whether logits are a model's own, up to rounding: within a hundredth of the largest."""
    wanted = wanted.float()
    return torch.allclose(found, wanted, rtol=0, atol=1e-2 * float(wanted.abs().max()))


@torch.no_grad()
def check_output_head(model: Model, token: int) -> None:
    """Refuse an architecture that changes its head's output in a way that `output_head` does not support.

    Args:
        model: The model.
        token: Any token's id.

    Raises:
        ParleyError: The logits differ from the model's own.
    """
    base = base_model(model)
    ids = torch.full((1, 2), token, device=base.device)
    inputs = {"decoder_input_ids": ids} if base.config.is_encoder_decoder else {}
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    training = base.training
    base.eval()  # dropout would make two calls differ
    try:
        with torch.autocast(base.device.type, enabled=False):
            logits = base(**inputs, use_cache=False).logits
            with states_caught(base) as caught:
                base(**inputs, use_cache=False)
            ours = output_head(model)(caught["head_input"][0])
    finally:
        base.train(training)
    if not same_logits(ours, logits[0]):
        raise ParleyError(
            f"Parley does not know what {base.config.model_type} does to its logits after the output head; "
            "use another architecture."
        )


def decoder_start(base: PreTrainedModel) -> int:
    """The start token of an encoder-decoder's answers, before their first token."""
    start = base.generation_config.decoder_start_token_id
    start = base.config.decoder_start_token_id if start is None else start
    if start is None:
        raise ParleyError(f"{base.name_or_path!r} names no decoder_start_token_id; set it in its config.json.")
    return int(start)


def position_ids(base: PreTrainedModel, mask: Tensor) -> dict[str, Tensor]:
    """Position ids that skip padding, as a keyword argument; empty if the model takes none.

    Args:
        base: A decoder-only model.
        mask: (batch, time) 1 = token.
    """
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return {}
    return {"position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}
