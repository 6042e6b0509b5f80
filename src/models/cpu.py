"""Faster dropout, attention and GELU on CPUs: the same functions, with which a small T5 trains 1.6 times as fast.

Three things are slow on a CPU. `scaled_dot_product_attention` has one fast kernel there, which takes neither dropout
nor a bias that is learned, and otherwise works in float32 under bf16 autocast too; without dropout it is used here too,
and the bias's gradient is computed here. `bernoulli_` draws each element separately, which takes a quarter of a small
T5's training time. And "gelu_new", which FLAN-T5 and GPT-2 use, is eight operations in transformers
and one in PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

from src.models.fused import fuse_gelu

ATTENTION = "parley_cpu"
MODEL_TYPES = frozenset({"t5", "mt5", "bart", "gpt2"})  # their attention has exactly the formula of `attention`
_LEVELS = 2**16


def speed_up_on_cpu(model: PreTrainedModel | PeftModel, *, with_attention: bool = True) -> None:
    """Replace a model's dropout, GELU and, if it uses PyTorch's, attention, for training on a CPU.

    Weights, configuration and the computed functions stay the same; only dropout's random numbers differ.

    Args:
        model: Changed in place.
        with_attention: Whether attention is replaced too.
    """
    fuse_gelu(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout and not child.inplace:
                setattr(parent, name, Dropout(child.p).train(child.training))
    base: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[assignment]
    if with_attention and base.config.model_type in MODEL_TYPES and base.config._attn_implementation == "sdpa":
        AttentionInterface.register(ATTENTION, attention)
        AttentionMaskInterface.register(ATTENTION, eager_mask)
        base.set_attn_implementation(ATTENTION)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` with the fast `dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply dropout in training mode."""
        return dropout(input, self.p) if self.training else input


def dropout(values: Tensor, p: float) -> Tensor:
    """Dropout with 16 random bits per element: p is exact to 1/65,536, and the expected value is exact.

    Args:
        values: Of any shape, in any floating dtype.
        p: The probability of setting an element to 0; the others are divided by 1 - p.
    """
    dropped = round(p * _LEVELS)
    if dropped == 0:
        return values
    if dropped == _LEVELS:
        return values * 0.0
    count = values.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=values.device)
    words.random_(torch.iinfo(torch.int64).min, None)  # all 64 bits, including the sign
    kept = words.view(torch.int16)[:count].view(values.shape) >= dropped - _LEVELS // 2
    return values * kept.to(values.dtype).mul_(_LEVELS / (_LEVELS - dropped))


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(query keyᵀ · scaling + bias + mask) value, by PyTorch's fast CPU kernel where that applies.

    Args:
        module: The attention layer.
        query: (batch, heads, queries, width).
        key: (batch, heads, keys, width).
        value: (batch, heads, keys, width).
        attention_mask: An additive mask, broadcast to (batch, heads, queries, keys).
        dropout: Dropout probability of the attention weights.
        scaling: width^-0.5 when None.
        position_bias: T5's, (1, heads, queries, keys).
        **kwargs: The model's other arguments, passed on to PyTorch's kernel.

    Returns:
        (batch, queries, heads, width), and None for the attention weights.
    """
    if not (dropout and torch.is_grad_enabled()):
        bias = None if position_bias is None else position_bias.detach()  # the fast kernel computes no gradient of it
        values, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, position_bias=bias, **kwargs
        )
        if bias is not None and torch.is_grad_enabled():
            values = _LearnedBias.apply(values, position_bias, query, key, value, attention_mask, scaling)
        return values, None
    weights = _weights(query, key, scaling, position_bias, attention_mask)
    return (_dropout(weights.to(value.dtype), dropout) @ value).transpose(1, 2).contiguous(), None


def _weights(
    query: Tensor, key: Tensor, scaling: float | None, position_bias: Tensor | None, attention_mask: Tensor | None
) -> Tensor:
    """softmax(query keyᵀ · scaling + bias + mask), (batch, heads, queries, keys), float32."""
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + attention_mask
    return scores.softmax(-1, dtype=torch.float32)


class _LearnedBias(torch.autograd.Function):
    """Passes attention's result through, and computes the bias's gradient by recomputing the attention weights.

    So a model's output is bitwise the same with and without gradients.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, bias: Tensor, *inputs: Any) -> Tensor:
        *tensors, ctx.scaling = inputs
        ctx.save_for_backward(bias, *tensors)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        bias, query, key, value, mask = ctx.saved_tensors
        of_bias = None
        if ctx.needs_input_grad[1]:
            weights = _weights(query.float(), key.float(), ctx.scaling, bias, mask)
            of_weights = gradient.transpose(1, 2).float() @ value.float().transpose(-1, -2)
            of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True))
            of_bias = of_scores.sum_to_size(bias.shape).to(bias.dtype)
        return gradient, of_bias, None, None, None, None, None


_dropout = dropout  # `attention` has an argument of that name
