"""A loss over many tokens is computed in slices: the same loss and gradients, and never all logits at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CohereConfig, CohereForCausalLM

from src.modules import CausalLMModule, Seq2SeqModule
from src.rl.logprobs import cross_entropy_sum

ROWS = 5  # of logits at once
LORA = {"r": 2, "target_modules": "all-linear"}


class Largest(TorchDispatchMode):
    """The most rows of logits that any operation gives.

    Args:
        vocabulary: A row's width.
        hidden: The model's width, which is how many rows the head's weights have when turned round.
    """

    def __init__(self, vocabulary: int, hidden: int = 32) -> None:
        super().__init__()
        self.vocabulary, self.hidden, self.rows = vocabulary, hidden, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.dim() > 1 and leaf.shape[-1] == self.vocabulary:
                rows = leaf.shape[:-1].numel()
                self.rows = max(self.rows, 0 if rows == self.hidden else rows)
        return out


def made(module_class: Any, directory: Any, **options: Any) -> Any:
    module = module_class(str(directory), dropout=0.0, speed_ups=False, **options)
    module.trainer = Trainer(accelerator="cpu", devices=1, logger=False, barebones=True)
    module.trainer.strategy.connect(module)
    module.configure_model()
    return module


def batch_of(module: Any) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 300, (4, 9), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :4] = labels[2, 1:] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def loss_and_gradients(module: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    module.zero_grad()
    loss, count = module.loss_sum(batch)
    assert int(count) == int((module.aligned_labels(batch) >= 0).sum())
    loss.backward()
    return loss.detach(), {name: one.grad for name, one in module.named_parameters() if one.grad is not None}


@pytest.mark.parametrize(
    ("module_class", "architecture", "options"),
    [
        (Seq2SeqModule, "t5", {}),
        (Seq2SeqModule, "bart", {"label_smoothing": 0.1}),
        (CausalLMModule, "gpt2", {}),
        (CausalLMModule, "llama", {"lora": LoraConfig(**LORA)}),
        (CausalLMModule, "llama", {"lora": LoraConfig(**LORA, modules_to_save=["lm_head"])}),
    ],
    ids=["t5", "bart, smoothed", "gpt2", "lora", "lora, head trained"],
)
def test_loss_and_gradients_are_those_of_all_logits_at_once(tiny_base, module_class, architecture, options):
    module = made(module_class, tiny_base(architecture), **options)
    batch, vocabulary = batch_of(module), module.policy.config.vocab_size
    expected, gradients = loss_and_gradients(module, batch)
    module.logits_at_once = ROWS * vocabulary
    module._knows_head = None
    with Largest(vocabulary) as largest:
        loss, found = loss_and_gradients(module, batch)
    assert largest.rows == ROWS
    torch.testing.assert_close(loss, expected)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_evaluation_holds_no_more_than_a_slice_either(tiny_base):
    module = made(CausalLMModule, tiny_base("gpt2")).eval()
    batch, vocabulary = batch_of(module), module.policy.config.vocab_size
    expected, _ = module.loss_sum(batch)
    module.logits_at_once = ROWS * vocabulary
    module._knows_head = None
    with torch.no_grad(), Largest(vocabulary) as largest:
        torch.testing.assert_close(module.loss_sum(batch)[0], expected.detach())
    assert largest.rows == ROWS


def test_a_head_that_is_not_known_computes_all_logits_at_once(tiny_base, tmp_path):
    """Cohere scales its logits after the head."""
    tokens = tiny_base("llama")
    config = CohereConfig(
        vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, logit_scale=0.3,
    )  # fmt: skip
    CohereForCausalLM(config).save_pretrained(tmp_path)
    for file in tokens.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    module = made(CausalLMModule, tmp_path)
    batch = batch_of(module)
    expected, _ = loss_and_gradients(module, batch)
    module.logits_at_once = ROWS * 400
    module._knows_head = None
    with Largest(400, hidden=16) as largest:
        torch.testing.assert_close(loss_and_gradients(module, batch)[0], expected)
    assert largest.rows == int((module.aligned_labels(batch) >= 0).sum())


@pytest.mark.parametrize("chunk_size", [1, 7, 100])
def test_a_sum_in_slices_is_torchs(chunk_size):
    chance = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(30, 8, generator=chance), torch.randn(50, 8, generator=chance)
    targets = torch.randint(50, (30,), generator=chance)
    found = cross_entropy_sum(hidden, targets, lambda rows: rows @ weight.T, label_smoothing=0.2, chunk_size=chunk_size)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum", label_smoothing=0.2)
    torch.testing.assert_close(found, expected)
